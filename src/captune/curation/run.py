"""Run the steps of a curation: each whole or not at all, every caption accounted for.

    <output>/captions.jsonl           the curated set, or .parquet, .tar and the like; see `captune.curation.outputs`
             curation.json            what was done: settings, counts by verdict and reason
             decisions/1-filter.parquet   a row for each caption that the step decided about
             .work/                   while it is made: the set after each step, its decisions, and costly parts

A killed run resumes where it was and ends with the same bytes; one whose later steps were corrected keeps the steps
before them. What decides the result (source, limit, steps, and the state of the files that they name) is kept in
``.work/settings.json`` and in ``curation.json``; a run with another is refused. What `overwrite` replaces stays until
the new set is written.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captune.curation.base import (
    CHANGE,
    DROP,
    KEEP,
    MOVE,
    SPLIT,
    VERDICTS,
    Captions,
    Operation,
    Verdicts,
    Work,
    as_settings,
)
from captune.curation.outputs import NAMES, check_format, write_set
from captune.curation.reading import AT_ONCE, SCHEMA, read_source, table_writer, write_table
from captune.curation.registry import Step, read_steps
from captune.curation.state import state_of
from captune.data.naming import absolute
from captune.errors import CurationError, UsageError, redact
from captune.utils.files import lock_folder, output_path, parse_json, remove, remove_leftovers, replace_file, replacing
from captune.utils.pool import Pool
from captune.utils.skipped import Told, skip

logger = logging.getLogger(__name__)
KIND, FORMAT = "curation", 1
REPORT, DECISIONS, WORK = "curation.json", "decisions", ".work"
WRITING = "writing"  # a file of the work folder: the set that was there is being replaced
OVERWRITTEN = Told("columns of the set were written over by a step; its setting `column` names another")
DECISION = pa.schema(
    {
        "image_id": pa.string(),
        "number": pa.int64(),
        "verdict": pa.dictionary(pa.int8(), pa.string()),
        "reason": pa.dictionary(pa.int32(), pa.string()),
        "score": pa.float64(),
        "other": pa.string(),
        "before": pa.large_string(),
        "after": pa.list_(pa.large_string()),
        "moved_to": pa.string(),
    }
)


def curate(
    source: str,
    output: str | os.PathLike[str],
    steps: Sequence[Step | Mapping[str, Any]] | str | Path,
    *,
    limit: int | None = None,
    format: str | None = None,
    engine: str = "process",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Curate a captioned set; see the module for what is written.

    Args:
        source: images with captions, as written; captions without images, where no step looks at one.
        output: the folder.
        steps: a YAML file, or a list; see `captune.curation.registry.read_steps`.
        limit: the first so many images only.
        format: of the curated set; default: jsonl, and parquet where images are not files.
        engine: process, or ray: the workers are Ray's, on this machine or on a cluster; the result is the same.
        workers: processes that share scoring, encoding and captioning; default: 1, and with Ray one for each GPU,
            else 2.
        address: of a Ray cluster, ``host:6379`` or ``auto``; default: this machine.
        device: where models run; default: the best there is.
        overwrite: replace another curation in the folder.
        progress: show bars.

    Returns:
        What `curation.json` holds.

    Raises:
        UsageError: unknown steps or settings, a folder that holds another curation, or Ray is not there.
        CurationError: a set that a step cannot be applied to, or of which nothing is left.
    """
    chosen = read_steps(steps)
    check_format(format)
    pool = Pool(workers, engine, address, device)
    folder = output_path(output, what="curated sets", folder=True)
    settings: dict[str, Any] = {
        "source": redact(absolute(source)),
        "limit": limit,
        "steps": [{name: as_settings(operation)} for name, operation in chosen],
    }
    settings["state"] = state_of(settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    if lock is None:
        raise UsageError(f"another process is curating into {folder}: wait for it, or name another folder")
    try:
        done = _begin(folder, settings, overwrite, format)
        if done is not None:
            logger.warning("%s is done already; nothing was made again", folder)
            _say_left_out(done["in"])
            return done
        work = folder / WORK
        remove_leftovers(folder)
        captions, about = _source(source, limit, work)
        _say_left_out(about)
        records = []
        with pool:
            for number, (name, operation) in enumerate(chosen, start=1):
                own = Work(work / f"{number}-{name}", pool, device, progress)
                before = captions.source
                captions, record = _step(number, name, operation, captions, own)
                records.append(record)
                if captions.source != before:  # with images of its own
                    about.pop("no images", None)
        result = _write(captions, folder, format, about.get("no images"))
        report = {
            "kind": KIND,
            "format": FORMAT,
            **settings,
            "in": about,
            "records": records,
            "out": {"images": _images(captions), "captions": len(captions), **result},
        }
        replace_file(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        (work / WRITING).unlink()
        shutil.rmtree(work)
        return report
    finally:
        if lock >= 0:
            os.close(lock)


def _begin(folder: Path, settings: dict[str, Any], overwrite: bool, format: str | None) -> dict[str, Any] | None:
    """Make the folder ready; return the report of a curation that is done.

    Raises:
        UsageError: the folder holds a curation with other settings or of other files, or something else.
    """
    work, mark, report = folder / WORK, folder / WORK / "settings.json", folder / REPORT
    begun = parse_json(mark.read_bytes(), str(mark), error=UsageError) if mark.is_file() else None
    finished = parse_json(report.read_bytes(), str(report), error=UsageError) if report.is_file() else None
    if (work / WRITING).exists():
        finished = None  # it says of a set that is written over
    ours = finished is not None and begun is not None and not _refusal(finished, begun, steps=True)
    if begun is not None and not ours and not _refusal(begun, settings, steps=overwrite):
        _keep_steps(work, _same_steps(begun["steps"], settings["steps"]))
        replace_file(mark, json.dumps(settings))
        return None
    if not overwrite:
        refusal = "" if finished is None else _refusal(finished, settings, steps=True)
        if finished is not None and not refusal:
            out = finished["out"]["file"]
            there = (folder / out).exists()
            if not there or (format is not None and NAMES[format] != out):
                what = f"was written as {out}" if there else f"had {out}, which is not there any more"
                raise UsageError(f"{folder} holds this curation, which {what}: pass --overwrite to make it again")
            shutil.rmtree(work, ignore_errors=True)
            remove_leftovers(folder)
            return dict(finished)
        if begun is not None and not refusal:
            refusal = _refusal(begun, settings, steps=False) or _refusal(begun, settings, steps=True)
        if refusal:
            raise UsageError(
                f"{folder} holds a curation with {refusal}: name another folder, or pass --overwrite to replace it"
            )
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others and not (report.is_file() or work.is_dir()):
        raise UsageError(f"{folder} holds something else ({', '.join(others[:3])}): name another folder")
    if finished is None:
        report.unlink(missing_ok=True)
    work.mkdir(exist_ok=True)  # from here on the folder is a curation's, wherever this process is killed
    mark.unlink(missing_ok=True)
    for path in work.iterdir():
        remove(path)
    replace_file(mark, json.dumps(settings))
    return None


def _refusal(kept: Any, settings: Any, *, steps: bool) -> str:
    """What a curation that was begun differs in, with its steps or but for them; "" where it is the same."""
    for one in (kept, settings):
        if not isinstance(one, dict) or one.get("kind", KIND) != KIND or not isinstance(one.get("steps"), list):
            return "other settings (everything)"
    names = ("source", "limit", "steps") if steps else ("source", "limit")
    if changed := [key for key in names if kept.get(key) != settings.get(key)]:
        return f"other settings ({', '.join(changed)})"
    known, now = kept.get("state"), settings.get("state")
    if known is None or now is None:  # of a former version
        return ""
    if not steps:  # what the steps behind the first other one name does not matter
        known = {path: known[path] for path in known if path in now}
        now = {path: now[path] for path in known}
    other = sorted(path for path in {*known, *now} if known.get(path) != now.get(path))
    return f"other data ({', '.join(other)}: changed, or not there)" if other else ""


def _keep_steps(work: Path, number: int) -> None:
    """Remove what was made by the steps behind the first so many."""
    for path in [*work.iterdir(), *(work / DECISIONS).glob("*")]:
        own = re.match(r"(\d+)[-.]", path.name)
        if own and int(own[1]) > number:
            remove(path)


def _same_steps(old: list[Any], new: list[Any]) -> int:
    """How many first steps are the same."""
    same = 0
    for one, other in zip(old, new, strict=False):
        if one != other:
            break
        same += 1
    return same


def _write(captions: Captions, folder: Path, format: str | None, no_images: str | None) -> dict[str, Any]:
    """Write the set and its decisions in place of what the folder holds; return what `write_set` does.

    Whenever it is killed, `.work` is whole, and says that a `curation.json` that is there does not count.
    """
    work, writing = folder / WORK, folder / WORK / WRITING
    before = writing.exists()
    replace_file(writing, "")
    try:
        result = write_set(captions, folder, format, no_images)
    except BaseException:  # the set was not replaced
        if not before:
            writing.unlink()
        raise
    for name in NAMES.values():
        if name != result["file"]:
            remove(folder / name)
    remove(folder / DECISIONS)
    shutil.copytree(work / DECISIONS, folder / DECISIONS)
    return result


def _source(source: str, limit: int | None, work: Path) -> tuple[Captions, dict[str, Any]]:
    captions, images, about = work / "0.arrow", work / "images.arrow", work / "source.json"
    if not about.is_file():
        replace_file(about, json.dumps(read_source(source, limit, captions, images)))
    found = parse_json(about.read_bytes(), str(about), error=CurationError)
    return Captions.open(source, captions, images), found


def _say_left_out(about: Mapping[str, Any]) -> None:
    """Say what reading the source left out, in a run that resumes, too."""
    for reason, items in about.get("left out", {}).items():
        for item, count in items.items():
            skip(reason, item, count)


def _images(captions: Captions) -> int:
    return len(captions.starts) - 1


def _step(
    number: int, name: str, operation: Operation, captions: Captions, work: Work
) -> tuple[Captions, dict[str, Any]]:
    """Apply one step, unless it was applied; return what is left and the step's record."""
    path, mark = (work.folder.parent / f"{number}.{suffix}" for suffix in ("arrow", "json"))
    decisions = work.folder.parent / DECISIONS / f"{number}-{name}.parquet"
    if not mark.is_file():
        verdicts = operation.decide(captions, work)
        verdicts.check()
        for column in sorted(verdicts.columns.keys() & set(captions.columns)):
            skip(OVERWRITTEN, f"{column} (step {number}, {name})")
        record = _record(number, name, captions, verdicts)
        decisions.parent.mkdir(exist_ok=True)
        _write_decisions(captions, verdicts, decisions)
        images, fresh = _apply(captions, verdicts, path)
        kept = {"record": {**record, "images out": images}, "fresh": fresh, "images of": None}
        if verdicts.images is not None:
            write_table(pa.table({"image_id": verdicts.images.image_ids}), path.with_suffix(".images"))
            kept["images of"] = verdicts.images.source
        replace_file(mark, json.dumps(kept))
    kept = parse_json(mark.read_bytes(), str(mark), error=CurationError)
    record = kept["record"]
    if kept["images of"] is None:
        assert captions.files is not None
        left = Captions.open(captions.source, path, captions.files[1], kept["fresh"])
        if "images" in captions.__dict__:  # they are loaded already
            left.__dict__["images"] = captions.images
    else:
        left = Captions.open(kept["images of"], path, path.with_suffix(".images"), kept["fresh"])
    if not len(left):
        raise CurationError(
            f"step {number}, {name}, leaves no caption ({'; '.join(record['reasons'])}): see {decisions}, and run "
            "again with other steps; those before it are kept"
        )
    shutil.rmtree(work.folder, ignore_errors=True)
    return left, record


def _record(number: int, name: str, captions: Captions, verdicts: Verdicts) -> dict[str, Any]:
    counts = np.bincount(verdicts.verdict, minlength=len(VERDICTS)).tolist()
    made = sum(len(texts) for index, texts in verdicts.texts.items() if verdicts.verdict[index] == SPLIT)
    left = counts[KEEP] + counts[CHANGE] + counts[MOVE] + made
    if sum(counts) != len(captions):
        raise ValueError("a caption is lost")  # a bug: `Verdicts.check` has passed
    pairs = Counter(zip(verdicts.verdict.tolist(), verdicts.reason.tolist(), strict=True))
    reasons = {
        f"{VERDICTS[verdict]}: {verdicts.reasons[reason]}": count
        for (verdict, reason), count in sorted(pairs.items())
        if reason
    }
    return {
        "step": f"{number}-{name}",
        "operation": name,
        "captions in": len(captions),
        "images in": _images(captions),
        **{VERDICTS[verdict]: counts[verdict] for verdict in range(len(VERDICTS))},
        "captions out": left,
        "reasons": reasons,
        "notes": verdicts.notes,
    }


def _spans(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, AT_ONCE):
        yield start, min(start + AT_ONCE, count)


def _write_decisions(captions: Captions, verdicts: Verdicts, path: Path) -> None:
    """Write a row for each caption, in one step."""
    schema = DECISION
    moved_to = (captions if verdicts.images is None else verdicts.images).image_ids
    for column in verdicts.columns:
        if column not in DECISION.names:
            schema = schema.append(pa.field(column, pa.float64()))
    words, reasons = pa.array(VERDICTS), pa.array(verdicts.reasons)
    numbers = captions.table["number"]
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for start, stop in _spans(len(captions)):
            rows = captions.rows[start:stop]
            texts = captions.table["text"].slice(start, stop - start).combine_chunks()
            verdict = verdicts.verdict[start:stop]
            others = [captions.name(int(i)) if i >= 0 else None for i in verdicts.other[start:stop]]
            batch = {
                "image_id": captions.image_ids.take(pa.array(rows)).combine_chunks(),
                "number": numbers.slice(start, stop - start).combine_chunks(),
                "verdict": pa.DictionaryArray.from_arrays(pa.array(verdict.astype(np.int8)), words),
                "reason": pa.DictionaryArray.from_arrays(
                    pa.array(verdicts.reason[start:stop], mask=verdicts.reason[start:stop] == 0), reasons
                ),
                "score": pa.array(verdicts.score[start:stop], from_pandas=True),
                "other": pa.array(others, pa.string()),
                "before": texts,
                "after": pa.array([verdicts.texts.get(i) for i in range(start, stop)], DECISION.field("after").type),
                "moved_to": pa.array(
                    [moved_to[verdicts.rows[i]].as_py() if i in verdicts.rows else None for i in range(start, stop)],
                    pa.string(),
                ),
            }
            for name, values in verdicts.columns.items():
                if name not in batch:
                    batch[name] = pa.array(values[start:stop], pa.float64(), from_pandas=True)
            writer.write_table(pa.table(batch, schema=schema))


def _apply(captions: Captions, verdicts: Verdicts, path: Path) -> tuple[int, int]:
    """Write what the verdicts leave, in one step; return its number of images, and that of the next new caption."""
    names = list(dict.fromkeys([*captions.columns, *verdicts.columns]))
    schema = pa.schema([*SCHEMA, *(pa.field(name, pa.float64()) for name in names)])
    fresh, left, made = captions.fresh, 0, []
    rows: list[np.ndarray] = []
    moves = bool((verdicts.verdict == MOVE).any())
    with table_writer(path, schema) as writer:
        for start, stop in _spans(len(captions)):
            part, fresh = _left(captions, verdicts, start, stop, names, schema, fresh)
            left += part.num_rows
            rows.append(np.unique(part["row"].to_numpy()))
            if moves:
                made.append(part)
            else:
                writer.write_table(part)
        if moves:
            whole = pa.concat_tables(made)
            writer.write_table(whole.take(pa.array(np.argsort(whole["row"].to_numpy(), kind="stable"))))
    counts = np.bincount(verdicts.verdict, minlength=len(VERDICTS))
    expected = len(verdicts) - counts[DROP] - counts[SPLIT] + fresh - captions.fresh
    if left != expected:
        raise ValueError(f"{expected} captions should be left, and {left} are")  # a bug
    return len(np.unique(np.concatenate(rows))) if rows else 0, fresh


def _left(
    captions: Captions, verdicts: Verdicts, start: int, stop: int, names: list[str], schema: pa.Schema, fresh: int
) -> tuple[pa.Table, int]:
    """What is left of some captions, and the next number of a new one."""
    table = captions.table.slice(start, stop - start)
    verdict = verdicts.verdict[start:stop]
    columns: dict[str, Any] = {name: table[name] for name in SCHEMA.names}
    other_text = np.isin(verdict, (CHANGE, SPLIT, MOVE))  # what steps before said of it, they said of another pair
    for name in names:
        old = captions.column(name)[start:stop] if name in captions.columns else np.full(stop - start, np.nan)
        columns[name] = np.where(other_text, np.nan, old)
        if name in verdicts.columns:
            columns[name] = verdicts.columns[name][start:stop]
    if (verdict == KEEP).all():
        return pa.table({**columns, **{n: pa.array(columns[n]) for n in names}}, schema=schema), fresh
    places: list[int] | np.ndarray
    if not other_text.any():
        places = np.flatnonzero(verdict != DROP)
        kept = pa.table({**columns, **{n: pa.array(columns[n]) for n in names}}, schema=schema)
        return kept.take(pa.array(places)), fresh
    places, texts, numbers, rows = [], [], [], []
    old_texts, old_numbers = table["text"].to_pylist(), table["number"].to_pylist()
    for place, said in enumerate(verdict.tolist()):
        if said == DROP:
            continue
        index = start + place
        parts = verdicts.texts.get(index) or [old_texts[place]]
        for text in parts:
            places.append(place)
            texts.append(text)
            rows.append(verdicts.rows.get(index, int(captions.rows[index])))
            numbers.append(fresh if said == SPLIT else old_numbers[place])
            fresh += said == SPLIT
    at = np.array(places, dtype=np.int64)
    made = {
        "row": pa.array(rows, pa.int64()),
        "number": pa.array(numbers, pa.int64()),
        "entry": pa.array(np.where(other_text, -1, table["entry"].to_numpy())[at]),
        "text": pa.array(texts, pa.large_string()),
        **{name: pa.array(np.asarray(columns[name])[at]) for name in names},
    }
    return pa.table(made, schema=schema), fresh
