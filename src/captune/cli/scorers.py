"""`captune scorers`: the scorers by group, or one with its settings and figures."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import inspect
import json
from typing import TYPE_CHECKING, Any, get_type_hints

from captune.cli.command import Command, print_table

if TYPE_CHECKING:
    from captune.scorers import Scorer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune scorers`."""
    parser.add_argument("name", nargs="?", help="describe this scorer: what it needs, its figures and its settings")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the list, or the description of one scorer."""
    from captune.scorers import describe, group_of, scorer_class

    if args.name is None:
        rows = [row._asdict() for row in describe()]
        if args.json:
            print(json.dumps(rows, indent=1))
        else:
            _print_list([row | {"group": group_of(row["name"])} for row in rows])
        return 0
    scorer = scorer_class(args.name)
    about = {
        "name": args.name,
        "group": group_of(args.name),
        "measures": (inspect.getdoc(scorer) or "").partition("\n")[0],
        "needs": list(scorer.required_columns),
        "uses": list(scorer.optional_columns),
        "source": scorer.source,
        "cost": scorer.cost,
        "figures": figures(scorer),
        "settings": settings(scorer),
    }
    if args.json:
        print(json.dumps(about, indent=1))
    else:
        _print_one(about, inspect.getdoc(scorer) or "")
    return 0


def figures(scorer: type[Scorer]) -> list[dict[str, str]]:
    """Return what a scorer says of its figures: name, label and which way is better."""
    from captune.scorers import direction, label

    words = {True: "higher", False: "lower", None: "-"}
    names = dict.fromkeys([*scorer.higher_is_better, *scorer.labels])
    names = {name: None for name in names if "*" not in name or not fnmatch.filter(names.keys() - {name}, name)}
    return [
        {"figure": name, "label": label(scorer.name, name), "better": words[direction(scorer.name, name)]}
        for name in names
    ]


def settings(scorer: type[Scorer]) -> list[dict[str, str]]:
    """Return the fields of a scorer's dataclass of settings: name, type, default and meaning."""
    from captune.utils.spec import describe

    kind = getattr(scorer, "Settings", None)
    if kind is None:
        return []
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        hint = hints.get(field.name, field.type)
        value = int(field.default) if isinstance(field.default, bool) else field.default  # as a spec writes it
        default = "required" if value is dataclasses.MISSING else "none" if value in ("", None) else str(value)
        texts = [
            extra.description for extra in getattr(hint, "__metadata__", ()) if getattr(extra, "description", None)
        ]
        found.append({"setting": field.name, "type": describe(hint), "default": default, "meaning": " ".join(texts)})
    return found


def _print_list(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from captune.scorers import GROUPS

    for group, text in GROUPS.items():
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(min_width=18, no_wrap=True)
        table.add_column(min_width=10)
        table.add_column()
        for row in rows:
            if row["group"] == group:
                table.add_row(f"  {row['name']}", " and ".join(row["needs"]) or "captions", row["measures"])
        if table.row_count:
            print(f"{group}: {text}")
            print_table(table)
            print()
    print(
        "The second column: what a scorer needs. `captune scorers NAME` describes one, with its settings and figures."
    )


def _print_one(about: dict[str, Any], text: str) -> None:
    from rich.table import Table

    from captune.scorers import GROUPS

    print(f"{about['name']} ({about['group']}: {GROUPS[about['group']]})\n\n{text}\n")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("needs", " and ".join(about["needs"]) or "captions only")
    if about["uses"]:
        facts.add_row("uses, if given", " and ".join(about["uses"]))
    facts.add_row("source", about["source"])
    facts.add_row("cost", about["cost"])
    print_table(facts)
    for title in ("figures", "settings"):
        if about[title]:
            table = Table(*about[title][0], box=None, pad_edge=False)
            for row in about[title]:
                table.add_row(*row.values())
            print()
            print_table(table)


COMMAND = Command(
    summary="list the scorers, or describe one",
    description="Lists the scorers by group, or describes one. Each can be used in `captune evaluate` and as a reward.",
    example="captune scorers cider",
    add_arguments=add_arguments,
    run=run,
)
