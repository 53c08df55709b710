"""Caption files as what the page is made of: one row each, scored by the default scorers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from captune.data import load_references, read_captions
from captune.data.places import Places
from captune.errors import ReportError
from captune.evaluation.run import DEFAULT_SCORERS, evaluate_files
from captune.report.reading import LONGEST_CAPTION, Row, Run, whole
from captune.utils.files import short_names

logger = logging.getLogger(__name__)
HEALTH = ("health",)  # what needs no references


def read_files(files: Sequence[str | Path], source: str | None = None, *, bootstrap: int = 1000) -> list[Run]:
    """Return a run for each caption file, with one row; the first one's is what the others are compared with.

    Args:
        files: caption files of any format.
        source: the images, and references where it has some; None: health alone, and no images on the page.
        bootstrap: resamples per interval.

    Raises:
        CaptuneError: a file or the source that cannot be read, or captions that belong to none of its images.
    """
    if not files:
        raise ReportError("no caption file was named: there is nothing to report")
    known = None if source is None else load_references(source)
    referenced = known is not None and any(known.values())
    result = evaluate_files(
        files,
        references=source if referenced else None,
        images=source,
        scorers=DEFAULT_SCORERS if referenced else HEALTH,
        bootstrap=bootstrap,
    )
    names = short_names([Path(file) for file in files])
    places = None if source is None else Places(source)
    runs: list[Run] = []
    for index, report in enumerate([result, *result["others"]]):
        path = Path(report["captions"])
        captions = {key: whole(text[:LONGEST_CAPTION]) for key, text in read_captions(path, images=places).items()}
        if known is not None and (others := [key for key in captions if key not in known]):
            if len(others) == len(captions):
                raise ReportError(
                    f"none of the {len(captions)} captions in {path} is of an image of {source}: they have ids like "
                    f"{others[0]!r}, its images like {next(iter(known), '')!r}; name the source that was captioned"
                )
            if not referenced:  # with references the evaluation says so
                result["warnings"].append(
                    f"{len(others)} of the {len(captions)} captions in {path} are of no image of {source}, such as "
                    f"{others[0]!r}"
                )
        role, note = ("base", "the others are compared with it") if index == 0 < len(files) - 1 else ("other", "")
        row = Row(names[index], role, names[index], source or "", report["scores"], captions, note=note)
        same = next((run.name for run in runs if run.rows[0].captions == captions), None)
        notes = [] if same is None else [f"{names[index]} holds the same captions as {same}; it is shown once."]
        runs.append(Run(names[index], path, [row], notes=notes))
    for warning in result["warnings"]:
        logger.warning(warning)
    runs[0].notes += [f"{warning}." for warning in result["warnings"]]
    runs[0].notes += [f"{scorer} failed: {why}" for scorer, why in result["failed"].items()]
    runs[0].bad_images += [f"{item}: {why}" for item, why in result["bad_images"].items()]
    return runs
