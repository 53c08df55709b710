"""What the votes of an arena say: strengths with intervals, with length beside them, and how far raters agree."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from captune.annotation.battles import VERDICTS, Battles, Judgement, counting
from captune.evaluation.agreement import cohen_kappa, fleiss_kappa
from captune.evaluation.bradley_terry import PRIOR, Fit, Fought, fit, outcome_probabilities
from captune.utils.wording import counted

_OUTCOME = {"a": 0, "tie": 1, "bad": 1, "b": 2}
_Z = 1.959963984540054


def results(battles: Battles) -> dict[str, Any]:
    """Return everything that the page and the table show.

    Returns:
        file, votes (that count), skipped, undone, images; systems, a list of {system, strength, interval, equal_length,
        equal_length_interval, battles, wins, ties, losses, win_rate, words}, the strongest first; pairs, a list of
        {a, b, battles, wins, ties, losses, win_rate, expected}; tie (Davidson's nu), length ({beta, interval} or None),
        prior (whether it was needed); raters, a list of {rater, votes, left, right, tie, bad, skip, left_rate};
        agreement {pairs: list of {a, b, battles, agreement, kappa}, battles, agreement, kappa}; notes, a sentence each.
        Only numbers, texts, lists, dicts and None, which is a figure that is undefined.
    """
    every = battles.judgements()
    said = [own for own in every if own.winner != "skip"]
    used = counting(every)
    systems = sorted({system for own in every for system in (own.system_a, own.system_b)})
    found, level = None, None
    if used:
        table = fought(used, systems)
        found, level = fit(table, len(systems)), fit(table, len(systems), length=True)
    notes = _notes(used, found, level)
    if len(said) > len(used):
        notes.append(f"Of models, in the agreement only: {counted(len(said) - len(used), 'vote')}.")
    return {
        "file": str(battles.path),
        "votes": len(every),
        "skipped": len(every) - len(said),
        "undone": battles.undone(),
        "images": len({own.image_id for own in used}),
        "systems": _systems(used, systems, found, level),
        "pairs": _pairs(used, systems, found),
        "tie": found.tie if found else None,
        "length": _length(level),
        "prior": bool(found and found.prior),
        "raters": _raters(battles, every),
        "agreement": agreement(said),
        "notes": notes,
    }


def fought(judgements: list[Judgement], systems: list[str]) -> Fought:
    """Return votes without skips, as `captune.evaluation.bradley_terry` takes them."""
    place = {system: number for number, system in enumerate(systems)}
    images: dict[str, int] = {}
    rows = [
        (
            place[own.system_a],
            place[own.system_b],
            {"a": 1, "b": -1}.get(own.winner, 0),
            images.setdefault(own.image_id, len(images)),
            len(own.caption_a.split()),
            len(own.caption_b.split()),
        )
        for own in judgements
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    return Fought(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4:])


def _notes(used: list[Judgement], found: Fit | None, level: Fit | None) -> list[str]:
    notes = []
    if found and found.prior:
        notes.append(
            "Some system has won, or lost, every battle against the others, or had none: the likelihood of the "
            f"strengths has no maximum, so they are given a normal prior of standard deviation {PRIOR:g}."
        )
    if used and level is None:
        notes.append(
            "Strength at equal length is missing: within the battles of two systems the length does not vary, or it "
            "decides all of them."
        )
    if used and len({own.image_id for own in used}) < 2:
        notes.append("There are no intervals: they need votes on two images.")
    bad = sum(own.winner == "bad" for own in used)
    if bad:
        notes.append(f"Of the votes, {bad:,} found both captions bad; they count as ties.")
    return notes


def _finite(*values: float) -> list[float] | None:
    return [float(value) for value in values] if all(map(math.isfinite, values)) else None


def _systems(used: list[Judgement], systems: list[str], found: Fit | None, level: Fit | None) -> list[dict[str, Any]]:
    rows = []
    for number, system in enumerate(systems):
        mine = [own for own in used if system in (own.system_a, own.system_b)]
        won = Counter(_outcome(own, system) for own in mine)
        words = [len((own.caption_a if system == own.system_a else own.caption_b).split()) for own in mine]
        rows.append(
            {
                "system": system,
                "strength": float(found.strengths[number]) if found else None,
                "interval": _finite(*found.interval(number)) if found else None,
                "equal_length": float(level.strengths[number]) if level else None,
                "equal_length_interval": _finite(*level.interval(number)) if level else None,
                "battles": len(mine),
                "wins": won[1],
                "ties": won[0],
                "losses": won[-1],
                "win_rate": (won[1] + won[0] / 2) / len(mine) if mine else None,
                "words": float(np.mean(words)) if words else None,
            }
        )
    return sorted(rows, key=lambda row: -(row["strength"] or 0.0))


def _outcome(own: Judgement, system: str) -> int:
    return {"a": 1, "b": -1}.get(own.winner, 0) * (1 if system == own.system_a else -1)


def _pairs(used: list[Judgement], systems: list[str], found: Fit | None) -> list[dict[str, Any]]:
    rows = []
    for i, j in combinations(range(len(systems)), 2):
        won = Counter(
            _outcome(own, systems[i]) for own in used if {own.system_a, own.system_b} == {systems[i], systems[j]}
        )
        n = won.total()
        expected = None
        if found:
            win, tie, _ = outcome_probabilities(found.strengths[i] - found.strengths[j], found.tie)
            expected = float(win + tie / 2)
        turned = (expected or 0.5) < 0.5
        a, b = (systems[j], systems[i]) if turned else (systems[i], systems[j])
        wins, losses = (won[-1], won[1]) if turned else (won[1], won[-1])
        rows.append(
            {
                "a": a,
                "b": b,
                "battles": n,
                "wins": wins,
                "ties": won[0],
                "losses": losses,
                "win_rate": (wins + won[0] / 2) / n if n else None,
                "expected": 1 - expected if turned and expected is not None else expected,
            }
        )
    return rows


def _length(level: Fit | None) -> dict[str, Any] | None:
    if level is None or level.length is None:
        return None
    low, high = (level.length + sign * _Z * level.length_error for sign in (-1, 1))
    return {"beta": level.length, "interval": _finite(low, high)}


def _raters(battles: Battles, every: list[Judgement]) -> list[dict[str, Any]]:
    rows = []
    for rater in battles.raters():
        said = Counter(own.verdict for own in every if own.rater == rater)
        decided = said["left"] + said["right"]
        rows.append(
            {
                "rater": rater,
                "votes": said.total(),
                **{verdict: said[verdict] for verdict in VERDICTS},
                "left_rate": said["left"] / decided if decided else None,
            }
        )
    return rows


def agreement(used: list[Judgement]) -> dict[str, Any]:
    """Return how raters agree where several judged the same two captions: a wins, a tie (both bad too), b wins."""
    said: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for own in used:
        said[own.image_id, own.system_a, own.system_b][own.rater] = _OUTCOME[own.winner]
    shared = [each for each in said.values() if len(each) > 1]
    raters = sorted({rater for each in shared for rater in each})
    pairs = []
    for one, other in combinations(raters, 2):
        common = [(each[one], each[other]) for each in shared if one in each and other in each]
        if common:
            first, second = np.array(common).T
            share, kappa = cohen_kappa(first, second, 3)
            pairs.append({"a": one, "b": other, "battles": len(common), "agreement": share, "kappa": kappa})
    whole: tuple[float | None, float | None] = None, None
    if shared:
        whole = fleiss_kappa(np.array([[list(each.values()).count(c) for c in range(3)] for each in shared]))
    return {"pairs": pairs, "battles": len(shared), "agreement": whole[0], "kappa": whole[1]}


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the results as tables for a terminal: systems, pairs, raters, agreement."""

    def grid(title: str, names: str, rows: list[list[str]]) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, name in enumerate(names.split("|")):
            made.add_column(name, justify="right" if number else "left")
        for row in rows:
            made.add_row(*row)
        return made

    def signed(value: float | None, interval: list[float] | None) -> str:
        if value is None:
            return "-"
        return f"{value:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f}%"

    def plain(value: float | None, form: str = ".2f") -> str:
        return "-" if value is None else format(value, form)

    made = [
        grid(
            f"{counted(found['votes'], 'vote')}, {found['skipped']:,} of them skipped, on "
            f"{counted(found['images'], 'image')}",
            "system|strength|at equal length|words|win rate|battles|won|tied|lost",
            [
                [
                    row["system"],
                    signed(row["strength"], row["interval"]),
                    signed(row["equal_length"], row["equal_length_interval"]),
                    plain(row["words"], ".1f"),
                    share(row["win_rate"]),
                    *(f"{row[key]:,}" for key in ("battles", "wins", "ties", "losses")),
                ]
                for row in found["systems"]
            ],
        ),
        grid(
            "pairs",
            "pair|battles|won|tied|lost|win rate|the model's",
            [
                [
                    f"{row['a']} : {row['b']}",
                    *(f"{row[key]:,}" for key in ("battles", "wins", "ties", "losses")),
                    share(row["win_rate"]),
                    share(row["expected"]),
                ]
                for row in found["pairs"]
            ],
        ),
        grid(
            "raters",
            "rater|votes|left|ties|both bad|skipped",
            [
                [row["rater"], f"{row['votes']:,}", share(row["left_rate"]), *(str(row[k]) for k in VERDICTS[2:])]
                for row in found["raters"]
            ],
        ),
    ]
    if found["agreement"]["battles"]:
        whole = found["agreement"]
        rows = [
            [f"{row['a']}, {row['b']}", str(row["battles"]), share(row["agreement"]), plain(row["kappa"])]
            for row in whole["pairs"]
        ]
        rows.append(["all (Fleiss)", str(whole["battles"]), share(whole["agreement"]), plain(whole["kappa"])])
        made.append(grid("agreement", "raters|in common|agree on|kappa", rows))
    return made


def as_csv(found: dict[str, Any]) -> str:
    """Return the systems' rows as CSV; intervals are two columns."""
    text = io.StringIO()
    rows = []
    for row in found["systems"]:
        flat: dict[str, Any] = {}
        for key, value in row.items():
            if key.endswith("interval"):
                flat |= dict(zip((f"{key}_low", f"{key}_high"), value or ("", ""), strict=True))
            else:
                flat[key] = value
        rows.append(flat)
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["system"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
