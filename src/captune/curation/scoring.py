"""A score for each caption of a set: by any scorer, or a sum of scorers, part by part, so that none is lost.

A scorer that compares with references is given the *other* captions of the image: a caption is no reference of itself.
What such a scorer takes from all references together (CIDEr's document frequencies) is of the whole set as the step
finds it, so that a score does not depend on where a part ends.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np

from captune.curation.base import Captions, Verdicts, Work
from captune.curation.criteria import COLUMN
from captune.data.columns import LazyImages
from captune.data.schemes import scheme_of
from captune.errors import CurationError, MissingColumn, UsageError
from captune.scorers import Scorer, load_scorer
from captune.utils.hashing import fingerprint
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)
TEXTS, IMAGES = 4096, 256  # captions of a part: of scorers that read texts alone, and of those that look at images
WHY = ("", "the image has no other caption to compare with", "the image cannot be opened", "the score is no number")


class Scores(NamedTuple):
    """The scores of N captions.

    Attributes:
        values: (N,) float64; NaN where one is missing.
        why: (N,) uint8: why one is missing, an index into `WHY`.
        signature: of the scorer.
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
        return Scores(values, np.where(np.isfinite(values), 0, 3).astype(np.uint8), by)
    scorer = load_scorer(by, device=work.device) if work.device else load_scorer(by)
    scorer.check()
    _say_blind(scorer, captions.source)
    needs = set(scorer.required_columns)
    judged = {"references", "image_id"}
    if needs - judged and (lacking := sorted(needs - judged - set(captions.images.column_names))):
        raise MissingColumn(f"scorer {by!r} needs {' and '.join(lacking)}, which {captions.source} does not have")
    if "references" in needs:
        _fit(scorer, captions)
    # an image's captions are compared with each other, or with references: parts hold them together
    size = IMAGES if "image" in needs else TEXTS
    mark = fingerprint(f"{scorer.signature} {by} {len(captions)}")
    jobs = [(number, start, stop) for number, (start, stop) in enumerate(captions.parts(size))]
    todo = [job for job in jobs if not work.path(f"scores-{mark}-{job[0]:06d}.npy").is_file()]
    judge = _Judge(by, scorer, needs)
    with Bar(total=len(captions), desc=f"scoring by {by}", unit="caption", show=work.progress, delay=2) as bar:
        bar.update(len(captions) - sum(stop - start for _, start, stop in todo))
        for (number, start, stop), made in judge.run(todo, captions, work.workers):
            work.keep(f"scores-{mark}-{number:06d}", made)
            bar.update(stop - start)
    parts = [np.load(work.path(f"scores-{mark}-{number:06d}.npy")) for number, _, _ in jobs]
    whole = np.concatenate(parts) if parts else np.zeros((0, 2))
    values, why = whole[:, 0], whole[:, 1].astype(np.uint8)
    if len(why) and bool((why > 0).all()):
        raise CurationError(
            f"no caption of {captions.source} has a score of {by!r}: " + " or ".join(WHY[i] for i in np.unique(why))
        )
    return Scores(values, why, scorer.signature)


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


def _fit(scorer: Scorer, captions: Captions) -> None:
    """Freeze what a scorer takes from all references, those of the set."""
    parts = [part for part, _ in getattr(scorer, "parts", [(scorer, 1.0)])]
    for part in parts:
        if part.needs_fit:
            part.fit(_references(captions))


def _references(captions: Captions) -> Iterator[list[str]]:
    for start, stop in captions.parts(TEXTS):
        texts = captions.texts(start, stop)
        own = captions.starts[(captions.starts >= start) & (captions.starts <= stop)] - start
        yield from (texts[a:b] for a, b in itertools.pairwise(own))


def _say_blind(scorer: Scorer, source: str) -> None:
    from captune.models.encoders.base import DEFAULT_IMAGE_ENCODER

    drawn = scheme_of(source).image_encoder == DEFAULT_IMAGE_ENCODER
    if "image" in scorer.required_columns and not drawn and f"{DEFAULT_IMAGE_ENCODER}@" in scorer.signature:
        logger.warning(
                "%s looks through %s, which knows drawn scenes alone: its scores say nothing about %s; name a model, "
                "as in clip:openai/clip-vit-base-patch32",
                scorer.name, DEFAULT_IMAGE_ENCODER, source,
            )  # fmt: skip


