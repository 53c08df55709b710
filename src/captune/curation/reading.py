"""A source as a table of captions on the disk.

Tables (parquet) are read a few thousand rows at a time and without their images, so that memory does not grow with
them; every other source is read as everywhere in captune. Numbers that stand beside captions in JSON lines are read as
those of a table are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features

from captune.data.columns import column
from captune.data.naming import Source
from captune.data.readers import (
    BLANK,
    ID_KEYS,
    IMAGE_KEYS,
    MISSING,
    REFERENCE_KEYS,
    as_id,
    first_key,
    is_said,
    nfc,
    references_at,
    row_entry,
)
from captune.data.shards import shards_of
from captune.data.sources import choose, load_images, load_references
from captune.data.tables import image_columns, reason
from captune.errors import CurationError, SourceError
from captune.utils.files import jsonl_rows, replacing
from captune.utils.skipped import counting, skip

SCHEMA = pa.schema({"row": pa.int64(), "number": pa.int64(), "entry": pa.int64(), "text": pa.large_string()})
AT_ONCE = 65_536  # captions that are in memory together
_EXACT = 2**53  # the largest whole number up to which a float holds each
NO_NUMBERS = "columns of the source that the set will not have, for it keeps numbers alone, whole ones up to 2^53"


def read_source(source: str, limit: int | None, captions: Path, images: Path) -> dict[str, Any]:
    """Write the captions of a source, and the ids of its images, as Arrow files, each in one step.

    Args:
        source: as written.
        limit: the first so many images only.
        captions: the file of the captions; see `Captions.table`.
        images: the file of the image ids.

    Returns:
        What the record says about it: images, captions, images without a caption, what was left out and how often; why
        its images cannot be looked at, where that is so.
    """
    files = _parquet_files(source)
    with counting() as left_out:
        ids, table, about = _of_tables(source, files, limit) if files else _of_rows(source, limit)
    if not len(ids):
        raise CurationError(f"{source} holds no images")
    if not table.num_rows:
        raise CurationError(f"no image of {source} has a caption; there is nothing to curate")
    write_table(pa.table({"image_id": ids}), images)
    write_table(table, captions)
    with_captions = len(np.unique(table["row"].to_numpy()))
    return {
        "images": len(ids),
        "captions": table.num_rows,
        "images without a caption": len(ids) - with_captions,
        "left out": left_out,
        **about,
    }


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as an Arrow file in one step."""
    with table_writer(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=AT_ONCE)


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Yield what writes tables into an Arrow file, which appears whole or not at all."""
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        yield writer


def read_table(path: Path) -> pa.Table:
    """Return a table, which stays on the disk."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def images_of(source: str, image_ids: pa.ChunkedArray) -> Dataset:
    """Return the images of a source that was read before, decoded on access.

    Args:
        source: as written.
        image_ids: what its first images were then.

    Raises:
        CurationError: it streams, or has other images now.
    """
    dataset = load_images(source)
    if not isinstance(dataset, Dataset):
        raise CurationError(f"{source} streams, and curation looks images up by row: leave ?streaming= out")
    if not pa.chunked_array([column(dataset, "image_id")[: len(image_ids)]], pa.string()).equals(image_ids):
        raise CurationError(f"{source} has other images than when its captions were read: begin again with --overwrite")
    return dataset


def read_vectors(source: str, name: str, entries: np.ndarray, path: Path) -> np.ndarray:
    """Copy a column of vectors out of the tables of a source, as unit vectors; return them as an array on the disk.

    Args:
        source: as written: parquet files, or JSON lines.
        name: the column: lists of numbers.
        entries: (N,) rows of the tables.
        path: an .npy file that the vectors are kept in.

    Raises:
        CurationError: there is no such column, or one vector is missing, of another length, has no direction, or
            stands beside several captions; or the captions are not those of the tables any more.
    """
    if path.is_file():
        return np.load(path, mmap_mode="r")
    if bool((entries < 0).any()):
        raise CurationError(
            f"embeddings: a step before gave captions another text or image, and the vectors of {name} are of what "
            "they were: put that step behind, or name an encoder"
        )
    lines = _json_lines(source)
    files = _parquet_files(source) if lines is None else [str(lines)]
    if not files:
        raise CurationError(
            f"embeddings: {name} is a column of parquet files or JSON lines, which {source} does not name; name an "
            "encoder"
        )
    order = np.argsort(entries, kind="stable")
    wanted = entries[order]
    if bool((twice := wanted[1:] == wanted[:-1]).any()):
        raise CurationError(
            f"embeddings: row {int(wanted[1:][twice][0]) + 1} of {source} has several captions, and {name} one vector "
            "for all of them: write a row for each caption, or name an encoder"
        )
    out: np.ndarray | None = None
    done, before = 0, 0
    with replacing(path) as temporary:
        for file, first, batch in _batches(files, [name]):
            last = int(np.searchsorted(wanted, before + batch.num_rows))
            if last > done:
                vectors = _matrix(batch.column(0), name, f"{file}, rows {first + 1} to {first + batch.num_rows}")
                if out is None:
                    shape = (len(entries), vectors.shape[1])
                    out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                if vectors.shape[1] != out.shape[1]:
                    raise CurationError(f"{file}: the vectors of {name} have another length than those before")
                out[order[done:last]] = vectors[wanted[done:last] - before]
            done, before = last, before + batch.num_rows
        if out is None or done < len(entries):
            raise CurationError(f"{source} has fewer rows than when its captions were read")
        del out  # flushes it
    return np.load(path, mmap_mode="r")


