"""The curated set as a source that every verb reads.

| format | file | what it holds |
|---|---|---|
| jsonl | captions.jsonl | a line per image: image (a path), image_id, references, and a list per column |
| parquet | captions.parquet | the same, with the images themselves |
| coco, csv, tsv, metadata, webdataset | captions.* | one caption per image, as `captune convert` writes them |

A list of a column has a number for each reference, null where one is missing.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captune.curation.base import Captions
from captune.data.caption_formats import FORMATS, write_captions
from captune.data.columns import undecoded
from captune.data.images import read_image
from captune.errors import BadImage, CurationError, UsageError
from captune.utils.files import jsonl_line, replacing
from captune.utils.registry import nearest
from captune.utils.wording import counted

NAMES = {
    "jsonl": "captions.jsonl",
    "parquet": "captions.parquet",
    "coco": "captions.json",
    "csv": "captions.csv",
    "tsv": "captions.tsv",
    "metadata": "metadata.jsonl",
    "webdataset": "captions.tar",
}
NO_IMAGES = ("coco", "csv", "tsv")  # name images, and hold none
_IMAGES = 256  # of a row group with images
logger = logging.getLogger(__name__)


def check_format(format: str | None) -> None:
    """Raise UsageError for a format that sets are not written in."""
    if format is not None and format not in NAMES:
        raise UsageError(f"--format: {nearest(format, NAMES, 'format')}")


def write_set(captions: Captions, folder: Path, format: str | None, no_images: str | None) -> dict[str, Any]:
    """Write the set into a folder, in one step.

    Args:
        captions: what is left.
        folder: receives the file.
        format: a name of `NAMES`; None: as the images are.
        no_images: why the source has no images; None: it has.

    Returns:
        ``file``, its name, and ``images``, the folder that its image paths are relative to, where they are paths.

    Raises:
        CurationError: the format holds one caption per image, or needs the images.
    """
    paths = None if no_images is not None else _paths(captions)
    if format is None:
        format = "jsonl" if no_images is not None or paths is not None else "parquet"
    root = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else None
    path = folder / NAMES[format]
    if format == "jsonl":
        if no_images is None and paths is None:
            raise CurationError(
                f"the images of {captions.source} are no files, which lines of JSON could name: --format parquet"
            )
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for row, line in _lines(captions):
                named = {"image": os.path.relpath(paths[row], root)} if paths else {}
                file.write(jsonl_line({**named, **line}))
    elif format == "parquet":
        _write_parquet(captions, path, with_images=no_images is None)
    else:
        _write_single(captions, path, format, no_images)
    made: dict[str, Any] = {"file": path.name}
    if root is not None and format in ("jsonl", "coco", "csv", "tsv", "metadata"):
        made["image folder"] = root
    if format not in ("jsonl", "parquet"):
        lost = list(captions.columns)
        lost += (
            ["the images, which are no files"] if no_images is None and paths is None and format in NO_IMAGES else []
        )
        if lost:
            made["left out"] = lost
            logger.warning("%s has no place for %s; parquet has", path.name, ", ".join(lost))
    return made


def _lines(captions: Captions) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row of the image, {image_id, references, and a list per column}) of each image."""
    names = captions.columns
    for start, stop in captions.parts(16_384):
        texts = captions.texts(start, stop)
        columns = {name: captions.column(name)[start:stop].tolist() for name in names}
        own = captions.starts[(captions.starts >= start) & (captions.starts <= stop)]
        rows = captions.rows[own[:-1]]
        ids = captions.image_ids.take(pa.array(rows)).to_pylist()
        for row, image_id, a, b in zip(rows.tolist(), ids, own[:-1] - start, own[1:] - start, strict=True):
            made = {"image_id": image_id, "references": texts[a:b]}
            for name, values in columns.items():
                made[name] = [_plain(value) for value in values[a:b]]
            yield row, made


