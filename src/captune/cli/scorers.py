"""`captune scorers`: the scorers by group, or one with its settings and figures."""

from __future__ import annotations

import argparse
import json

from captune.cli.command import Command, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune scorers`."""
    parser.add_argument("name", nargs="?", help="describe this scorer: its settings, figures and needs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the list, or the description of one scorer."""
    from rich.table import Table

    from captune.scorers import describe

    rows = describe()
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return 0
    table = Table("scorer", "measures", "needs", "cost", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.name, row.measures, " and ".join(row.needs) or "captions only", row.cost)
    print_table(table)
    return 0


COMMAND = Command(
    summary="list the scorers, or describe one",
    description="Lists the scorers by group, or describes one. Each can be used in `captune evaluate` and as a reward.",
    example="captune scorers cider",
    add_arguments=add_arguments,
    run=run,
)
