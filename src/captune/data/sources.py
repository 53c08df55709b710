"""Every image source as one kind of dataset: columns image, image_id, references (list[str], may be empty).

A source is written ``where?key=value&…``; `captune.data.naming.Source` has the keys.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, IterableDataset, List, Value

from captune.data.columns import ImageSource, column, decoded
from captune.data.folders import files_below, listed, references_beside
from captune.data.images import IMAGE_SUFFIXES
from captune.data.naming import KINDS, Source, is_path
from captune.data.readers import (
    HALF,
    KEPT,
    TEXT_SUFFIXES,
    Entry,
    find_image_folder,
    image_paths,
    is_utf8,
    nfc,
    read_entries,
)
from captune.data.schemes import Scheme
from captune.data.shards import SHARD_SUFFIXES, base_of, is_saved, shards_of
from captune.data.tables import FEATURES, count_rows, guarded, load_hub, load_parquet, load_saved, normalise
from captune.data.webdataset import count_samples, load_webdataset
from captune.errors import SourceError, UsageError
from captune.utils.progress import Bar
from captune.utils.remote import is_address
from captune.utils.skipped import skip

logger = logging.getLogger(__name__)


def load_images(
    source: str, *, limit: int | None = None, decode: bool = True, stream: bool = False, references: bool = True
) -> ImageSource:
    """Load the images of a source, lazily: an image is decoded when its row is read, so a bad one fails alone.

    Args:
        source: as written; see `Source`.
        limit: at most so many rows (after ?n= and ?seed=).
        decode: False leaves `image` as the {"bytes", "path"} pair that `open_image` takes.
        stream: read webdataset shards as they come (IterableDataset) instead of copying them into the cache first.
        references: False leaves those that lie beside the images of a folder unread; the column is empty then.

    Returns:
        A dataset of rows {"image": PIL RGB, "image_id": str, "references": list[str]}; a scheme may add columns.
        Reading a row raises BadImage for an image that cannot be used.

    Raises:
        SourceError: if the source cannot be read.
    """
    if limit is not None and limit < 1:
        raise SourceError(f"limit must be at least 1, not {limit}")
    parsed = _local(source)
    if (scheme := parsed.scheme) is not None:
        return _by_scheme(parsed, scheme, limit)
    if (folder := _folder(parsed, limit, references)) is not None:
        dataset = _dataset(_of_names(*folder))
    elif (entries := _entries(parsed, limit, with_images=True)) is not None:
        rows, paths = entries
        try:
            files = pa.array(paths, pa.string())
        except UnicodeEncodeError:
            broken = next(path for path in paths if not is_utf8(path))
            raise SourceError(f"{parsed.where}: {broken!a} is no text in UTF-8; rename what is named so") from None
        dataset = _dataset(_arrow(parsed.where, rows, files))
    else:
        dataset = _table(parsed, limit, stream, with_images=True)
    return decoded(dataset) if decode else dataset


def load_references(source: str, *, limit: int | None = None) -> dict[str, list[str]]:
    """Load {image_id: references} of a source, empty lists where it has none; its images need not exist.

    Raises:
        SourceError: if the source cannot be read.
    """
    parsed = _local(source)
    if (scheme := parsed.scheme) is not None:
        return _by_id(_by_scheme(parsed, scheme, limit), "references")
    if (folder := _folder(parsed, limit, references=True)) is not None:
        _, names, beside = folder
        return {nfc(name): beside.get(name, []) for name in names.to_pylist()}
    if (entries := _entries(parsed, limit, with_images=False)) is not None:
        return {row.image_id: row.references for row in entries[0]}
    return _by_id(_table(parsed, limit, stream=False, with_images=False), "references")


def _local(source: str) -> Source:
    """Read a source; UsageError for an address."""
    parsed = Source.parse(source)
    if is_address(parsed.where):
        raise UsageError(
            f"{source}: addresses are read by captune caption --engine ray alone; copy the data here, and name the copy"
        )
    return parsed


def load_scenes(source: str, *, limit: int | None = None) -> dict[str, str]:
    """Load {image_id: scene as JSON} of a source that knows what its images show.

    Raises:
        SourceError: if it has no scenes.
    """
    dataset = load_images(source, limit=limit, decode=False)
    if "scene" not in (dataset.column_names or []):
        raise SourceError(f"{source} has no scenes; only the embedded world has them, such as storybook:test")
    return _by_id(dataset, "scene")


def _dataset(table: pa.Table) -> Dataset:
    """The table as a dataset, with a digest of its rows as fingerprint: `datasets` would copy them all to hash them."""
    digest = xxhash.xxh64()
    for batch in table.to_batches(max_chunksize=2**12):
        digest.update(batch.serialize())
    pa.default_memory_pool().release_unused()
    return Dataset(table, fingerprint=digest.hexdigest())


def _of_names(folder: Path, names: pa.StringArray, beside: dict[str, list[str]]) -> pa.Table:
    """Images of a folder: columns of their names alone, where no references lie beside them."""
    where = os.path.join(folder, "")
    if not is_utf8(where):
        raise SourceError(f"the path of the folder {where!a} is no text in UTF-8; rename it")
    paths = pc.binary_join_element_wise(pa.scalar(where), names, "")
    if beside:
        return _arrow(str(folder), [Entry(nfc(name), name, beside.get(name, [])) for name in names.to_pylist()], paths)
    ids = names if _is_ascii(names) else pa.array(map(nfc, names.to_pylist()), pa.string(), size=len(names))
    starts = pa.array(np.zeros(len(names) + 1, np.int32))
    return _columns(ids, paths, pa.ListArray.from_arrays(starts, pa.array([], pa.string())))


def _arrow(where: str, rows: list[Entry], paths: pa.StringArray) -> pa.Table:
    try:
        table = _of_entries(rows, paths)
    except UnicodeEncodeError:  # rare, so it is looked for only then
        rows = _whole_text(where, rows)
        table = _of_entries(rows, paths)
    for name in KEPT:
        if any(row.kept is not None and name in row.kept for row in rows):
            try:
                table = table.append_column(name, pa.array([(row.kept or {}).get(name) for row in rows]))
            except (pa.ArrowException, UnicodeEncodeError) as error:
                logger.warning("%s: the column %s is not read: its values are not of one kind (%s)", where, name, error)
    return table


def _of_entries(rows: list[Entry], paths: pa.StringArray) -> pa.Table:
    ids = pa.array((row.image_id for row in rows), pa.string(), size=len(rows))
    return _columns(ids, paths, pa.array((row.references for row in rows), pa.list_(pa.string()), size=len(rows)))


def _columns(ids: pa.Array, paths: pa.Array, references: pa.Array) -> pa.Table:
    images = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
    return pa.Table.from_arrays([images, ids, references], schema=FEATURES.arrow_schema)


def _is_ascii(names: pa.StringArray) -> bool:
    return bool(pc.all(pc.string_is_ascii(names), min_count=0).as_py())


def _whole_text(where: str, rows: list[Entry]) -> list[Entry]:
    """The rows without references that hold half a character (a lone surrogate), which JSON can and UTF-8 cannot.

    Raises:
        SourceError: an image's id or file name holds one.
    """
    kept = []
    for row in rows:
        if not (is_utf8(row.image_id) and is_utf8(row.name or "")):
            broken = row.name if is_utf8(row.image_id) else row.image_id
            raise SourceError(
                f"{where}: {broken!a} holds half a character, which is no text in UTF-8; rename the image"
            )
        references = [text for text in row.references if is_utf8(text)]
        if broken_ones := len(row.references) - len(references):
            skip(HALF, ascii(row.image_id), broken_ones)
        kept.append(row._replace(references=references))
    return kept


def _by_id(dataset: ImageSource, name: str) -> dict[str, Any]:
    return dict(zip(column(dataset, "image_id"), column(dataset, name), strict=True))


def choose(total: int, source: Source, limit: int | None) -> Sequence[int]:
    """Return row numbers: all or the first n, in order; with a seed, n sampled without replacement, as sampled.

    Args:
        total: the rows there are.
        source: its `n`, `seed` and `skip`, which leaves out the first rows of that order.
        limit: at most so many.

    Raises:
        SourceError: if nothing is left.
    """
    if source.shard is not None:
        first, step = shard_of(source)
        return choose(total, replace(source, shard=None), None)[first - 1 :: step][:limit]
    if source.part is not None:
        return _part(choose(total, replace(source, part=None), None), source)[:limit]
    first = source.skip or 0
    if first >= total > 0:
        raise SourceError(f"{source.where} has {total} images; skip={first} leaves none")
    if source.n is not None and source.n > total - first:
        logger.warning("%s has only %d such images, %d were asked for", source.where, total - first, source.n)
    last = min(total, *(first + number for number in (source.n, limit) if number is not None), total)
    if source.seed is None:
        return range(first, last)
    return np.random.default_rng(source.seed).permutation(total)[first:last].tolist()


def held_out_number(total: int) -> int:
    """Return how many of so many images are held out of training: 64, or a tenth of fewer than 640."""
    return min(64, total // 10)


def _part(rows: Sequence[int], source: Source) -> Sequence[int]:
    number = held_out_number(len(rows))
    if not number:
        raise SourceError(f"{source.where}: of {len(rows)} images none can be held out; leave ?part= out")
    held_out = set(np.random.default_rng(0).permutation(len(rows))[:number].tolist())
    return [row for index, row in enumerate(rows) if (index in held_out) == (source.part == "held_out")]


def part_of(source: str, part: Literal["held_out", "training"], *, limit: int | None = None) -> str | None:
    """Return the source that is a part of another, see `Source.part`; None where too few images can be held out.

    Args:
        source: as written.
        part: which.
        limit: it has at most so many images.
    """
    parsed = Source.parse(source)
    where, _, query = (source, "", "") if parsed.where == source else source.rpartition("?")
    settings = [setting for setting in query.split("&") if setting and not setting.startswith("part=")]
    if parsed.part is None:
        dataset = load_images(source, limit=limit, decode=False)
        if isinstance(dataset, IterableDataset) or not held_out_number(len(dataset)):
            return None
        if limit is not None and len(dataset) == limit:
            number = limit * (1 if parsed.shard is None else shard_of(parsed)[1])  # a shard is one of the first n
            settings = [setting for setting in settings if not setting.startswith("n=")] + [f"n={number}"]
    return None if parsed.part == "held_out" else f"{where}?{'&'.join([*settings, f'part={part}'])}"


def shard_of(source: Source) -> tuple[int, int]:
    """Return (i, n) of ``?shard=i/n``.

    Raises:
        SourceError: it is not written so, or i is not one of 1 to n.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", source.shard or "")
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise SourceError(f"{source.where}: shard={source.shard} is not i/n, such as 1/4 to 4/4 for four machines")
    return int(found[1]), int(found[2])


