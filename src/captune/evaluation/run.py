"""Caption files -> scores with intervals: the work behind ``captune evaluate``, usable without the command line."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from captune.data import load_images, load_references, load_scenes, read_captions, without_bad
from captune.data.checking import captions_in
from captune.data.columns import LazyImages, column
from captune.data.places import Places
from captune.data.schemes import SOURCES, blind, scheme_of, source_of
from captune.errors import (
    BadImage,
    CaptuneError,
    EvaluationError,
    MissingColumn,
    ScorerError,
    SourceError,
    first_line,
)
from captune.evaluation.cache import Cache
from captune.evaluation.statistics import Result, Results, evaluate, holm, paired
from captune.evaluation.table import records
from captune.scorers import SCORERS, Scorer, check_needs, load_scorer
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)
NAMED = 3  # images without references in a warning
DEFAULT_SCORERS = ("bleu", "rouge", "cider", "health")

_LONE_SURROGATE = re.compile("[\\ud800-\\udfff]")  # half a character: no tokenizer of a model takes it


def match(captions: Mapping[str, str], references: Iterable[str]) -> list[str]:
    """The image ids that have both a caption and a place in `references`, in the order of `references`.

    Raises EvaluationError when no id has both, with what the ids of the two sides look like and what to run.
    """
    ids = list(references)
    both = [i for i in ids if i in captions]
    if both:
        return both
    if not captions or not ids:
        raise EvaluationError("the caption file is empty" if not captions else "the references are empty")
    ours, theirs = next(iter(captions)), ids[0]
    raise EvaluationError(
        f"none of the {len(captions)} captioned images is among the {len(ids)} images of the references: captions "
        f"have ids like {ours!r}, references like {theirs!r}. {_advice(list(captions), ids)}"
    )


def _advice(captioned: list[str], expected: list[str]) -> str:
    made, asked = source_of(captioned), source_of(expected)
    if made and asked:
        return (
            f'The captions are of other images: --references "{made}" belongs to them; to evaluate on "{asked}", '
            f'first run: captune caption --model … --images "{asked}" --output …'
        )
    numbered = all(image_id.isdecimal() for image_id in expected) and not captioned[0].isdecimal()
    by_file = "A file of COCO's form calls an image by its number: caption --images 'FILE.json?images=FOLDER'. "
    return by_file * numbered + (
        "Caption the images that the references belong to, or name the references of the captioned images; ids are "
        "what the source calls image_id (for a folder, the file's path inside it)."
    )


def evaluate_files(
    files: Sequence[str | Path],
    *,
    references: str | None = None,
    images: str | None = None,
    scorers: Sequence[str] = DEFAULT_SCORERS,
    bootstrap: int = 1000,
    seed: int = 0,
    paired: bool = False,
    cache: str | Path | None = None,
    per_image: bool = False,
) -> Results[Any]:
    """Score caption files on the images that all of them, and the references, have.

    Args:
        files: caption files of any format, and folders of captions (`captune.data.read_captions`).
        references: a source with references; it also serves as `images` where it has images.
        images: a source with the images.
        scorers: specs, or "all": every scorer that the data and this machine can serve; the others are `skipped`.
        bootstrap: resamples per interval; 0: no intervals.
        seed: of the resampling.
        paired: test each further file against the first, image by image.
        cache: a folder where the rows of costly scorers are kept.
        per_image: also return every caption with its own scores.

    Returns:
        What the evaluation found. About the first file: captions (its path), captioned, scores {scorer: {value,
        values, interval, signature, n}}; then matched, expected, references, images, warnings, skipped and failed
        {scorer: why}; and bad_images {image_id: why} that the scorers of images leave out, and unreferenced, the ids
        of the images without a reference, that the scorers which need references leave out; and others, a list of
        captions, captioned and scores of each further file, with paired {scorer: {figure: {difference to the first
        file, interval, p_value, p_holm}}} where asked; and per_image where asked, a list of {image_id, file, caption,
        scorer: score}, None for what was not scored. Only numbers, texts, lists and dicts.

    Raises:
        EvaluationError: when no id matches or a scorer's needs are not met, before any image is opened.
    """
    source = images or references
    places = None if source is None else Places(source)
    systems = {str(file): read_captions(file, images=places) for file in files}
    if len(systems) < len(files):
        raise EvaluationError("the same caption file is named twice")
    kept = Cache(cache) if cache is not None else None
    skipped: dict[str, str] = {}
    if list(scorers) == ["all"]:
        have = {"image_id"} | ({"references"} if references is not None else set())
        judges = available_scorers(have, images or references, skipped, kept)
    else:
        judges = [load_scorer(spec, cache=kept) for spec in scorers]
    ids, columns, expected = _columns(systems, judges, references, images, places)
    texts = {name: [_LONE_SURROGATE.sub("\ufffd", captions[i]) for i in ids] for name, captions in systems.items()}

    check_needs(judges, columns, len(ids))
    results: dict[str, dict[str, Result]] = {name: {} for name in systems}
    failed: dict[str, str] = {}
    lacking = {row for row, texts in enumerate(columns.get("references", ())) if not texts}
    bad: list[tuple[str, str]] = []
    unread: set[int] = set()

    scored: dict[str, Sequence[int]] = {}  # on which rows each was measured

    def rows_for(judge: Scorer, opens: bool) -> Sequence[int]:
        out = (unread if opens else set()) | (lacking if "references" in judge.required_columns else set())
        return [row for row in range(len(ids)) if row not in out] if out else range(len(ids))

    bar = Bar(judges, desc="scorers", leave=False, show=len(judges) > 1)
    for judge in bar:  # one that fails takes no other's scores with it
        try:
            judge.check()
            rows = rows_for(judge, "image" in judge.required_columns)
            try:
                made = _scored(judge, texts, columns, rows, bootstrap, seed)
            except BadImage:  # once: all that do not open are found, and the others scored
                if not bad:
                    _, bad = without_bad(columns["image"].dataset)
                    names = {image_id for image_id, _ in bad}
                    unread = {row for row, image_id in enumerate(ids) if image_id in names}
                if not (rows := rows_for(judge, True)):
                    failed[judge.name] = (
                        f"not one of the {len(ids) - len(lacking - unread)} images can be opened; the first, "
                        f"{': '.join(bad[0])}"
                    )
                    continue
                made = _scored(judge, texts, columns, rows, bootstrap, seed)
        except CaptuneError as error:  # also an encoder, a captioner or a corpus that cannot be used
            failed[judge.name] = str(error)
            continue
        except Exception as error:  # a bug, or the machine's memory
            logger.error("scorer %s failed", judge.name, exc_info=True)
            failed[judge.name] = f"{type(error).__name__}: {first_line(error)}"
            continue
        scored[judge.name] = rows
        for name, result in made.items():
            results[name][judge.name] = result
    if failed and not any(results.values()):
        raise EvaluationError("no scorer could work. " + " ".join(f"{name}: {why}" for name, why in failed.items()))

    reports: list[dict[str, Any]] = []
    for name, own in results.items():
        scores = {spec: as_dict(result) for spec, result in own.items()}
        reports.append({"captions": name, "captioned": len(systems[name]), "scores": scores})
    if paired:
        first, *others = results.values()
        done = [judge for judge in judges if judge.name in first]
        for report, own in zip(reports[1:], others, strict=True):
            report["paired"] = {j.name: _test(own[j.name].rows, first[j.name].rows, j, bootstrap, seed) for j in done}
        _correct(reports[1:])
    about = {"matched": len(ids), "expected": len(expected), "references": references, "images": images}
    unscored = {"skipped": skipped, "failed": failed}
    warnings = _warnings(systems, len(ids), expected)
    shown = columns["image"].dataset.column_names if "image" in columns else ()
    warnings += _blind(next(iter(results.values())), images or references, shown)
    warnings += _truncated(results)
    warnings += _among_references(texts, columns.get("references", ()), references)
    if bad:
        who = ", ".join(name for name, rows in scored.items() if unread.isdisjoint(rows))
        left = len(ids) - len(unread)
        left_out = f"; {who} are of the other {left}" if who else ""
        warnings.append(f"{len(bad)} of the {len(ids)} images cannot be opened{left_out}")
    unreferenced = [ids[row] for row in sorted(lacking)]
    if who := ", ".join(judge.name for judge in judges if lacking and "references" in judge.required_columns):
        named = ", ".join(unreferenced[:NAMED]) + f" and {len(lacking) - NAMED} more" * (len(lacking) > NAMED)
        warnings.append(
            f"{len(lacking)} of the {len(ids)} captioned images have no reference in {references} ({named}); {who} are "
            f"of the other {len(ids) - len(lacking)}"
        )
    unopened = {"bad_images": dict(bad), "unreferenced": unreferenced}
    whole = {**reports[0], **about, "warnings": warnings, **unscored, **unopened, "others": reports[1:]}
    if per_image:
        whole["per_image"] = _per_image(ids, texts, results, scored)
    return Results(whole, records(whole))


def _per_image(
    ids: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    results: Mapping[str, Mapping[str, Result]],
    scored: Mapping[str, Sequence[int]],
) -> list[dict[str, Any]]:
    """Every caption of every file with the score that each scorer gives it by itself."""
    rows: list[dict[str, Any]] = []
    for name, captions in texts.items():
        own: list[dict[str, Any]] = [
            {"image_id": i, "file": name, "caption": text} for i, text in zip(ids, captions, strict=True)
        ]
        for spec, result in results[name].items():
            for row in own:
                row[spec] = None
            for place, score in zip(scored[spec], result.per_caption, strict=True):
                own[place][spec] = float(score) if math.isfinite(score) else None
        rows += own
    return rows


def _blind(results: Mapping[str, Result], pictures: str | None, shown: Sequence[str]) -> list[str]:
    """Say which scorers look at images through a model that has seen another source's alone."""
    if pictures is None:
        return []
    return [said for spec, result in results.items() if (said := blind(spec, result.signature, pictures, shown))]


