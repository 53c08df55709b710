"""What the reward-hacking watch saw in a run (`captune.training.monitor.watch`), and captions that show what it marked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from captune.report import truth as known
from captune.report.gallery import Card, Entry
from captune.report.reading import Run, read_lines
from captune.report.truth import Truth, load_truth
from captune.scorers.text.health import Health

FILE = "watch.jsonl"
EXAMPLES = 4  # images for each figure that is marked
SAMPLES = 2  # sampled captions shown of an image
_HEALTH = ("length", "repetition", "bad_endings", "empty")  # columns of the scorer's rows


@dataclass(frozen=True)
class Watched:
    """A run under the watch. The cards show the last marked evaluation beside the one that it was compared with."""

    run: str
    about: str
    sentences: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)


def watched(run: Run, source: str, truth: Truth) -> Watched | None:
    """None for a run without a watch. `truth` is that of `source`; what cannot be read becomes a note of the run."""
    path = run.path / FILE
    if not path.is_file():
        return None
    records, problems = read_lines(path)
    run.notes += problems
    try:
        return _watched(run, {row["step"]: row for row in records}, source, truth)
    except (KeyError, TypeError, AttributeError) as error:
        run.notes.append(f"{FILE} is not as the watch writes it ({error!r}): what it marked is not shown.")
        return None


def _watched(run: Run, rows: dict[float, dict[str, Any]], source: str, truth: Truth) -> Watched:
    marked = [row for row in rows.values() if row["marks"]]
    held_out = {name: None for row in rows.values() for name in row["sampled"]}
    about = f"Held out: {', '.join(held_out) or 'no scorer, health alone'}. {len(rows)} evaluations, "
    if not marked:
        return Watched(run.name, f"{about}none marked.")
    about += f"{len(marked)} marked, the first at step {marked[0]['step']}."
    sentences = list(dict.fromkeys(row["sentence"] for row in (marked[0], marked[-1])))
    seen = marked[-1]["source"]
    return Watched(
        run.name, about, sentences, _cards(run, rows, marked[-1], truth if seen == source else load_truth(seen))
    )


def _cards(run: Run, rows: dict[float, dict[str, Any]], row: dict[str, Any], truth: Truth) -> list[Card]:
    """Images for the first held-out score that is marked, and for the first vital sign."""
    scores = row["by_image"]
    chosen: dict[bool, dict[str, Any]] = {}
    for mark in row["marks"]:
        chosen.setdefault(mark["figure"] in scores, mark)
    cards: dict[str, Card] = {}
    for sampled, mark in chosen.items():
        before, now = _captions(run, mark["since"]), _captions(run, row["step"])
        shared = [image_id for image_id in now if image_id in before]
        if sampled:  # the scores are in the order of the captions
            then = rows[mark["since"]]["by_image"][mark["figure"]]
            worse = {i: a - b for i, a, b in zip(now, then, scores[mark["figure"]], strict=False)}
        else:
            worse = _gained(mark["figure"], before, now, shared)
        name = mark["figure"].replace("_", " ") if sampled or mark["figure"] in _HEALTH else "length"
        for image_id in sorted((i for i in shared if i not in cards), key=lambda i: -worse.get(i, 0.0))[:EXAMPLES]:
            told = f"{name} {'−' if sampled else '+'}{worse.get(image_id, 0.0):.2f}"
            entries = _entries(truth, image_id, before[image_id], f"step {mark['since']}", sampled)
            entries += _entries(truth, image_id, now[image_id], f"step {row['step']}: {told}", sampled)
            picture, missing = _picture(truth, image_id)
            references = truth.references.get(image_id, [])
            cards[image_id] = Card(image_id, picture, missing, references, entries, [], "", {})
    return list(cards.values())


def _captions(run: Run, step: float) -> dict[str, dict[str, Any]]:
    path = run.path / "captions" / f"watch-{step}.jsonl"
    if not path.is_file():
        run.notes.append(f"The captions that the watch judged at step {step} (captions/{path.name}) are missing.")
        return {}
    records, problems = read_lines(path)
    run.notes += problems
    return {str(r["image_id"]): r for r in records if "image_id" in r and isinstance(r.get("caption"), str)}


def _gained(
    figure: str, before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]], ids: list[str]
) -> dict[str, float]:
    """{image_id: how much more of the figure its greedy caption has}; of one that has no figure of its own, words."""
    judge, place = Health(), _HEALTH.index(figure) if figure in _HEALTH else 0
    old, new = (judge.rows([part[i]["caption"] for i in ids])[:, place] for part in (before, now))
    return dict(zip(ids, (new - old).tolist(), strict=True))


def _entries(truth: Truth, image_id: str, row: dict[str, Any], name: str, sampled: bool) -> list[Entry]:
    captions = [str(text) for text in row.get("samples", [])][:SAMPLES] if sampled else [row["caption"]]
    kind = "sampled" if sampled else "greedy"
    return [Entry(f"{kind}, {name}", "other", known.mark(truth, image_id, text, None)) for text in captions]


def _picture(truth: Truth, image_id: str) -> tuple[str, str]:
    """(data URI, why there is none)."""
    try:
        return known.picture(truth, image_id), ""
    except (LookupError, OSError, ValueError, ImportError) as error:
        return "", str(error) or type(error).__name__
