"""What stands beside the references of a source, a value for each, such as a level or a weight."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captune.data.naming import Source
from captune.data.readers import ID_KEYS, IMAGE_KEYS, REFERENCE_KEYS, as_id, first_key, is_said, nfc, references_at
from captune.data.shards import shards_of
from captune.errors import SourceError
from captune.utils.files import jsonl_rows


def load_values(
    source: str, name: str, image_ids: Sequence[str], references: Sequence[Sequence[str]]
) -> list[list[Any]]:
    """Return a list of values for each image, one for each reference.

    Args:
        source: as written: JSON lines or parquet files, as `captune curate` writes them.
        name: the column: a value for each reference of an image, or one for all of them.
        image_ids: the images.
        references: theirs.

    Raises:
        SourceError: another kind of source, no such column, or a reference without a value.
    """
    found: dict[str, list[Any]] = {}
    for image_id, values in _rows(source, name):
        found.setdefault(image_id, []).extend(values)
    made = []
    for image_id, texts in zip(image_ids, references, strict=True):
        values = found.get(image_id, [])
        if len(values) != len(texts) or None in values:
            have = sum(value is not None for value in values)
            raise SourceError(
                f"{source}: image {image_id!r} has {len(texts)} captions and {have} values of {name}; each caption "
                "needs one"
            )
        made.append(values)
    return made


def _rows(source: str, name: str) -> Iterator[tuple[str, list[Any]]]:
    """(image_id, a value for each caption) of each row."""
    parsed = Source.parse(source)
    path = Path(parsed.where).expanduser()
    if path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, row in jsonl_rows(path, whole=True):
            if name not in row:
                raise SourceError(f"{path}, line {number} has no {name!r}; it has {', '.join(row)}")
            key = first_key(row, (*ID_KEYS, *IMAGE_KEYS))
            place, said = f"{path}, line {number}", first_key(row, REFERENCE_KEYS)
            values = _of_captions(row[name], row[said] if said else [], place)
            yield nfc(as_id(row[key] if key else None, place)), values
        return
    files = [] if parsed.scheme is not None else shards_of(parsed.where)
    if not files or not files[0].lower().endswith(".parquet"):
        raise SourceError(
            f"{source}: the column {name!r} is read from JSON lines or parquet files, such as curate writes"
        )
    import pyarrow.parquet as pq

    for file in files:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            own = parsed.id or first_key([one for one in names if one not in IMAGE_KEYS], ID_KEYS)
            column = parsed.caption or first_key(names, REFERENCE_KEYS)
            if name not in names or own is None or column is None:
                raise SourceError(
                    f"{file} needs the columns image_id, references and {name}; it has {', '.join(names)}"
                )
            for batch in table.iter_batches(columns=[own, column, name]):
                for row in batch.to_pylist():
                    yield nfc(as_id(row[own], file)), _of_captions(row[name], row[column], file)


def _of_captions(values: Any, captions: Any, place: str) -> list[Any]:
    """A value for each caption that sources keep: those of blank ones are left out with them."""
    kept = [is_said(text) for text in references_at(captions, place)]
    if not isinstance(values, list):
        return [values] * sum(kept)
    return list(itertools.compress(values, kept)) if len(values) == len(kept) else values