def _truncated(results: Mapping[str, Mapping[str, Result]]) -> list[str]:
    """Say which scorers read the beginnings of some captions alone."""
    return [
        f"{round(result.truncated * result.n)} of the {result.n} captions in {name} are too long for {spec}, which "
        "judges their beginnings"
        for name, own in results.items()
        for spec, result in own.items()
        if result.truncated
    ]


def _scored(
    judge: Scorer,
    texts: Mapping[str, Sequence[str]],
    columns: Mapping[str, Any],
    rows: Sequence[int],
    bootstrap: int,
    seed: int,
) -> dict[str, Result]:
    """Every file's result by one scorer, on some rows."""
    if len(rows) < len(columns["image_id"]):
        texts = {name: [captions[row] for row in rows] for name, captions in texts.items()}
        columns = {
            name: LazyImages(column.dataset.select(rows)) if name == "image" else [column[row] for row in rows]
            for name, column in columns.items()
        }
    made = {
        name: evaluate(text, columns, [judge], bootstrap=bootstrap, seed=seed)[judge.name]
        for name, text in texts.items()
    }
    if nothing := next((name for name, result in made.items() if math.isnan(result.value)), None):
        raise EvaluationError(f"its figure of {nothing} is no number: none of the {len(rows)} captions can be judged")
    return made