def sharded(source: str, shard: str) -> str:
    """Return the source that is one of n shards of another, ``i/n``.

    Raises:
        SourceError: the source has a shard already.
        UsageError: it is not written so.
    """
    parsed = Source.parse(source)
    if parsed.shard is not None:
        raise SourceError(f"{source} names a shard already")
    try:
        shard_of(replace(parsed, shard=shard))
    except SourceError as error:
        raise UsageError(f"--shard {shard} is not i/n, such as 1/4 to 4/4 for four machines") from error
    return f"{source}{'?' if parsed.where == source else '&'}shard={shard}"


def whole_of(source: str) -> str | None:
    """Return the source without what chooses some of its images; None where it is the whole one, or draws them."""
    parsed = Source.parse(source)
    if parsed.scheme is not None or all(getattr(parsed, key) is None for key in ("n", "skip", "part", "shard")):
        return None
    return _without(source, "n", "seed", "skip", "part", "shard")


def is_empty_shard(source: str) -> bool:
    """Return whether a source that has no images is a shard of one that has some: of fewer than there are shards."""
    if Source.parse(source).shard is None:
        return False
    whole = load_images(_without(source, "shard"), limit=1, decode=False, stream=True, references=False)
    return any(True for _ in whole)


def _without(source: str, *keys: str) -> str:
    """A source that has settings, without some of them."""
    where, _, query = source.rpartition("?")
    rest = "&".join(setting for setting in query.split("&") if setting.partition("=")[0] not in keys)
    return f"{where}?{rest}" if rest else where


