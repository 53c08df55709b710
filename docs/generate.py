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
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captune.cli.main import SECOND, verbs
from captune.cli.main import parser as cli_parser
from captune.cli.train import METHODS
from captune.data.sources import Source
from captune.decoding import DECODERS
from captune.scorers import GROUPS, describe
from captune.utils import spec
from captune.utils.spec import Setting

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py; do not edit. -->\n"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; bars and line breaks inside cells are escaped."""

    def cells(row: tuple[Any, ...]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"

    return "\n".join([cells(head), "|" + "---|" * len(head), *map(cells, rows)]) + "\n"


def settings_of(config: type) -> list[Setting]:
    """The fields of a dataclass of settings; what has no help is looked up in its docstring."""
    described = dict(re.findall(r"^ +(\w+): (.+)$", inspect.getdoc(config) or "", re.MULTILINE))
    return [s._replace(help=s.help or described.get(s.name, "")) for s in spec.settings_of(config)]


def setting_table(records: Sequence[Setting]) -> str:
    """A Markdown table of settings; nothing where there are none."""
    rows: list[tuple[Any, ...]] = []
    for name, kind, default, meaning in records:
        if kind == "true or false":
            default = {"0": "false", "1": "true"}.get(default, default)
        rows.append((f"`{name}`", kind, default, meaning))
    return table(("setting", "type", "default", "meaning"), rows) if rows else ""


def scorers() -> str:
    """Every scorer: what it measures, its figures, settings and requirements."""
    words = {True: "higher", False: "lower", None: "-"}
    pages = ["# Scorers\n", "The same as `captune scorers NAME`. [How to read the figures](../scorers.md).\n"]
    for group, meaning in GROUPS.items():
        members = [about for about in describe() if about.group == group]
        if members:
            pages.append(f"## {group}\n\n{meaning.capitalize()}.\n")
        for about in members:
            requires = " and ".join(about.required_columns) or "captions only"
            optional = f"; uses {' and '.join(about.optional_columns)} where given" if about.optional_columns else ""
            pages.append(f"### `{about.name}`\n\n{about.measures}\n")
            pages.append(f"Requires {requires}{optional}. Source: {about.source}. Cost: {about.cost}.\n")
            pages.append(
                table(("figure", "label", "better"), [(f"`{f[0]}`", f[1], words[f[2]]) for f in about.figures])
            )
            pages.append(setting_table(about.settings))
    return "\n".join(pages)


def decoders() -> str:
    """Every decoder with its settings."""
    pages = ["# Decoders\n", "Named by `--decoder NAME:ARGUMENT?SETTING=VALUE`. [What they do](../decoding.md).\n"]
    for name in DECODERS:
        decoder = DECODERS[name]
        doc = (inspect.getdoc(decoder) or "").strip().split("\n\n")[0].replace("\n", " ")
        pages.append(f"## `{name}`\n\n{doc}\n\nExample: `{decoder.example}`\n")
        pages.append(setting_table(settings_of(decoder)))
    return "\n".join(pages)


def cli() -> str:
    """The help of every verb."""
    pages = ["# Command line\n", "```\n" + cli_parser().format_help().rstrip() + "\n```\n"]
    every = [one for verb in verbs() for one in (verb, *(f"{verb} {name}" for name in SECOND.get(verb, ((),))[0]))]
    for verb in every:
        chosen = next(iter(cli_parser(verb)._subparsers._group_actions)).choices[verb]  # type: ignore[union-attr]
        text = chosen.format_help().rstrip()
        if verb in METHODS:
            text = chosen.description + "\n\n" + (chosen.epilog or "").rstrip()
            pages.append(f"## captune {verb}\n\n```\n{text}\n```\n\n[Settings](settings.md#{verb})\n")
        else:
            pages.append(f"## captune {verb}\n\n```\n{text}\n```\n")
    return "\n".join(pages)


def settings() -> str:
    """The settings of every method, by group, and those of sources."""
    pages = [
        "# Settings\n",
        "A setting is a flag (`--learning-rate`) and a key of a YAML file (`learning_rate`, with `--config`). A flag "
        "wins over the file, the file over the preset, the preset over the defaults.\n",
    ]
    for verb in METHODS:
        config = METHODS[verb].config
        pages.append(f"## {verb}\n")
        groups: dict[str, list[Setting]] = {}
        fields = {field.name: field for field in dataclasses.fields(config)}
        for record in settings_of(config):
            groups.setdefault(fields[record.name].metadata.get("group", "settings"), []).append(record)
        pages += [f"**{group}**\n\n{setting_table(records)}" for group, records in groups.items()]
    pages.append("## sources {#sources}\n\nBehind a `?`, joined by `&`: `photos.jsonl?n=500&seed=1`.\n")
    pages.append(setting_table([record for record in settings_of(Source) if record.name != "where"]))
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