def available_scorers(have: set[str], images: str | None, skipped: dict[str, str], cache: Cache | None) -> list[Scorer]:
    """Every scorer whose needs the data meet and whose models are here; why not goes into `skipped`.

    Args:
        have: the columns that are there.
        images: a source, which may offer more columns; None: no images.
        skipped: {scorer: why not}.
        cache: where the rows of costly scorers are kept.
    """
    have = set(have)
    if images is not None:
        if offered := scheme_of(images).truth_column:
            have.add(offered)
        try:
            load_images(images, limit=1)
            have.add("image")
        except SourceError as error:
            skipped["image"] = f"the images are not there: {error}"
    chosen = []
    for name in SCORERS:
        try:
            judge = load_scorer(name, cache=cache)
            missing = [need for need in judge.required_columns if need not in have]
            if missing:
                other = f"; without, a model says it, as in {judge.usage!r}" * bool({"scene", "objects"} & set(missing))
                raise MissingColumn(f"needs {' and '.join(missing)}{other if judge.usage else ''}")
            if judge.grouped:
                raise ScorerError("compares the captions of an image with each other, and a caption file has one")
            judge.check()
        except (ValueError, ScorerError) as error:
            skipped[name] = str(error)
            continue
        chosen.append(judge)
    return chosen


def _columns(
    systems: Mapping[str, Mapping[str, str]],
    judges: Sequence[Scorer],
    references: str | None,
    images: str | None,
    places: Places | None,
) -> tuple[list[str], dict[str, Any], list[str]]:
    """(ids to score, the columns that the scorers need for them, the ids that were expected)."""
    needed = {need: judge.name for judge in judges for need in judge.required_columns}
    pictures = images or references
    if "references" in needed and references is None:
        raise EvaluationError(
            f"scorer {needed['references']!r} needs references: say where they are, --references SOURCE"
        )
    for need in ("image", "scene"):
        if need in needed and pictures is None:
            raise EvaluationError(f"scorer {needed[need]!r} needs the {need} of each caption: add --images SOURCE")
    if "scene" in needed and scheme_of(pictures).truth_column != "scene":
        schemes = [name for name, scheme in SOURCES.items() if scheme.truth_column == "scene"]
        usage = next(judge.usage for judge in judges if judge.name == needed["scene"])
        raise EvaluationError(
            f"scorer {needed['scene']!r} needs the scene behind each image, which only sources of "
            f"{' and '.join(schemes)} know, not {pictures}{f'; name a model, as in {usage!r}' if usage else ''}"
        )

    by_id: dict[str, Mapping[str, Any]] = {}
    if references is not None:
        own = load_references(references)
        more = [i for i in next(iter(systems.values())) if i not in own] if images is not None else []
        # of the images that are named by themselves one may have no reference, and be scored where none is needed
        by_id["references"] = {**own, **{i: [] for i in more if places is not None and i in places.files}}
    if "scene" in needed:
        by_id["scene"] = load_scenes(str(pictures))
    if "objects" in needed:
        by_id["objects"] = _objects(pictures, needed["objects"], judges)
    dataset = load_images(str(pictures)) if "image" in needed else None
    if dataset is not None:
        if not isinstance(dataset, Dataset):
            raise EvaluationError(f"{pictures} streams; evaluation needs a source that can be read by id")
        by_id["image"] = {image_id: row for row, image_id in enumerate(column(dataset, "image_id"))}

    expected = list(next(iter(by_id.values()), next(iter(systems.values()))))
    ids = expected
    for known in (*systems.values(), *by_id.values()):
        ids = match(known, ids)
    columns: dict[str, Any] = {name: [known[i] for i in ids] for name, known in by_id.items()}
    columns["image_id"] = ids
    if dataset is not None:
        columns["image"] = LazyImages(dataset.select(columns["image"]))
    if "references" in needed and not any(columns["references"]):
        raise EvaluationError(
            f"none of the {len(ids)} captioned images, such as {ids[0]!r}, has a reference in {references}"
            f"{captions_in(str(references))}; scorers that need none are scored without --references, as health is"
        )
    return ids, columns, expected