def _matrix(values: Any, name: str, where: str) -> np.ndarray:
    lists = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    if not (lists or pa.types.is_fixed_size_list(values.type)):
        raise CurationError(f"{where}: the column {name} holds {values.type}, not vectors")
    lengths = pc.unique(pc.list_value_length(values)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise CurationError(f"{where}: the vectors of {name} have several lengths, or one is missing")
    matrix = np.asarray(values.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, lengths[0])
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not bool(np.isfinite(norms).all() and (norms > 0).all()):
        raise CurationError(f"{where}: a vector of {name} is zero, or holds what is no number")
    return matrix / norms


def _parquet_files(source: str) -> list[str]:
    parsed = Source.parse(source)
    if parsed.scheme is not None or parsed.streaming or parsed.split or parsed.config:  # the last two are refused
        return []
    files = shards_of(parsed.where)
    return files if files and files[0].lower().endswith(".parquet") else []


def _json_lines(source: str) -> Path | None:
    parsed = Source.parse(source)
    path = Path(parsed.where).expanduser()
    lines = parsed.scheme is None and path.suffix.lower() in (".jsonl", ".ndjson") and path.is_file()
    return path if lines else None


def _batches(files: list[str], columns: list[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    """Columns of tables, or one of JSON lines: (file, its rows before, batch)."""
    for name in files:
        first = 0
        if Path(name).suffix.lower() != ".parquet":
            for batch in _batches_of_lines(Path(name), columns[0]):
                yield name, first, batch
                first += batch.num_rows
            continue
        try:
            with pq.ParquetFile(name) as file:
                if missing := [one for one in columns if one not in file.schema_arrow.names]:
                    raise SourceError(
                        f"{name} has no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}"
                    )
                for batch in file.iter_batches(batch_size=AT_ONCE // 4, columns=columns):
                    yield name, first, batch
                    first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{name} cannot be read as parquet: {reason(error)}") from error


def _batches_of_lines(path: Path, name: str) -> Iterator[pa.RecordBatch]:
    """A column of vectors in JSON lines."""
    lines = jsonl_rows(path, whole=True)
    while part := list(itertools.islice(lines, AT_ONCE // 4)):
        without = next((number for number, row in part if not isinstance(row.get(name), list)), None)
        if without is not None:
            raise CurationError(f"{path}, line {without}: {name} is no list of numbers")
        try:
            yield pa.record_batch([pa.array([row[name] for _, row in part], pa.list_(pa.float32()))], [name])
        except pa.ArrowException as error:
            raise CurationError(f"{path}: {name} does not hold vectors ({reason(error)})") from error


def _numbers_of_lines(path: Path, ids: list[str], table: pa.Table) -> pa.Table:
    """The table with the line that each caption stands in, and the numbers beside it.

    A number belongs to all captions of its line, and of a list of them each to its own. A column that holds something
    else in a line is no column of numbers.
    """
    place = {image_id: row for row, image_id in enumerate(ids)}
    rows: list[int] = []
    entries: list[int] = []
    values: dict[str, list[float]] = {}
    others: set[str] = set(SCHEMA.names)
    for line, (number, row) in enumerate(jsonl_rows(path, whole=True)):
        entry = row_entry(row, path, "line", number)
        at = place.get(nfc(entry.image_id))
        if at is None:
            continue
        good = [is_said(text) for text in entry.references]
        used = {first_key(row, keys) for keys in (ID_KEYS, IMAGE_KEYS, REFERENCE_KEYS)}
        for name in row.keys() - used - others:
            found = _floats(row[name], len(good))
            if found is None:
                others.add(name)
                values.pop(name, None)
                continue
            made = values.setdefault(name, [])
            made += [math.nan] * (len(rows) - len(made))
            made += [value for value, there in zip(found, good, strict=True) if there]
        rows += [at] * sum(good)
        entries += [line] * sum(good)
    if len(rows) != table.num_rows:
        raise CurationError(f"{path} has other captions than a moment ago")
    for name in sorted(others - set(SCHEMA.names)):
        skip(NO_NUMBERS, name)
    order = np.argsort(np.array(rows, dtype=np.int64), kind="stable")
    table = table.set_column(table.schema.get_field_index("entry"), "entry", pa.array(np.array(entries)[order]))
    for name in sorted(values):
        column_of = np.array(values[name] + [math.nan] * (len(rows) - len(values[name])), dtype=np.float64)
        if np.isfinite(column_of).any():
            table = table.append_column(name, pa.array(column_of[order]))
    return table


def _floats(value: Any, count: int) -> list[float] | None:
    """`count` numbers, NaN where one is missing; None where it is something else, or would be another number."""
    several = value if isinstance(value, list) else [value] * count
    if len(several) != count or any(
        isinstance(one, bool) or not isinstance(one, int | float | None) or (isinstance(one, int) and abs(one) > _EXACT)
        for one in several
    ):
        return None
    return [math.nan if one is None else float(one) for one in several]


def _of_tables(source: str, files: list[str], limit: int | None) -> tuple[pa.ChunkedArray, pa.Table, dict[str, Any]]:
    parsed = Source.parse(source)
    schema = pq.read_schema(files[0])
    names = schema.names
    said = parsed.caption or first_key(names, REFERENCE_KEYS)
    if said is None:
        raise CurationError(
            f"{files[0]} has no column of captions; it has {', '.join(names)}; name it: ?caption=COLUMN"
        )
    options = {key: str(value) for key, value in parsed.columns.items()}
    known = pa.schema([field for field in schema if not pa.types.is_map(field.type)], schema.metadata)  # of `datasets`
    images = image_columns(SimpleNamespace(features=Features.from_arrow_schema(known)), names, options)
    own = parsed.id or first_key(set(names) - set(images), ID_KEYS)
    listed = any(check(schema.field(said).type) for check in (pa.types.is_list, pa.types.is_large_list))
    numbers = [
        field.name
        for field in schema
        if field.name not in (said, own, *images, *SCHEMA.names) and _numeric(field.type, listed)
    ]
    parts: list[pa.Table] = []
    ids: list[Any] = []
    others: set[str] = set()  # that hold no number for each caption
    blanks, first_blank, before = 0, "", 0
    for file, first, batch in _batches(files, [*([own] if own else []), said, *numbers]):
        texts, parents = _texts(batch.column(said), file, first)
        if own:
            ids.append(_as_ids(batch.column(own), file, first, own))
        else:
            ids.append(pa.array([f"{before + i:06d}" for i in range(batch.num_rows)], pa.string()))
        columns = {
            "entry": pa.array(parents + before),
            "text": texts,
        }
        counts = np.bincount(parents, minlength=batch.num_rows)
        for name in numbers:
            if (flat := _flat(batch.column(name), counts)) is None:
                others.add(name)
            columns[name] = pa.nulls(len(texts), pa.float64()) if flat is None else flat
        part = pa.table(columns)
        blank = pc.or_(
            pc.equal(texts, ""), pc.is_in(pc.utf8_lower(texts), pa.array(sorted(MISSING), pa.large_string()))
        )
        if count := pc.sum(blank).as_py():
            first_blank = first_blank or f"{file}, row {first + int(parents[pc.index(blank, True).as_py()]) + 1}"
            blanks += count
            part = part.filter(pc.invert(blank))
        parts.append(part)
        before += batch.num_rows
    if blanks:
        skip(BLANK, first_blank, blanks)
    if not before:
        raise SourceError(f"{files[0]} holds no rows")
    table = pa.concat_tables(parts)
    numbers = [name for name in numbers if name not in others]
    for name in names:
        if name not in (said, own, *images, *numbers):
            skip(NO_NUMBERS, name)
    coded = pa.chunked_array(ids).dictionary_encode().unify_dictionaries()
    known = coded.chunk(0).dictionary
    owner = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks]).astype(np.int64)
    rows = owner[table["entry"].to_numpy()]
    chosen = np.asarray(choose(len(known), parsed, limit), dtype=np.int64)
    place = np.full(len(known), -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    rows = place[rows]
    order = np.argsort(rows, kind="stable")
    order = order[rows[order] >= 0]
    if len(order) < len(rows) or bool((np.diff(order) != 1).any()):
        table, rows = table.take(pa.array(order)), rows[order]
    table = table.append_column("row", pa.array(rows)).append_column("number", pa.array(np.arange(len(rows))))
    about = {} if images else {"no images": f"{files[0]} has no column of images"}
    ids_chosen = pa.chunked_array([known.take(pa.array(chosen)).cast(pa.string())])
    return ids_chosen, table.select([*SCHEMA.names, *numbers]), about


def _numeric(kind: pa.DataType, listed: bool) -> bool:
    """Whether it may hold a number for each caption, or one for all captions of a row."""
    if listed and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return _numeric(kind.value_type, False)
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _flat(values: Any, counts: np.ndarray) -> pa.Array | None:
    """A number for each caption, NaN where it is missing; None where the lists are other ones, such as vectors.

    Args:
        values: a number or a list for each row, no whole ones beyond 2^53, which would be others.
        counts: (rows,) captions of each row.
    """
    try:
        return _as_floats(values, counts)
    except pa.ArrowInvalid:
        return None


def _as_floats(values: Any, counts: np.ndarray) -> pa.Array | None:
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        return pa.array(np.repeat(values.cast(pa.float64()).to_numpy(zero_copy_only=False), counts))
    lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy()
    if bool(((lengths != counts) & (lengths >= 0)).any()):
        return None
    made = np.full(int(counts.sum()), np.nan)
    made[np.repeat(lengths >= 0, counts)] = values.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return pa.array(made)


def _texts(values: Any, where: str, before: int) -> tuple[pa.Array, np.ndarray]:
    """The captions of a batch, and the row of each in it."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        texts, parents = values.cast(pa.large_string()), np.arange(len(values))
    elif (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)) and (
        pa.types.is_string(values.type.value_type) or pa.types.is_large_string(values.type.value_type)
    ):
        texts, parents = values.flatten().cast(pa.large_string()), pc.list_parent_indices(values).to_numpy()
    else:
        found = [references_at(one, f"{where}, row {before + i + 1}") for i, one in enumerate(values.to_pylist())]
        texts = pa.array([text for one in found for text in one], pa.large_string())
        parents = np.repeat(np.arange(len(found)), [len(one) for one in found])
    return pc.utf8_trim_whitespace(pc.fill_null(texts, "")), parents.astype(np.int64)


def _as_ids(values: Any, where: str, before: int, name: str) -> pa.Array:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        ids = values.cast(pa.string())
        if not ids.null_count and pc.all(pc.greater(pc.binary_length(pc.utf8_trim_whitespace(ids)), 0)).as_py():
            return ids if pc.all(pc.string_is_ascii(ids)).as_py() else pc.utf8_normalize(ids, "NFC")
    elif pa.types.is_integer(values.type) and not values.null_count:
        return values.cast(pa.string())
    return pa.array(
        [as_id(one, f"{where}, row {before + i + 1} ({name})") for i, one in enumerate(values.to_pylist())], pa.string()
    )


def _of_rows(source: str, limit: int | None) -> tuple[pa.ChunkedArray, pa.Table, dict[str, Any]]:
    about: dict[str, Any] = {}
    try:
        dataset = load_images(source, limit=limit, decode=False)
    except SourceError as error:
        try:
            texts = load_references(source, limit=limit)
        except SourceError:
            raise error from None
        about["no images"] = str(error)
        ids, lists = list(texts), pa.array(texts.values(), pa.list_(pa.string()))
    else:
        if not isinstance(dataset, Dataset):
            raise CurationError(f"{source} streams, and curation looks images up by row: leave ?streaming= out")
        ids = column(dataset, "image_id")
        parts = dataset.select_columns(["references"]).with_format("arrow")
        made = [parts[start : start + AT_ONCE]["references"].combine_chunks() for start in range(0, len(ids), AT_ONCE)]
        lists = pa.concat_arrays(made) if made else pa.array([], pa.list_(pa.string()))
    rows = pc.list_parent_indices(lists).cast(pa.int64())
    texts_of = lists.flatten().cast(pa.large_string())
    numbers = pa.array(np.arange(len(rows)))
    table = pa.table([rows, numbers, rows, texts_of], schema=SCHEMA)
    if (path := _json_lines(source)) is not None:
        table = _numbers_of_lines(path, ids, table)
    return pa.chunked_array([pa.array(ids, pa.string())]), table, about
