"""Scorers against human judgements: the work behind ``captune correlate``, usable without the command line.

Every caption that was judged is scored once, then each judgement has its caption's score. What a scorer takes from the
references of its corpus (CIDEr's document frequencies, BERTScore's idf) is taken from the reference sets of all
judgements, each judgement counting once: the published scripts give pycocoevalcap one row for each judgement.

A scorer whose figure is better when lower is negated, so that every correlation reads the same way.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from captune.data import load_images, without_bad
from captune.data.columns import LazyImages, column
from captune.data.judgements import Judgements, read_judgements
from captune.data.schemes import scheme_of
from captune.errors import BadImage, CaptuneError, EvaluationError, ScorerError, first_line, redact
from captune.evaluation.cache import Cache
from captune.evaluation.correlation import Figures, difference, fought, rated
from captune.evaluation.run import available_scorers
from captune.evaluation.statistics import holm
from captune.evaluation.table import read_rows
from captune.scorers import Scorer, load_scorer
from captune.scorers.registry import direction, label
from captune.utils.files import parse_yaml, read_file, read_json
from captune.utils.progress import Bar
from captune.utils.wording import counted

DEFAULT_SCORERS = ("bleu", "rouge", "cider", "length")
FIGURES: Mapping[str, str] = {
    "tau_b": "tau-b",
    "tau_c": "tau-c",
    "spearman": "Spearman",
    "pairwise_accuracy": "right pairs",
    "agreement": "agreement",
}

logger = logging.getLogger(__name__)


def correlate(
    judgements: str | Path | Judgements,
    *,
    scorers: Sequence[str] = DEFAULT_SCORERS,
    captions: Sequence[str | Path] = (),
    images: str | None = None,
    published: str | Path | None = "auto",
    primary: str | None = None,
    every_figure: bool = False,
    max_references: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """How well scorers go with human judgements.

    Args:
        judgements: a file in one of the formats of `captune.data.judgements`, or what was read from it.
        scorers: specs, or "all": every scorer that the data and this machine can serve; the others are `skipped`.
        captions: captions files, where the judgements name captions and references by image.
        images: a source with the images, for scorers that look at them.
        published: a file of published figures; "auto": those that come with captune for the format; None: none.
        primary: the figure that ranks the scorers and is tested; None: the one that papers print for the format.
        every_figure: a row for each figure of a scorer, such as BLEU-1, not only for its primary one.
        max_references: see `read_judgements`.
        bootstrap: resamples of images for intervals and tests; 0: none.
        seed: of the resampling.
        cache: a folder where the rows of costly scorers are kept.

    Returns:
        judgements (the path), format, kind (ratings or battles), primary, protocol, read, used, captions, images,
        left_out {reason: judgements}, problems, warnings; scores {row: {scorer, label, values {figure: value},
        interval {figure: [low, high]}, categories {name: {value, n}}, n, negated, signature, seconds}}, the best
        first; tests, a list of {a, b, figure, difference, interval, p_value, p_holm} of every two primary rows,
        neighbours first; published, a list of {label, scorer, figure, value, source}; skipped and failed {scorer: why},
        bad_images {image_id: why}.
        Only numbers, texts, lists, dicts and None, which is a figure that is undefined (all scores are equal).

    Raises:
        SourceError: for judgements that cannot be read.
        EvaluationError: where no scorer can work on them.
    """
    if isinstance(judgements, Judgements):
        found = judgements
    else:
        found = read_judgements(judgements, captions=captions, max_references=max_references, seed=seed)
    kept = Cache(cache) if cache is not None else None
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    if list(scorers) == ["all"]:
        have = {"image_id"} | ({"references"} if any(own.references for own in found.candidates) else set())
        judges = available_scorers(have, images, skipped, kept)
    else:
        judges = [load_scorer(spec, cache=kept) for spec in dict.fromkeys(scorers)]
    if not judges:
        raise EvaluationError("there is no scorer to compare with the judgements")
    if any("references" in judge.required_columns for judge in judges):
        before, found = found, found.without_references()
        if not found.used:
            raise EvaluationError(
                f"{before.path} names no references, and {judges[0].name!r} needs them: say where they are, "
                "--captions FILE, or choose scorers that need none"
            )
    primary = _primary(found, primary)
    expected = published_figures(published, found.format)

    columns, bad = _columns(found, judges, images)
    per_judgement = _expanded(found)
    figures: dict[str, Figures] = {}
    scores: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}
    for judge in Bar(judges, desc="scorers", leave=False, show=len(judges) > 1):
        start = time.perf_counter()
        try:
            judge.check()
            own = _scored(judge, found, columns, bad, every_figure)
        except CaptuneError as error:
            failed[judge.name] = str(error)
            continue
        except Exception as error:  # a bug, or the machine's memory, costs no other scorer's figures
            logger.error("scorer %s failed", judge.name, exc_info=True)
            failed[judge.name] = f"{type(error).__name__}: {first_line(error)}"
            continue
        finally:
            if hasattr(judge, "close"):
                judge.close()
        seconds = time.perf_counter() - start
        for key, (figure, values, negated) in own.items():
            arrays[key] = values
            figures[key] = per_judgement(values, bootstrap, seed)
            scores[key] = {
                "scorer": judge.name,
                "label": label(judge, figure),
                **_as_dict(figures[key]),
                "categories": _categories(found, values),
                "negated": negated,
                "signature": redact(judge.signature),
                "seconds": round(seconds, 2),
            }
    if not scores:
        raise EvaluationError("no scorer could work. " + " ".join(f"{name}: {why}" for name, why in failed.items()))

    def rank(key: str) -> float:
        value = scores[key]["values"][primary]
        return -math.inf if value is None else value

    order = sorted(scores, key=rank, reverse=True)
    mains = [key for key in order if key == scores[key]["scorer"]]
    tests = _tests(mains, figures, arrays, per_judgement, primary, bootstrap, seed)
    return {
        "judgements": found.path,
        "format": found.format,
        "kind": "battles" if found.battles else "ratings",
        "primary": primary,
        "protocol": [*found.protocol, *_statistics(found, bootstrap)],
        "read": found.read,
        "used": found.used,
        "captions": len(found.candidates),
        "images": len({own.image_id for own in found.candidates}),
        "left_out": dict(found.left_out),
        "problems": found.problems,
        "warnings": _warnings(found, scores, bad),
        "scores": {key: scores[key] for key in order},
        "tests": tests,
        "published": [row for row in expected if row["figure"] == primary],
        "skipped": skipped,
        "failed": failed,
        "bad_images": bad,
    }


def _primary(found: Judgements, asked: str | None) -> str:
    known = ("pairwise_accuracy", "agreement") if found.battles else ("tau_b", "tau_c", "spearman", "pairwise_accuracy")
    chosen = asked or found.primary
    if chosen not in known:
        raise EvaluationError(f"{found.path} gives the figures {', '.join(known)}, not {chosen!r}")
    return chosen


# -------------------------------------------------------------------- scoring


def _columns(found: Judgements, judges: Sequence[Scorer], images: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """What scorers read, an entry for each candidate; `image` holds (dataset, its row or -1 for each candidate)."""
    columns: dict[str, Any] = {"image_id": [own.image_id for own in found.candidates]}
    if all(own.references for own in found.candidates):
        columns["references"] = [list(own.references) for own in found.candidates]
    needed = {need: judge.name for judge in judges for need in judge.required_columns}
    truth = scheme_of(images).truth_column if images is not None else ""
    for need, name in needed.items():
        if need not in {*columns, "image", truth}:
            raise EvaluationError(f"scorer {name!r} needs {need}, which these judgements do not come with")
        if need in ("image", truth) and images is None:
            raise EvaluationError(f"scorer {name!r} needs the {need} of each caption: add --images SOURCE")
    if images is None:
        return columns, {}
    dataset = load_images(images)
    if not isinstance(dataset, Dataset):
        raise EvaluationError(f"{images} streams; judgements need a source that can be read by id")
    ids = column(dataset, "image_id")
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    names = Counter(image_id.rpartition("/")[2] for image_id in row_of)
    for image_id, row in list(row_of.items()):  # photos/x.jpg is x.jpg to whoever judged it
        row_of.setdefault(name := image_id.rpartition("/")[2], row if names[name] == 1 else -1)
    rows = []
    for i in columns["image_id"]:
        row = row_of.get(i, -1)
        rows.append(row if row >= 0 else row_of.get(found.file_names.get(i, ""), -1))
    if all(row < 0 for row in rows):
        raise EvaluationError(
            f"none of the judged images, such as {columns['image_id'][0]!r}, is in {images}, whose ids are "
            f"like {ids[0]!r}"
        )
    columns["image"] = (dataset, np.array(rows))
    if truth in needed:
        truths = column(dataset, truth)
        columns[truth] = [truths[row] if row >= 0 else None for row in rows]
    lacking = [i for i, row in zip(columns["image_id"], rows, strict=True) if row < 0]
    several = {i for i in lacking if max(names[i], names[found.file_names.get(i, "")]) > 1}
    return columns, {i: "several images have this name" if i in several else "not in the images" for i in lacking}


def _scored(
    judge: Scorer, found: Judgements, columns: Mapping[str, Any], bad: dict[str, str], every: bool
) -> dict[str, tuple[str, np.ndarray, bool]]:
    """{row: (figure, a score for each candidate or nan, whether it was negated)}."""
    _fit(judge, found)
    uses = {*judge.required_columns, *judge.optional_columns}
    looks = "image" in columns and bool(uses & {*columns} - {"image_id", "references"})
    texts = [own.caption for own in found.candidates]
    while True:
        chosen = [i for i, own in enumerate(found.candidates) if not (looks and own.image_id in bad)]
        if not chosen:
            raise ScorerError("not one of the judged captions has an image that can be opened")
        own: dict[str, Any] = {
            name: [entries[i] for i in chosen] for name, entries in columns.items() if name != "image"
        }
        if looks:
            dataset, rows = columns["image"]
            own["image"] = LazyImages(dataset.select(rows[chosen].tolist()))
        try:
            measured = judge.measure([texts[i] for i in chosen], own)
            break
        except BadImage:
            before = len(bad)
            dataset, rows = columns["image"]
            there = sorted({int(row) for row in rows if row >= 0})
            unread = dict(without_bad(dataset.select(there))[1])
            unread |= {image_id.rpartition("/")[2]: why for image_id, why in unread.items()}
            for i in columns["image_id"]:
                if (why := unread.get(i, unread.get(found.file_names.get(i, "")))) is not None:
                    bad.setdefault(i, why)
            if len(bad) == before:  # it opens now, or is known by no id
                raise
    primary = type(judge).primary or judge.name
    scores = {judge.name: (primary, judge.per_caption(measured))}
    if every and judge.is_additive:
        given, nothing = judge.from_totals(measured, 1), np.isnan(scores[judge.name][1])
        for figure in list(given)[1:]:
            if figure not in judge.no_interval:  # where there is nothing to compare with, all its figures are missing
                scores[f"{judge.name} {figure}"] = (figure, np.where(nothing, np.nan, given[figure]))
    made = {}
    for key, (figure, values) in scores.items():
        whole = np.full(len(found.candidates), np.nan)
        negated = direction(judge, None if key == judge.name else figure) is False
        whole[chosen] = -np.asarray(values, dtype=np.float64) if negated else values
        whole[~np.isfinite(whole)] = np.nan
        made[key] = (figure, whole, negated)
    return made


def _fit(judge: Scorer, found: Judgements) -> None:
    """Freeze what depends on the other captions' references, by the judgements."""
    for part in [part for part, _ in judge.parts] if hasattr(judge, "parts") else [judge]:
        if part.needs_fit:
            places = [c for c, _ in found.ratings] or [c for own in found.battles for c in (own.first, own.second)]
            part.fit([list(found.candidates[c].references) for c in places])


