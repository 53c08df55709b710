"""What the reward-hacking monitor saw in a run, and captions that show what it flagged.

The rows of ``watch.jsonl`` and the captions beside it are written by `captune.training.monitor`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from captune.report import truth
from captune.report.gallery import Card, Entry
from captune.report.reading import LONGEST_CAPTION, Run, is_file, read_lines, text_of
from captune.report.truth import Truth
from captune.scorers import direction, load_scorer

FILE = "watch.jsonl"
EXAMPLES = 4  # images for each flagged figure
SAMPLES = 2  # sampled captions shown of an image
_HEALTH = ("length", "repetition", "bad_endings", "empty")  # columns of the scorer's statistics


@dataclass(frozen=True)
class MonitorReport:
    """What the monitor saw in one run.

    Attributes:
        run: the run's name.
        about: one sentence: the held-out scorers, the evaluations and how many of them were flagged.
        evaluations: how many there were.
        flagged: how many of them were flagged.
        sentences: the monitor's own words about the first and the last flagged evaluation.
        cards: captions of the last flagged evaluation beside those of the evaluation it was compared with.
    """

    run: str
    about: str
    evaluations: int = 0
    flagged: int = 0
    sentences: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)


def monitor_report(run: Run, source: str, source_truth: Truth) -> MonitorReport | None:
    """The report of a run's monitor; None for a run without one. What cannot be read becomes a note of the run.

    Args:
        run: the run.
        source: the source of the page's examples.
        source_truth: what is known about that source.
    """
    path = run.path / FILE
    if not is_file(path):
        return None
    records, problems = read_lines(path)
    run.notes += problems
    try:
        return _report(run, {row["step"]: row for row in records}, source, source_truth)
    except Exception as error:  # the rows may hold anything; the page shows what can be shown
        run.notes.append(
            f"{FILE} is not as the monitor writes it ({text_of(repr(error))}): what it flagged is not shown."
        )
        return None


def _flags(row: dict[str, Any]) -> list[dict[str, Any]]:
    return row["alerts"] if "alerts" in row else row["marks"]  # "marks" in runs of earlier versions


def _report(run: Run, rows: dict[float, dict[str, Any]], source: str, source_truth: Truth) -> MonitorReport:
    flagged = [row for row in rows.values() if _flags(row)]
    held_out = {name: None for row in rows.values() for name in row["sampled"]}
    about = f"Held out: {', '.join(held_out) or 'no scorer, health metrics only'}. {len(rows)} evaluations, "
    if not flagged:
        return MonitorReport(run.name, f"{about}none flagged.", len(rows))
    about += f"{len(flagged)} flagged, the first at step {flagged[0]['step']}."
    sentences = list(dict.fromkeys(row["sentence"] for row in (flagged[0], flagged[-1])))
    last = flagged[-1]
    cards = _cards(run, rows, last, source_truth if last["source"] == source else truth.load_truth(last["source"]))
    return MonitorReport(run.name, about, len(rows), len(flagged), sentences, cards)


def _cards(run: Run, rows: dict[float, dict[str, Any]], row: dict[str, Any], row_truth: Truth) -> list[Card]:
    """Images for the first flagged held-out score, and for the first flagged health metric."""
    scores = row["by_image"]
    chosen: dict[bool, dict[str, Any]] = {}
    for flag in _flags(row):
        chosen.setdefault(flag["figure"] in scores, flag)
    cards: dict[str, Card] = {}
    for sampled, flag in chosen.items():
        before, now = _captions(run, flag["since"]), _captions(run, row["step"])
        shared = [image_id for image_id in now if image_id in before]
        if sampled:  # the scores are in the order of the captions
            earlier = rows[flag["since"]]["by_image"][flag["figure"]]
            grown = {i: b - a for i, a, b in zip(now, earlier, scores[flag["figure"]], strict=False)}
        else:
            grown = _increase(flag["figure"], before, now, shared)
        worse = -1.0 if sampled and direction(flag["figure"]) is not False else 1.0  # the way in which it is
        name = flag["figure"].replace("_", " ") if sampled or flag["figure"] in _HEALTH else "length"
        order = sorted((i for i in shared if i not in cards), key=lambda i: -worse * grown.get(i, 0.0))
        for image_id in order[:EXAMPLES]:
            change = f"{name} {grown.get(image_id, 0.0):+.2f}".replace("-", "−")
            entries = _entries(row_truth, image_id, before[image_id], f"step {flag['since']}", sampled)
            entries += _entries(row_truth, image_id, now[image_id], f"step {row['step']}: {change}", sampled)
            image, missing = truth.try_image_uri(row_truth, image_id)
            cards[image_id] = Card(image_id, image, missing, row_truth.references.get(image_id, []), entries)
    return list(cards.values())


def _captions(run: Run, step: float) -> dict[str, dict[str, Any]]:
    path = run.path / "captions" / f"watch-{step}.jsonl"
    if not is_file(path):
        run.notes.append(f"The captions that the monitor judged at step {step} (captions/{path.name}) are missing.")
        return {}
    records, problems = read_lines(path)
    run.notes += problems
    read = {}
    for row in records:
        if "image_id" in row and isinstance(row.get("caption"), str):
            samples = row.get("samples")
            texts = [str(text)[:LONGEST_CAPTION] for text in samples] if isinstance(samples, list) else []
            read[str(row["image_id"])] = {**row, "caption": row["caption"][:LONGEST_CAPTION], "samples": texts}
    return read


def _increase(
    figure: str, before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]], ids: list[str]
) -> dict[str, float]:
    """{image_id: increase of the figure in its greedy caption}; of the length where captions have no such figure."""
    scorer, column = load_scorer("health"), _HEALTH.index(figure) if figure in _HEALTH else 0
    old, new = (scorer.rows([part[i]["caption"] for i in ids])[:, column] for part in (before, now))
    return dict(zip(ids, (new - old).tolist(), strict=True))


def _entries(row_truth: Truth, image_id: str, row: dict[str, Any], name: str, sampled: bool) -> list[Entry]:
    captions = [str(text) for text in row.get("samples", [])][:SAMPLES] if sampled else [row["caption"]]
    kind = "sampled" if sampled else "greedy"
    return [Entry(f"{kind}, {name}", "other", truth.highlight(row_truth, image_id, text, None)) for text in captions]