def folder_of(source: str | Path) -> Path | None:
    """Return the folder that a source's images are named in: its own, or that of ?images=; None for other sources."""
    parsed = Source.parse(str(source))
    path = Path(parsed.images or parsed.where).expanduser()
    return path if path.is_dir() else None


def _by_scheme(source: Source, scheme: Scheme, limit: int | None) -> Dataset:
    """The dataset of ``scheme:name``; its split is its name."""
    if source.caption is not None:
        return _captioned_by(source.caption, _by_scheme(replace(source, caption=None), scheme, limit), source.where)
    if source.columns or any(value is not None for value in (source.skip, source.split, source.images)):
        raise SourceError(
            f"{source.where} takes only ?n=, ?seed=, ?part=, ?shard= and ?caption= (the split is the name: "
            f"{scheme.name}:test)"
        )
    name = source.where.partition(":")[2]
    if source.shard is not None:
        dataset = _by_scheme(replace(source, shard=None), scheme, None)
        return dataset.select(choose(len(dataset), Source(source.where, shard=source.shard), limit))
    if source.part is not None:
        dataset = scheme.load(name, n=source.n, seed=source.seed)
        return dataset.select(_part(range(len(dataset)), source)[:limit])
    first = source.n if limit is None or source.n is None else min(source.n, limit)  # no more is made than is used
    dataset = scheme.load(name, n=first, seed=source.seed)
    return dataset if limit is None or limit >= len(dataset) else dataset.select(range(limit))