def _expanded(found: Judgements) -> Any:
    """A function (scores of the candidates, resamples, seed) -> Figures of the judgements."""
    numbers: dict[str, int] = {}
    image = np.array([numbers.setdefault(own.image_id, len(numbers)) for own in found.candidates])
    if found.battles:
        first, second, winner = np.array([own[:3] for own in found.battles]).T

        def battles(scores: np.ndarray, resamples: int, seed: int) -> Figures:
            return fought(image[first], winner, scores[first] - scores[second], resamples=resamples, seed=seed)

        return battles
    caption = np.array([c for c, _ in found.ratings])
    ratings = np.array([rating for _, rating in found.ratings])

    def grades(scores: np.ndarray, resamples: int, seed: int) -> Figures:
        return rated(image[caption], caption, ratings, scores, resamples=resamples, seed=seed)

    return grades


def _as_dict(figures: Figures) -> dict[str, Any]:
    values = {name: value if math.isfinite(value) else None for name, value in figures.values.items()}
    interval = {
        name: [float(low), float(high)] for name, (low, high) in figures.interval().items() if values[name] is not None
    }
    return {"values": values, "interval": interval, "n": figures.n}


def _categories(found: Judgements, scores: np.ndarray) -> dict[str, Any]:
    """{category: {the share of right pairs, of how many}} of battles that have one."""
    right: dict[str, list[float]] = {}
    for own in found.battles:
        gap = scores[own.first] - scores[own.second]
        if own.category and own.winner and math.isfinite(gap):
            right.setdefault(own.category, []).append((own.winner * np.sign(gap) + 1) / 2)
    return {name: {"value": float(np.mean(own)), "n": len(own)} for name, own in sorted(right.items())}


