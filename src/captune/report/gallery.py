"""Which images the page shows, and what it says about each: gains, regressions of equal number, and a random sample."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from captune.report import truth
from captune.report.reading import Row
from captune.report.table import first_with_role, focus_of, primary_label
from captune.report.truth import Segment, Truth

EXTREMES = 10  # gains shown, and regressions shown
_DETAILED = ("base", "zero", "gt", "trained", "supervised")


@dataclass(frozen=True)
class Entry:
    """One captioner's caption of one image."""

    name: str
    role: str
    segments: list[Segment]
    state: str = ""  # improved | worsened | unchanged | "" (the base itself, or no score)
    delta: str = ""
    score: str = ""
    focus: bool = False  # of the row that the page is about


@dataclass(frozen=True)
class Card:
    """One image and its captions."""

    image_id: str
    image: str  # data URI, or "" with `missing` saying why
    missing: str
    references: list[str]
    entries: list[Entry]
    more: list[Entry] = field(default_factory=list)  # folded away
    state: str = ""
    states: dict[int, str] = field(default_factory=dict)  # position among the compared rows -> state, for the filter


@dataclass(frozen=True)
class Count:
    """How one row's captions compare with the base's."""

    name: str
    role: str
    improved: int
    worsened: int
    unchanged: int

    @property
    def total(self) -> int:
        """The number of captions compared."""
        return self.improved + self.worsened + self.unchanged

    def share(self, state: str) -> float:
        """The percentage of captions in a state."""
        return round(100 * getattr(self, state) / self.total, 2) if self.total else 0.0


@dataclass
class Gallery:
    """The images chosen, how all captions compare with the base's, and what a reader has to know about both."""

    gains: list[Card] = field(default_factory=list)
    losses: list[Card] = field(default_factory=list)
    sample: list[Card] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)  # names of the rows the filter can compare with the base
    focus: str = ""
    scorer: str = ""
    figure: str = ""  # the scorer's figure, in words
    tolerance: float = 0.0
    images: int = 0
    facts: bool = False  # whether statements are judged against known facts, not words against references
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def shown(self) -> int:
        """The number of images on the page."""
        return len(self.gains) + len(self.losses) + len(self.sample)


def build(rows: list[Row], source_truth: Truth, *, limit: int = 60) -> Gallery:
    """Picks at most `limit` images and builds their cards.

    Args:
        rows: the rows of one source.
        source_truth: what is known about that source.
        limit: the largest number of images.
    """
    captioned = [row for row in rows if row.captions]
    gallery = Gallery(images=len({i for row in captioned for i in row.captions}), facts=bool(source_truth.facts))
    if not captioned:
        gallery.notes.append("No captions were found in these runs, so there are no examples to show.")
        return gallery
    base, focus = first_with_role(captioned, "base"), focus_of(captioned)
    compared = [row for row in captioned if row is not base] if base else []
    gallery.compared, gallery.focus = [row.name for row in compared], focus.name if focus else ""
    if quoted := [row.name for row in rows if not row.captions and row.role != "control"]:
        gallery.notes.append(f"Scored, but without captions to show: {', '.join(quoted)}.")
    _note_uneven(gallery, captioned, source_truth)
    scores = _scores(gallery, captioned, source_truth)
    deltas = {row.name: _deltas(scores, base, row) for row in compared} if base else {}
    gallery.counts = [_count(row, deltas[row.name], gallery.scorer) for row in compared if deltas[row.name]]
    if base is None:
        gallery.notes.append("Without a base row gains and regressions are unknown: the images are a random sample.")
    chosen = (focus or captioned[0]).captions
    gains, losses, sample = pick(list(chosen), deltas.get(gallery.focus, {}), gallery.scorer, limit)

    def card(image_id: str) -> Card:
        return _card(gallery, image_id, captioned, base, source_truth, scores, deltas)

    gallery.gains, gallery.losses, gallery.sample = ([card(i) for i in ids] for ids in (gains, losses, sample))
    return gallery