class _Judge:
    """Scores parts, here or in worker processes.

    Args:
        by: the criterion.
        scorer: loaded and fitted.
        needs: the columns that it requires.
    """

    def __init__(self, by: str, scorer: Scorer, needs: set[str]) -> None:
        self.by, self.scorer, self.needs = by, scorer, needs

    def run(self, jobs: list[tuple[int, int, int]], captions: Captions, workers: int) -> Iterator[tuple[Any, Any]]:
        """Yield each job with what was made of it, as they are done."""
        if workers > 1 and not self.needs - {"references", "image_id"} and len(jobs) > 1:
            yield from self._shared(jobs, captions, workers)
            return
        for job in jobs:
            yield job, _score(self.scorer, self._part(captions, job), captions)

    def _shared(self, jobs: list[tuple[int, int, int]], captions: Captions, workers: int) -> Iterator[tuple[Any, Any]]:
        try:
            scorer = pickle.dumps(self.scorer)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise UsageError(f"{self.by} cannot be shared among processes ({error}): leave --workers out") from error
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(scorer,)) as pool:
            waiting: dict[Any, tuple[int, int, int]] = {}
            left = iter(jobs)
            while True:
                while len(waiting) < 2 * workers and (job := next(left, None)) is not None:
                    waiting[pool.submit(_work, self._part(captions, job))] = job
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()

    def _part(self, captions: Captions, job: tuple[int, int, int]) -> dict[str, Any]:
        _, start, stop = job
        texts, rows = captions.texts(start, stop), captions.rows[start:stop]
        part: dict[str, Any] = {"texts": texts, "rows": rows}
        if "image_id" in {*self.needs, *self.scorer.optional_columns}:
            part["image_id"] = captions.image_ids.take(rows).to_pylist()
        if "references" in self.needs:
            own = captions.starts[(captions.starts >= start) & (captions.starts <= stop)] - start
            part["references"] = [
                texts[a:i] + texts[i + 1 : b] for a, b in itertools.pairwise(own) for i in range(a, b)
            ]
        return part


def _score(scorer: Scorer, part: Mapping[str, Any], captions: Captions | None = None) -> np.ndarray:
    """(captions of the part, 2): scores, and why one is missing."""
    texts, rows = part["texts"], part["rows"]
    made = np.full((len(texts), 2), np.nan)
    made[:, 1] = 0
    if "references" in part:
        made[[not others for others in part["references"]], 1] = 1
    if any(one.grouped for one, _ in getattr(scorer, "parts", [(scorer, 1.0)])):
        _, place, sizes = np.unique(rows, return_inverse=True, return_counts=True)
        made[sizes[place.reshape(-1)] < 2, 1] = 1
    columns = {name: part[name] for name in ("references", "image_id") if name in part}
    others = set(scorer.required_columns) - {"references", "image_id"}
    if captions is not None and others:
        from captune.data.checking import without_bad

        unique = np.unique(rows)
        chosen = captions.images.select(unique.tolist())
        if "image" in others:
            _, bad = without_bad(chosen.select_columns(["image", "image_id"]), progress=False)
            unusable = {image_id for image_id, _ in bad}
            ids = captions.image_ids.take(rows).to_pylist()
            made[[image_id in unusable for image_id in ids], 1] = 2
        place = np.searchsorted(unique, rows)
        for name in others:
            columns[name] = (
                LazyImages(captions.images.select(rows.tolist()))
                if name == "image"
                else [chosen.with_format(None)[name][i] for i in place.tolist()]
            )
    good = np.flatnonzero(made[:, 1] == 0)
    if len(good):
        some = len(good) < len(texts)
        if some:
            texts = [texts[i] for i in good]
            columns = {
                name: LazyImages(captions.images.select(rows[good].tolist()))  # type: ignore[union-attr]
                if name == "image"
                else [values[i] for i in good]
                for name, values in columns.items()
            }
        made[good, 0] = scorer.per_caption(scorer.measure(texts, columns))
    made[(made[:, 1] == 0) & ~np.isfinite(made[:, 0]), 1] = 3
    made[made[:, 1] > 0, 0] = np.nan
    return made


_SCORER: list[Scorer] = []


def _start(scorer: bytes) -> None:
    """Begin a worker process."""
    _SCORER[:] = [pickle.loads(scorer)]


def _work(part: Mapping[str, Any]) -> np.ndarray:
    return _score(_SCORER[0], part)