def _tests(
    order: Sequence[str],
    figures: Mapping[str, Figures],
    arrays: Mapping[str, np.ndarray],
    again: Any,
    primary: str,
    bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every two scorers' primary figures on the judgements that both have a score for, Holm-corrected together."""
    tests = []
    known: dict[tuple[str, bytes], Figures] = {}

    def on(key: str, lacking: np.ndarray) -> Figures:
        """The figures of a scorer without the captions that another one has no score for."""
        if (np.isnan(arrays[key]) == lacking).all():
            return figures[key]
        kept = (key, lacking.tobytes())
        if kept not in known:
            known[kept] = again(np.where(lacking, np.nan, arrays[key]), bootstrap, seed)
        return known[kept]

    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]] if bootstrap else []
    pairs.sort(key=lambda pair: order.index(pair[1]) - order.index(pair[0]))  # neighbours in the ranking first
    for a, b in pairs:
        lacking = np.isnan(arrays[a]) | np.isnan(arrays[b])
        test = difference(on(a, lacking), on(b, lacking), primary)
        if test["p_value"] is None or not math.isfinite(test["difference"]):
            continue
        tests.append({"a": a, "b": b, "figure": primary, **test, "interval": [float(x) for x in test["interval"]]})
    for test, corrected in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def _statistics(found: Judgements, bootstrap: int) -> list[str]:
    said = []
    if found.battles:
        said.append("right pairs: of the battles that people decided, those whose winner scores higher (equal: half)")
    else:
        said.append("right pairs: of two captions of one image, the one with the higher mean rating scores higher")
    if bootstrap:
        said.append(f"95% intervals and tests: {bootstrap} resamples of images; p_holm is corrected for all tests")
    return said


