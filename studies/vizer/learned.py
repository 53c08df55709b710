"""The tables of the section `learning`: what captioners see and say, where habit agrees with the truth or not."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from probing import SLOTS

if TYPE_CHECKING:
    from table import Runs

SPOKEN = ("object", "attribute", "size", "subkind", "relation", "background")


def middle(runs: Runs, name: str, part: str, key: str, value: str) -> float | None:
    """The median over bases and seeds of one figure."""
    rows: list[dict[str, Any]] = [row[part] for row in runs.section("learning") if row["name"] == name]
    found = [row[key][value] for row in rows if key in row and value in row[key]]
    return median(found) if found else None


def cell(*values: float | None) -> str:
    return " / ".join("-" if value is None else f"{value:.2f}" for value in values)


def learning_tables(runs: Runs) -> list[str]:
    from table import markdown

    names = runs.names("learning")
    if not names:
        return []
    lines = []
    for slot in SLOTS:
        for split in ("differs", "agrees", "all"):
            key = f"{slot}/{split}"
            if all(middle(runs, name, "slots", key, "right") is None for name in names):
                continue
            figures = ("right", "p_true", "p_habit")
            cells = [cell(*(middle(runs, name, "slots", key, v) for v in figures)) for name in names]
            label = {"differs": "habit differs", "agrees": "habit agrees", "all": "all"}[split]
            lines.append([f"{slot}, {label}", *cells])
    sees, entropy = (
        [[slot, *(cell(middle(runs, name, "slots", f"{slot}/all", key)) for name in names)] for slot in SLOTS]
        for key in ("sees", "entropy")
    )
    said = []
    for fact in SPOKEN:
        for split in ("differs", "agrees", "no habit"):
            key = f"{fact}/{split}"
            if any(middle(runs, name, "spoken", key, "true") is not None for name in names):
                cells = [cell(*(middle(runs, name, "spoken", key, v) for v in ("true", "habit"))) for name in names]
                said.append([f"{fact}, {split if split == 'no habit' else 'habit ' + split}", *cells])
    return [
        "", "## Looking or a way of speaking", "",
        "One slot of the shortest description, the words before it given. Right (the most probable filling is true) / "
        "p(true) / p(habit's word).", "", markdown(["slot", *names], lines),
        "", "Among the fillings that state something (\"and\" states no relation), the share of slots where the most "
        "probable one is true.", "", markdown(["slot", *names], sees),
        "", "Entropy of the slot in bits.", "", markdown(["slot", *names], entropy),
        "", "Facts in greedy captions: share true / share that says what habit says.", "",
        markdown(["fact", *names], said),
    ]  # fmt: skip