def _objects(pictures: str | None, name: str, judges: Sequence[Scorer]) -> dict[str, Any]:
    """{image_id: objects} of a source that has such a column."""
    dataset = None if pictures is None else load_images(pictures, decode=False)
    if dataset is None or "objects" not in (dataset.column_names or []):
        usage = next(judge.usage for judge in judges if judge.name == name)
        lacking = f"; {pictures} has none" if pictures else ""
        raise EvaluationError(
            f"scorer {name!r} needs the objects of each image: name a detector, as in {usage!r}, a file of captune "
            f"detect, {name}:?detections=FILE, or a source with a column objects{lacking}"
        )
    return dict(zip(column(dataset, "image_id"), column(dataset, "objects"), strict=True))


def _warnings(systems: Mapping[str, Mapping[str, str]], matched: int, expected: Sequence[str]) -> list[str]:
    said = []
    if matched < len(expected):
        lacking = {name: sum(i not in captions for i in expected) for name, captions in systems.items()}
        where = ", ".join(f"{number} in {name}" for name, number in lacking.items() if number)
        said.append(
            f"only {matched} of the {len(expected)} reference images are scored: the others have no caption "
            f"({where or 'or no image'})"
        )
    known = set(expected)
    for name, captions in systems.items():
        if strange := sum(i not in known for i in captions):
            said.append(f"{strange} of the {len(captions)} captions in {name} are not scored: "
                        "no reference has their image_id")  # fmt: skip
    return said


def _among_references(
    texts: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], source: Any
) -> list[str]:
    """A sentence for each file whose captions all stand among their references, as sidecars of captune's do."""
    judged = [row for row, own in enumerate(references) if own]
    return [
        f"all {len(judged)} captions of {name} stand word for word among their references: does {source} hold these "
        "very captions, written beside the images?"
        for name, captions in texts.items()
        if len(judged) > 1 and all(captions[row].strip() in map(str.strip, references[row]) for row in judged)
    ]


def _test(a: np.ndarray, b: np.ndarray, judge: Scorer, resamples: int, seed: int) -> dict[str, Any]:
    """System a against system b as plain data: {figure: {difference, interval, p_value}}; 0 resamples are no test."""
    test = paired(a, b, judge, resamples=max(resamples, 1), seed=seed)
    return {
        key: {
            "difference": float(difference),
            "interval": [float(x) for x in test.interval[key]] if resamples and key in test.interval else None,
            "p_value": float(test.p_value[key]) if resamples and key in test.p_value else None,
        }
        for key, difference in test.difference.items()
    }


def _correct(reports: Sequence[Mapping[str, Any]]) -> None:
    """Adds p_holm to every test: many figures and systems were compared at once, so some differ by chance."""
    tests = [test for report in reports for own in report["paired"].values() for test in own.values()]
    tests = [test for test in tests if test["p_value"] is not None]
    for test, corrected in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"] = corrected


def as_dict(result: Result) -> dict[str, Any]:
    """A scorer's `Result` as plain data; value is its primary figure, the first of values."""
    values = {key: float(value) for key, value in result.values.items()}
    return {
        "value": float(result.value),
        "values": values,
        "interval": {key: [float(low), float(high)] for key, (low, high) in result.interval.items()},
        "signature": result.signature,
        "n": result.n,
    }
