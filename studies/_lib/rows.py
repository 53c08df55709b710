"""The rows of a study: read from its `experiments.yaml`, one mapping a row, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every row has; it runs with all seeds of the command, the first (on the first base), or those named."""

    name: str
    section: str = ""
    seeds: Literal["all", "first"] | Sequence[int] = "all"
    seed: int = 7
    base: str = "storybook"

    def runs(self) -> dict[str, dict[str, Any]]:
        """{method: settings}, as `captune METHOD --config` takes them, where the row is one run of a command."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Spec(Row):
    """A row of a kind, with that kind's settings."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    role: str = ""


COMMON = {field.name for field in fields(Row)}
AnyRow = TypeVar("AnyRow", bound=Row)


def read(file: Path, kind: type[AnyRow]) -> dict[str, list[AnyRow]]:
    """{section: its rows}; a section of the file that begins with a dot holds what rows share."""
    sections = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: [kind(section=name, **row) for row in rows] for name, rows in sections.items() if not name.startswith(".")
    }


def shared(file: Path, name: str) -> Any:
    """What a section with a dot holds."""
    return yaml.safe_load(file.read_text(encoding="utf-8"))[f".{name}"]


def expand(rows: Iterable[AnyRow], seeds: Sequence[int], bases: Sequence[str]) -> Iterator[AnyRow]:
    """Every row on the bases and seeds that it is for."""
    rows = list(rows)
    for base in bases:
        for seed in seeds:
            first = base == bases[0] and seed == seeds[0]
            for row in rows:
                if row.seeds == "all" or (first if row.seeds == "first" else seed in row.seeds):
                    yield replace(row, base=base, seed=seed)
