"""A score for each caption of a set: by any scorer, or a sum of scorers, part by part, so that none is lost.

A scorer that compares with references is given the *other* captions of the image: a caption is no reference of itself.
What such a scorer takes from all references together (CIDEr's document frequencies) is of the whole set as the step
finds it, and one that compares all captions (self-retrieval) gets the set in one part, so that a score does not depend
on where a part ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captune.curation.base import Captions, Verdicts, Work, keep
from captune.curation.criteria import COLUMN
from captune.data.checking import without_bad
from captune.data.columns import LazyImages
from captune.data.schemes import warn_if_blind
from captune.errors import CurationError, MissingColumn, redact
from captune.scorers import Scorer, load_scorer, scorers_in
from captune.utils.hashing import fingerprint
from captune.utils.skipped import Told, skip

TEXTS, IMAGES = 4096, 256  # captions of a part: of scorers that read texts alone, and of those that look at images
WHY = ("", "the image has no other caption to compare with", "the image cannot be opened", "the score is no number")


class Scores(NamedTuple):
    """The scores of N captions.

    Attributes:
        values: (N,) float64; NaN where one is missing.
        why: (N,) uint8: why one is missing, an index into `WHY`.
        signature: of the scorer, without what the captions that it judged last decide.
    """

    values: np.ndarray
    why: np.ndarray
    signature: str


def scores(by: str, captions: Captions, work: Work) -> Scores:
    """Return the score of each caption.

    Args:
        by: a scorer's spec, a weighted sum, or ``column:NAME``: numbers that stand in the source, or that a step made.
        captions: the set.
        work: keeps each part of the scores once it is made.

    Raises:
        CurationError: no caption of the set can have a score, or the column is not there.
        MissingColumn: the source lacks what the scorer looks at.
    """
    if by.startswith(COLUMN):
        name = by.removeprefix(COLUMN)
        if name not in captions.columns:
            have = ", ".join(captions.columns) or "no column of numbers"
            raise CurationError(f"{captions.source} has no column {name!r} of numbers; it has {have}")
        values = captions.column(name).astype(np.float64)
        if not np.isfinite(values).any():
            raise CurationError(f"the column {name!r} of {captions.source} holds no number for any caption")
        return Scores(values, np.where(np.isfinite(values), 0, 3).astype(np.uint8), by)
    judge = _Judge(by, captions, work.device)
    scorer = judge.scorer
    if "image" in scorer.required_columns:
        warn_if_blind(scorer.name, scorer.signature, captions.source, captions.images.column_names)
    # an image's captions are compared with each other, or with references: parts hold them together
    size = IMAGES if "image" in scorer.required_columns else TEXTS
    if any(one.together for one in scorers_in(scorer)):
        size = len(captions)
    mark = fingerprint(f"{scorer.identity} {by} {len(captions)}")
    parts = [
        (f"scores-{mark}-{number:06d}.npy", (start, stop), stop - start)
        for number, (start, stop) in enumerate(captions.parts(size))
    ]
    if cut := sum(work.share(judge, parts, f"scoring by {by}")):  # of the parts that are made now
        told = Told(f"captions are longer than {redact(by)} reads: their score is of their beginnings")
        skip(told, f"{captions.source}, step {work.folder.name}", cut)
    made = [np.load(work.path(name)) for name, *_ in parts]
    whole = np.concatenate(made) if made else np.zeros((0, 2))
    values, why = whole[:, 0], whole[:, 1].astype(np.uint8)
    if len(why) and bool((why > 0).all()):
        raise CurationError(
            f"no caption of {captions.source} has a score of {by!r}: " + " or ".join(WHY[i] for i in np.unique(why))
        )
    return Scores(values, why, scorer.identity)


def drop_unscored(found: Scores, verdicts: Verdicts, by: str, keep: bool) -> None:
    """Decide about captions without a score, each by its own reason.

    Args:
        found: the scores.
        verdicts: where it is said.
        by: the criterion, for the reason.
        keep: whether they are kept.
    """
    for code in np.unique(found.why[found.why > 0]).tolist():
        (verdicts.keep if keep else verdicts.drop)(found.why == code, f"no score of {by}: {WHY[code]}")


def fit(scorer: Scorer, references: Callable[[], Iterable[Sequence[str]]]) -> None:
    """Freeze what a scorer takes from all references, a list per image, so that no score depends on its part."""
    for part in scorers_in(scorer):
        if part.needs_fit:
            part.fit(references())


def _references(captions: Captions) -> Iterator[list[str]]:
    for start, stop in captions.parts(TEXTS):
        texts = captions.texts(start, stop)
        own = captions.starts[(captions.starts >= start) & (captions.starts <= stop)] - start
        yield from (texts[a:b] for a, b in itertools.pairwise(own))


class _Judge:
    """Scores parts, in whatever process; each loads the scorer once.

    Args:
        by: the criterion.
        captions: the set.
        device: where models run.
    """

    def __init__(self, by: str, captions: Captions, device: str | None) -> None:
        self.by, self.captions, self.device = by, captions, device

    def __reduce__(self) -> tuple[Any, ...]:
        return _Judge, (self.by, self.captions, self.device)

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer, fitted to the whole set."""
        scorer = load_scorer(self.by, device=self.device) if self.device else load_scorer(self.by)
        scorer.check()
        needs = set(scorer.required_columns)
        others = needs - {"references", "image_id"}
        if others and (lacking := sorted(others - set(self.captions.images.column_names))):
            raise MissingColumn(
                f"scorer {self.by!r} needs {' and '.join(lacking)}, which {self.captions.source} does not have"
            )
        if "references" in needs:
            fit(scorer, partial(_references, self.captions))
        return scorer

    def __call__(self, path: Path, span: tuple[int, int]) -> int:
        """Write the scores of a part; tell how many of the captions were cut."""
        made, cut = self._score(*span)
        keep(path, made)
        return cut

    def _score(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        """(captions of the part, 2): scores, and why one is missing; how many captions were cut."""
        scorer, captions = self.scorer, self.captions
        needs = set(scorer.required_columns)
        texts, rows = captions.texts(start, stop), captions.rows[start:stop]
        made = np.full((len(texts), 2), np.nan)
        made[:, 1] = 0
        columns: dict[str, Any] = {}
        if "image_id" in {*needs, *scorer.optional_columns}:
            columns["image_id"] = captions.image_ids.take(rows).to_pylist()
        if "references" in needs:
            own = captions.starts[(captions.starts >= start) & (captions.starts <= stop)] - start
            others = [texts[a:i] + texts[i + 1 : b] for a, b in itertools.pairwise(own) for i in range(a, b)]
            columns["references"] = others
            made[[not one for one in others], 1] = 1
        if any(one.grouped for one in scorers_in(scorer)):
            _, place, sizes = np.unique(rows, return_inverse=True, return_counts=True)
            made[sizes[place.reshape(-1)] < 2, 1] = 1
        if besides := needs - {"references", "image_id"}:
            unique = np.unique(rows)
            chosen = captions.images.select(unique.tolist())
            if "image" in besides:
                _, bad = without_bad(chosen.select_columns(["image", "image_id"]), progress=False)
                unusable = {image_id for image_id, _ in bad}
                ids = captions.image_ids.take(rows).to_pylist()
                made[[image_id in unusable for image_id in ids], 1] = 2
            place = np.searchsorted(unique, rows)
            for name in besides - {"image"}:
                columns[name] = [chosen.with_format(None)[name][i] for i in place.tolist()]
        good, cut = np.flatnonzero(made[:, 1] == 0), 0
        if len(good):
            if len(good) < len(texts):
                texts = [texts[i] for i in good]
                columns = {name: [values[i] for i in good] for name, values in columns.items()}
            if "image" in needs:
                columns["image"] = LazyImages(captions.images.select(rows[good].tolist()))
            made[good, 0] = scorer.per_caption(scorer.measure(texts, columns))
            cut = round(scorer.truncated * len(good))
        made[(made[:, 1] == 0) & ~np.isfinite(made[:, 0]), 1] = 3
        made[made[:, 1] > 0, 0] = np.nan
        return made, cut