def _plain(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 2**53 else value


def _paths(captions: Captions) -> dict[int, str] | None:
    """{row: absolute path} of the set's images; None where one is no file."""
    from datasets import Image

    rows = captions.rows[captions.starts[:-1]]
    dataset = undecoded(captions.images)
    if not isinstance((dataset.features or {}).get("image"), Image):
        return None
    images = dataset.select_columns(["image"]).with_format("arrow")
    found: dict[int, str] = {}
    for start in range(0, len(rows), 10_000):
        part = rows[start : start + 10_000]
        values = images[part.tolist()]["image"].combine_chunks()
        if values.field("bytes").null_count < len(values):
            return None
        for row, path in zip(part.tolist(), values.field("path").to_pylist(), strict=True):
            if path is None:
                return None
            found[row] = os.path.abspath(path)
    return found


def _write_parquet(captions: Captions, path: Path, *, with_images: bool) -> None:
    dataset = undecoded(captions.images) if with_images else None
    kept = [name for name in ("scene",) if dataset is not None and name in dataset.column_names]
    fields = [
        *([pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()}))] if with_images else []),
        pa.field("image_id", pa.string()),
        pa.field("references", pa.list_(pa.large_string())),
        *(pa.field(name, pa.list_(pa.float64())) for name in captions.columns),
        *(pa.field(name, pa.string()) for name in kept),
    ]
    schema = pa.schema(fields)
    size = _IMAGES if with_images else 16_384
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row, line in _lines(captions):
            if dataset is not None:
                values = dataset[row]
                try:
                    data = read_image(values["image"], line["image_id"])
                except BadImage as error:
                    raise _unreadable(path, error) from error
                named = values["image"].get("path") if isinstance(values["image"], dict) else None
                line["image"] = {"bytes": data, "path": Path(named).name if named else None}
                line |= {name: values[name] for name in kept}
            batch.append(line)
            if len(batch) == size:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema))


def _write_single(captions: Captions, path: Path, format: str, no_images: str | None) -> None:
    """One caption per image, in a format of caption files."""
    several = np.flatnonzero(np.diff(captions.starts) > 1)
    if len(several):
        image_id = captions.image_ids[int(captions.rows[captions.starts[several[0]]])].as_py()
        raise CurationError(
            f"{path.name} holds one caption per image, and {counted(len(several), 'image has', 'images have')} more, "
            f"such as {image_id!r}: run again with --format jsonl or parquet, which takes the steps as they are done, "
            "or filter with best 1"
        )
    texts = {line["image_id"]: line["references"][0] for _, line in _lines(captions)}
    images: dict[str, Any] = {}
    if format in ("webdataset", "metadata"):
        if no_images is not None:
            raise CurationError(f"{path.name} needs the images: {no_images}")
        dataset = undecoded(captions.images)
        rows = captions.rows[captions.starts[:-1]].tolist()
        images = {image_id: _Lazy(dataset, row) for image_id, row in zip(texts, rows, strict=True)}
        images = _Opened(images)
    try:
        write_captions(texts, path, images=images, format="csv" if format == "tsv" else FORMATS[format].name)
    except BadImage as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BadImage) -> CurationError:
    return CurationError(
        f"{error}; {path.name} holds the images: run again with --format jsonl, which names them and takes the steps "
        "as they are done, or with one step more that leaves out what cannot be opened, such as dedup of images"
    )


class _Lazy:
    def __init__(self, dataset: Any, row: int) -> None:
        self.dataset, self.row = dataset, row


class _Opened(dict[str, Any]):
    """Images that are read from their dataset when they are written, not all at once."""

    def __getitem__(self, key: str) -> Any:
        lazy = super().__getitem__(key)
        return lazy.dataset[lazy.row]["image"]

    def get(self, key: str, default: Any = None) -> Any:
        """Return an image, opened."""
        return self[key] if key in self else default  # noqa: SIM401 - dict.get does not open it