def _warnings(found: Judgements, scores: Mapping[str, Mapping[str, Any]], bad: Mapping[str, str]) -> list[str]:
    said = []
    if bad:
        said.append(f"{len(bad)} images are missing or cannot be opened; scorers that look at them leave these out")
    for key, own in scores.items():
        if own["n"] < found.used:
            said.append(f"{key} has a score for {own['n']} of the {found.used} judgements; it is compared on those")
        if own["negated"]:
            said.append(f"{key} is negated: a lower figure is better")
        undefined = [FIGURES[name] for name, value in own["values"].items() if value is None]
        if undefined:
            said.append(
                f"{key} has no {', '.join(undefined)}: all its scores are equal, or there is nothing to compare"
            )
    return said


# ------------------------------------------------------------------ published


def published_figures(where: str | Path | None, format: str) -> list[dict[str, Any]]:
    """Read published figures.

    Args:
        where: a YAML, JSON or CSV file with rows of label, scorer (optional: the spec that computes the same), figure,
            value (as printed, x 100) and source; "auto": the file that comes with captune for the format.
        format: of the judgements.

    Raises:
        EvaluationError: for a row without one of these, or a value that is no number from -100 to 100.
    """
    if where is None:
        return []
    if str(where) == "auto":
        shipped = resources.files("captune.evaluation") / "published" / f"{format}.yaml"
        if not shipped.is_file():
            return []
        content: Any = parse_yaml(shipped.read_text(encoding="utf-8"), f"{format}.yaml")
    else:
        path = Path(where).expanduser()
        if path.suffix.lower() == ".csv":
            content = read_rows(path)
        elif path.suffix.lower() == ".json":
            content = read_json(path, error=EvaluationError)
        else:
            content = parse_yaml(read_file(path, error=EvaluationError), str(path), error=EvaluationError)
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise EvaluationError(f"{where}: expected a list of rows with label, figure, value and source")
    return [_published_row(row, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]


def _published_row(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise EvaluationError(f"{place}: expected label, figure, value and source, found {json.dumps(row)[:80]}")
    figure, scorer = row.get("figure"), str(row.get("scorer") or "").strip()
    name = str(row.get("label") or scorer).strip()
    if figure not in FIGURES:
        raise EvaluationError(f"{place}: the figure is {figure!r}; known: {', '.join(FIGURES)}")
    if not name or not str(row.get("source") or "").strip():
        raise EvaluationError(f"{place}: needs a label (or a scorer) and a source")
    try:
        value = float(row["value"])
    except (KeyError, TypeError, ValueError):
        raise EvaluationError(f"{place}: 'value' is {row.get('value')!r}; expected a number, x 100") from None
    if not -100 <= value <= 100:
        raise EvaluationError(f"{place}: 'value' is {value}; expected a figure x 100, from -100 to 100")
    return {"label": name, "scorer": scorer, "figure": figure, "value": value, "source": str(row["source"]).strip()}


# ---------------------------------------------------------------------- table


def ranking(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result with the published ones at their places, the best first.

    Returns:
        Rows {key, label, own (the entry of scores, or None), published (x 100, or None), source, test (against the next
        own row, or None)}.
    """
    primary = result["primary"]
    printed = {row["scorer"]: row for row in result["published"] if row["scorer"]}
    keys = list(result["scores"])
    neighbour = {(test["a"], test["b"]): test for test in result["tests"]}
    rows: list[dict[str, Any]] = []
    for place, key in enumerate(keys):
        after = next((other for other in keys[place + 1 :] if other == result["scores"][other]["scorer"]), None)
        paper = printed.pop(key, None)
        rows.append(
            {
                "key": key,
                "label": result["scores"][key]["label"],
                "own": result["scores"][key],
                "published": paper["value"] if paper else None,
                "source": paper["source"] if paper else "",
                "test": neighbour.get((key, after)) if after else None,
            }
        )
    for paper in result["published"]:
        if paper["scorer"] in result["scores"]:
            continue
        rows.append({"key": paper["label"], "label": paper["label"], "own": None, "published": paper["value"],
                     "source": paper["source"], "test": None})  # fmt: skip

    def height(row: Mapping[str, Any]) -> float:
        if row["own"] is None:
            return float(row["published"])
        value = row["own"]["values"][primary]
        return -math.inf if value is None else 100 * value

    return sorted(rows, key=height, reverse=True)


def table(result: Mapping[str, Any]) -> str:
    """The result of `correlate` as aligned text, figures x 100.

    Args:
        result: the report.
    """
    primary = result["primary"]
    names = [primary, *(name for name in next(iter(result["scores"].values()))["values"] if name != primary)]
    papers = bool(result["published"])
    head = ["", *(FIGURES[name] for name in names), *["published"] * papers, "p to the next", "p_holm"]
    lines = [head]
    for row in ranking(result):
        own, test = row["own"], row["test"]
        shown = "" if row["published"] is None else f"{row['published']:.1f}"
        if own is None:
            cells = [""] * len(names)
        else:
            cells = [_cell(own, name, name == primary) for name in names]
        tested = [_p(test["p_value"]), _p(test["p_holm"])] if test else ["", ""]
        name = row["key"] if own is not None else f"({row['label']})"
        lines.append([name, *cells, *[shown] * papers, *tested])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += ["", f"{result['used']:,} of {result['read']:,} judgements, {counted(result['captions'], 'caption')} of "
             f"{counted(result['images'], 'image')}; figures x 100"]  # fmt: skip
    text += [f"left out: {counted(count, 'judgement')}: {reason}" for reason, count in result["left_out"].items()]
    text += [f"- {sentence}" for sentence in result["protocol"]]
    if papers:
        text += [f"published: {source}" for source in dict.fromkeys(row["source"] for row in result["published"])]
        text += ["(in brackets: published rows of systems that were not run here)"]
    categories = {name for own in result["scores"].values() for name in own["categories"]}
    for category in sorted(categories):
        own = {key: score["categories"].get(category) for key, score in result["scores"].items()}
        figures = ", ".join(f"{key} {100 * part['value']:.1f}" for key, part in own.items() if part)
        text.append(f"right pairs, {category}: {figures}")
    text += ["", *(f"{key}: {own['signature']}" for key, own in result["scores"].items() if key == own["scorer"])]
    text += ["", *(f"not scored, {spec}: {why}" for spec, why in result["skipped"].items())] * bool(result["skipped"])
    return "\n".join(text)


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _cell(own: Mapping[str, Any], name: str, whole: bool) -> str:
    value, interval = own["values"][name], own["interval"].get(name)
    if value is None:
        return "-"
    text = f"{100 * value:.2f}" if whole else f"{100 * value:.1f}"
    return text + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if whole and interval else "")