def _captioned_by(name: str, dataset: Dataset, where: str) -> Dataset:
    """The dataset with another column of texts as its references."""
    texts = [key for key, feature in dataset.features.items() if feature == Value("string") and key != "image_id"]
    if name not in texts:
        raise SourceError(f"{where} has no column {name!r} of captions; it has {', '.join(['references', *texts])}")
    said = [[text] for text in column(dataset, name)]
    names = dataset.column_names
    changed = dataset.remove_columns("references").add_column("references", said, feature=List(Value("string")))
    return changed.select_columns(names)


def _folder(
    source: Source, limit: int | None, references: bool
) -> tuple[Path, pa.StringArray, dict[str, list[str]]] | None:
    """A folder of images: it, the names that are taken, and the references of those that have any.

    None for any other source.
    """
    path = Path(source.where).expanduser()
    if not path.is_dir() or is_saved(path):
        return None
    names, beside = listed(path)
    if not len(names):
        if shards_of(source.where):
            return None
        kinds = sorted(files_below(path, ())[1].items())
        others = ", ".join(f"{len(paths)} {suffix or 'suffixless'}" for suffix, paths in kinds[:10])
        raise SourceError(
            f"no image files in {path} or below{f', only {others}' * bool(others)} (looked for "
            f"{' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    if source.split or source.images or source.columns:
        raise SourceError(f"{path} is a folder of images; it takes only ?n=, ?seed=, ?skip=, ?part= and ?shard=")
    _distinct(path, names)
    found = references_beside(path, names, beside) if references else {}
    rows = choose(len(names), source, limit)
    chosen = names if rows == range(len(names)) else names.take(pa.array(rows, pa.int64()))
    return path, chosen, found


def _entries(source: Source, limit: int | None, with_images: bool) -> tuple[list[Entry], list[str]] | None:
    """Rows and image paths of a caption file or of one image; None for everything that `datasets` reads."""
    path = Path(source.where).expanduser()
    folder: Path | None = None
    if path.is_file() and path.suffix.lower() in {".json", ".jsonl", ".ndjson", *TEXT_SUFFIXES}:
        if source.columns:
            raise SourceError(
                f"{path} takes ?n=, ?seed=, ?skip=, ?part=, ?shard=, ?split= and ?images=, not "
                f"{', '.join(source.columns)}"
            )
        rows = read_entries(path, source.split)
        if not rows:
            raise SourceError(f"{path} names no image")
    elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        rows, folder = [Entry(nfc(path.name), path.name, [])], path.parent
    else:
        return None
    rows = [rows[index] for index in choose(len(rows), source, limit)]
    if not with_images:
        return rows, []
    if folder is not None:  # its own file
        return rows, [os.path.join(folder, row.name or "") for row in rows]
    return rows, image_paths(path, find_image_folder(path, rows, source.images), rows)


def _distinct(folder: Path, names: pa.StringArray) -> None:
    """Refuse two file names that differ in their Unicode form only: they would be one image."""
    known: dict[str, str] = {}
    for name in names.filter(pc.invert(pc.string_is_ascii(names))).to_pylist():
        if (other := known.setdefault(image_id := nfc(name), name)) != name:
            raise SourceError(
                f"{folder} has two files of the name {image_id!r}, in two Unicode forms ({other!a} and {name!a}); "
                "rename one"
            )


def _table(source: Source, limit: int | None, stream: bool, with_images: bool) -> ImageSource:
    """What `datasets` reads: parquet, webdataset shards, saved datasets and names on the hub."""
    options = {key: str(value) for key, value in source.columns.items() if key != "streaming"}
    # a stream has no parts, and draws from a few thousand rows at a time
    stream = bool(source.streaming) or (stream and source.part is None and source.seed is None)
    path = Path(source.where).expanduser()
    base = base_of(source.where)
    if source.images and not Path(source.images).expanduser().is_dir():
        raise SourceError(f"{source.where}: ?images={source.images} is no folder")
    if is_saved(path):
        if source.config is not None:
            raise SourceError(f"{source.where} has no configurations; leave ?config={source.config} out")
        dataset: ImageSource = load_saved(path, source.split)
    elif files := shards_of(source.where):
        if files[0].lower().endswith(".tar"):
            if source.split is not None:
                raise SourceError(f"{source.where} has no splits; leave ?split={source.split} out")
            if source.images is not None:
                raise SourceError(f"{source.where} holds its images; leave ?images={source.images} out")
            return _take(load_webdataset(files, options, stream=stream, images=with_images), source, limit)
        if source.config is not None:
            raise SourceError(f"{source.where} has no configurations; leave ?config={source.config} out")
        dataset = load_parquet(files, stream)
    elif path.exists():
        raise SourceError(f"{source.where} is of no known kind; {KINDS}")
    elif (folder := _before_pattern(source.where)) is not None:
        raise SourceError(f"{source.where}: patterns name shards and tables alone; of images name the folder {folder}")
    elif is_path(source.where):
        raise SourceError(f"{source.where} does not exist; {KINDS}")
    else:
        dataset = load_hub(source.where, source.config, source.split, bool(source.streaming))
        source = replace(source, split=None)
    if source.split is not None and not is_saved(path):
        advice = f"; name its files: {path / '**' / source.split}-*.parquet" if path.is_dir() else ""
        raise SourceError(f"{source.where} has no splits; leave ?split={source.split} out{advice}")
    images = Path(source.images).expanduser() if source.images else base
    dataset = normalise(
        dataset, source.where, options, images, with_images, data=base, shuffled=source.seed is not None
    )
    taken = _take(dataset, source, limit)
    return guarded(taken, source.where) if isinstance(taken, IterableDataset) else taken


def _before_pattern(where: str) -> Path | None:
    """The folder before the first ``*`` of a pattern of other files than shards and tables, if it is there."""
    if "*" not in where or where.lower().endswith(SHARD_SUFFIXES):
        return None
    return folder if (folder := base_of(where)).is_dir() else None


def count_images(source: str, *, limit: int | None = None) -> int | None:
    """Return how many images the stream of a source has, from footers and headers alone; None where these do not say.

    Args:
        source: as written; shards of parquet or tar.
        limit: of `load_images`.
    """
    parsed = Source.parse(source)
    try:
        files = [] if parsed.scheme is not None else shards_of(parsed.where)
        if not files:
            return None
        count = count_samples if files[0].lower().endswith(".tar") else count_rows
        bar = Bar(files, desc="counting images", unit="shard", leave=False, delay=2)
        total = sum(count(file, parsed.columns) for file in bar)
        return len(choose(total, replace(parsed, seed=None), limit))
    except (SourceError, OSError):  # reading says so, when it comes there
        return None


def _take(dataset: ImageSource, source: Source, limit: int | None) -> ImageSource:
    if isinstance(dataset, IterableDataset):
        if source.part is not None:
            raise SourceError(f"{source.where}: a stream has no parts; leave ?part= or ?streaming=1 out")
        if source.seed is not None:
            dataset = dataset.shuffle(seed=source.seed, buffer_size=10_000)
        dataset = dataset.skip(source.skip) if source.skip else dataset
        dataset = dataset if source.n is None else dataset.take(source.n)
        if source.shard is not None:
            place, step = shard_of(source)
            dataset = dataset.filter(lambda _, index: index % step == place - 1, with_indices=True)
        return dataset if limit is None else dataset.take(limit)
    rows = choose(len(dataset), source, limit)
    return dataset if rows == range(len(dataset)) else dataset.select(rows)
