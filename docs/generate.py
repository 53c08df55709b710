"""Write the reference pages from the code: scorers, decoders, command line, settings.

    python docs/generate.py            # write docs/reference/*.md
    python docs/generate.py --check    # exit 1 where a page is stale

`tests/test_docs.py` runs the check.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py; do not edit. -->\n"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; bars and line breaks inside cells are escaped."""

    def cells(row: tuple[Any, ...]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"

    return "\n".join([cells(head), "|" + "---|" * len(head), *map(cells, rows)]) + "\n"


def settings_of(config: type) -> list[tuple[str, str, str, str]]:
    """(name, type, default, help) of a dataclass's fields."""
    from captune.utils.spec import describe

    hints = get_type_hints(config)
    rows = []
    for field in dataclasses.fields(config):
        if not field.init:
            continue
        if field.default is not dataclasses.MISSING:
            default = f"`{field.default}`" if field.default not in ("", None) else "none"
        elif field.default_factory is not dataclasses.MISSING:
            default = f"`{field.default_factory()}`"
        else:
            default = "required"
        rows.append((field.name, describe(hints[field.name]), default, field.metadata.get("help", "")))
    return rows


def scorers() -> str:
    """Every scorer: what it measures, its figures, settings and requirements."""
    from captune.scorers import GROUPS, SCORERS, describe_scorer

    grouped: dict[str, list[str]] = {}
    for name in SCORERS:
        grouped.setdefault(describe_scorer(name).group, []).append(name)
    pages = ["# Scorers\n", "The same as `captune scorers NAME`. [How to read the figures](../scorers.md).\n"]
    for group in [*GROUPS, *(group for group in grouped if group not in GROUPS)]:
        if group not in grouped:
            continue
        pages.append(f"## {group}\n")
        for name in grouped[group]:
            about = describe_scorer(name)
            pages.append(f"### `{name}`\n\n{about.measures}\n")
            requires = " and ".join(about.required_columns) or "captions only"
            optional = f"; uses {' and '.join(about.optional_columns)} where given" if about.optional_columns else ""
            pages.append(f"Requires {requires}{optional}. {about.source}. Cost: {about.cost}.\n")
            words = {True: "higher is better", False: "lower is better", None: "no direction"}
            figures = [(f"`{figure.name}`", figure.label, words[figure.higher_is_better]) for figure in about.figures]
            pages.append(table(("figure", "label", "direction"), figures))
            if about.settings:
                rows = [(f"`{s.name}`", s.type, s.default, s.help) for s in about.settings]
                pages.append(table(("setting", "type", "default", ""), rows))
    return "\n".join(pages)


def decoders() -> str:
    """Every decoder with its settings."""
    from captune.decoding import DECODERS

    pages = ["# Decoders\n", "Named by `--decoder NAME:ARGUMENT?SETTING=VALUE`. [What they do](../decoding.md).\n"]
    for name in DECODERS:
        decoder = DECODERS[name]
        doc = (inspect.getdoc(decoder) or "").strip().split("\n\n")[0].replace("\n", " ")
        pages.append(f"## `{name}`\n\n{doc}\n\nExample: `{decoder.example}`\n")
        rows = settings_of(decoder)
        if rows:
            pages.append(table(("setting", "type", "default", ""), [(f"`{row[0]}`", *row[1:]) for row in rows]))
    return "\n".join(pages)


def cli() -> str:
    """The help of every verb."""
    from captune.cli.main import parser, verbs
    from captune.cli.train import METHODS

    pages = ["# Command line\n", "```\n" + parser().format_help().rstrip() + "\n```\n"]
    for verb in verbs():
        chosen = next(iter(parser(verb)._subparsers._group_actions)).choices[verb]  # type: ignore[union-attr]
        text = chosen.format_help().rstrip()
        if verb in METHODS:
            text = chosen.description + "\n\n" + (chosen.epilog or "").rstrip()
            pages.append(f"## captune {verb}\n\n```\n{text}\n```\n\n[Settings](settings.md#{verb})\n")
        else:
            pages.append(f"## captune {verb}\n\n```\n{text}\n```\n")
    return "\n".join(pages)


def settings() -> str:
    """The settings of every method, by group, and those of sources."""
    from captune.cli.train import METHODS
    from captune.data.sources import Source

    pages = [
        "# Settings\n",
        "A setting is a flag (`--learning-rate`) and a key of a YAML file (`learning_rate`, with `--config`). A flag wins "
        "over the file, the file over the preset, the preset over the defaults.\n",
    ]
    for verb in METHODS:
        config = METHODS[verb].config
        pages.append(f"## {verb}\n")
        groups: dict[str, list[tuple[str, ...]]] = {}
        fields = {field.name: field for field in dataclasses.fields(config)}
        for name, kind, default, text in settings_of(config):
            group = fields[name].metadata.get("group", "settings")
            groups.setdefault(group, []).append((f"`{name}`", kind, default, text))
        for group, rows in groups.items():
            pages.append(f"**{group}**\n\n" + table(("setting", "type", "default", ""), rows))
    pages.append("## sources {#sources}\n\nBehind a `?`, joined by `&`: `photos.jsonl?n=500&seed=1`.\n")
    pages.append(
        table(("setting", "type", "default", ""), [(f"`{r[0]}`", *r[1:]) for r in settings_of(Source) if r[0] != "where"])
    )
    return "\n".join(pages)


PAGES = {"scorers.md": scorers, "decoders.md": decoders, "cli.md": cli, "settings.md": settings}


def stale() -> Iterator[tuple[Path, str]]:
    """(file, what it should hold) of the pages that are not what the code says."""
    os.environ["COLUMNS"] = "110"  # argparse wraps at the terminal's width
    for name, write in PAGES.items():
        text = NOTE + write()
        file = FOLDER / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            yield file, text


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is stale")
    args = parser.parse_args()
    old = list(stale())
    for file, text in old:
        if args.check:
            print(f"{file} is stale; run: python docs/generate.py", file=sys.stderr)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"wrote {file}")
    return 1 if args.check and old else 0


if __name__ == "__main__":
    raise SystemExit(main())