def pick(ids: list[str], delta: dict[str, float], scorer: str, limit: int) -> tuple[list[str], list[str], list[str]]:
    """The largest gains, the worst regressions (at most as many each), and a random sample of all the rest."""
    shuffled = sorted(ids)
    random.Random(0).shuffle(shuffled)  # so that image ids do not decide ties
    extremes = min(EXTREMES, max(1, limit // 4))
    ranked = sorted((i for i in shuffled if i in delta), key=lambda i: delta[i])
    losses = [i for i in ranked if truth.change(delta[i], scorer) == "worsened"][:extremes]
    gains = [i for i in reversed(ranked) if truth.change(delta[i], scorer) == "improved"][:extremes]
    taken = {*gains, *losses}
    return gains, losses, [i for i in shuffled if i not in taken][: max(0, limit - len(taken))]


def _scores(gallery: Gallery, rows: list[Row], source_truth: Truth) -> dict[str, dict[str, float]]:
    gallery.scorer = source_truth.scorer
    if not gallery.scorer:
        gallery.notes.append("No references are known for these images: captions are shown without scores.")
        return {}
    gallery.tolerance, gallery.figure = (
        truth.tolerance(gallery.scorer),
        primary_label(rows, gallery.scorer),
    )
    try:
        return {row.name: truth.per_caption(source_truth, row.captions) for row in rows}
    except (ImportError, ValueError, OSError) as error:
        gallery.notes.append(f"Captions could not be scored one by one with {gallery.scorer}: {error}")
        return {}


def _deltas(scores: dict[str, dict[str, float]], base: Row, row: Row) -> dict[str, float]:
    before, after = scores.get(base.name, {}), scores.get(row.name, {})
    return {i: after[i] - before[i] for i in after if i in before}


def _count(row: Row, delta: dict[str, float], scorer: str) -> Count:
    states = [truth.change(d, scorer) for d in delta.values()]
    return Count(row.name, row.role, *(states.count(s) for s in ("improved", "worsened", "unchanged")))


def _note_uneven(gallery: Gallery, rows: list[Row], source_truth: Truth) -> None:
    """Notes rows that caption different images, and images that the source does not have."""
    every = set().union(*(row.captions for row in rows))
    for row in rows:
        if lacking := sorted(every - row.captions.keys()):
            gallery.notes.append(f"“{row.name}” has no caption for {_some(lacking, len(every))}.")
    if source_truth.references or source_truth.facts:
        unknown = sorted(every - source_truth.references.keys() - source_truth.facts.keys())
        if unknown:
            gallery.notes.append(f"The source has neither references nor facts for {_some(unknown, len(every))}.")


def _some(ids: list[str], total: int) -> str:
    named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return f"{len(ids)} of {total} images ({named})"


def _card(
    gallery: Gallery,
    image_id: str,
    rows: list[Row],
    base: Row | None,
    source_truth: Truth,
    scores: dict[str, dict[str, float]],
    deltas: dict[str, dict[str, float]],
) -> Card:
    image, missing = truth.try_image_uri(source_truth, image_id)
    if missing:
        gallery.missing.append(f"{image_id}: {missing}")
    base_caption = base.captions.get(image_id) if base else None
    entries: list[Entry] = []
    more: list[Entry] = []
    states: dict[int, str] = {}
    roles: set[str] = set()
    for row in rows:
        caption = row.captions.get(image_id)
        if caption is None:
            continue
        delta = deltas.get(row.name, {}).get(image_id)
        state = truth.change(delta, gallery.scorer) if delta is not None else ""
        if state:
            states[gallery.compared.index(row.name)] = state
        score = scores.get(row.name, {}).get(image_id)
        entry = Entry(
            name=row.name,
            role=row.role,
            segments=truth.highlight(source_truth, image_id, caption, None if row is base else base_caption),
            state=state,
            delta="" if delta is None else f"{delta:+.2f}".replace("-", "−"),
            score="" if score is None else f"{score:.2f}",
            focus=row.name == gallery.focus,
        )
        # Shown at once: the first row of each role, and always the row that the page is about.
        shown = row.name == gallery.focus or (row.role in _DETAILED and row.role not in roles)
        (entries if shown else more).append(entry)
        roles.add(row.role)
    state = states.get(gallery.compared.index(gallery.focus), "") if gallery.focus in gallery.compared else ""
    return Card(image_id, image, missing, source_truth.references.get(image_id, []), entries, more, state, states)
