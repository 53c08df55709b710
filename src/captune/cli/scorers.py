"""`captune scorers`: the scorers by group, or one with its settings and figures."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import TYPE_CHECKING

from captune.cli.command import Command, print_table

if TYPE_CHECKING:
    from captune.scorers import About


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune scorers`."""
    parser.add_argument("name", nargs="?", help="describe this scorer: what it needs, its figures and its settings")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the list, or the description of one scorer."""
    from captune.scorers import describe, describe_scorer, scorer_class

    if args.name is not None:
        about = describe_scorer(args.name)
        if args.json:
            nested = {key: [row._asdict() for row in getattr(about, key)] for key in ("figures", "settings")}
            print(json.dumps(about._asdict() | nested, indent=1))
        else:
            _print_one(about, inspect.getdoc(scorer_class(args.name)) or "")
    elif args.json:
        rows = [
            {
                "name": row.name,
                "group": row.group,
                "measures": row.measures,
                "needs": row.required_columns,
                "uses": row.optional_columns,
                "source": row.source,
                "cost": row.cost,
            }
            for row in describe()
        ]
        print(json.dumps(rows, indent=1))
    else:
        _print_list(describe())
    return 0


def _print_list(rows: list[About]) -> None:
    from rich.table import Table

    from captune.scorers import GROUPS

    for group, text in GROUPS.items():
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(min_width=18, no_wrap=True)
        table.add_column(min_width=10)
        table.add_column()
        for row in rows:
            if row.group == group:
                table.add_row(f"  {row.name}", " and ".join(row.required_columns) or "captions", row.measures)
        if table.row_count:
            print(f"{group}: {text}")
            print_table(table)
            print()
    print(
        "The second column: what a scorer needs. `captune scorers NAME` describes one, with its settings and figures."
    )


def _print_one(about: About, text: str) -> None:
    from rich.table import Table

    from captune.scorers import GROUPS

    print(f"{about.name} ({about.group}: {GROUPS.get(about.group, about.group)})\n\n{text}\n")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("needs", " and ".join(about.required_columns) or "captions only")
    if about.optional_columns:
        facts.add_row("uses, if given", " and ".join(about.optional_columns))
    facts.add_row("source", about.source)
    facts.add_row("cost", about.cost)
    print_table(facts)
    ways = {True: "higher", False: "lower", None: "-"}
    figures = [(figure.name, figure.label, ways[figure.higher_is_better]) for figure in about.figures]
    for head, rows in (
        (("figure", "label", "better"), figures),
        (("setting", "type", "default", "meaning"), about.settings),
    ):
        if rows:
            table = Table(*head, box=None, pad_edge=False)
            for row in rows:
                table.add_row(*row)
            print()
            print_table(table)


COMMAND = Command(
    summary="list the scorers, or describe one",
    description="Lists the scorers by group, or describes one. Each can be used in `captune evaluate` and as a reward.",
    example="captune scorers cider",
    add_arguments=add_arguments,
    run=run,
)
