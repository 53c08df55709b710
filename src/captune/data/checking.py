"""Finding images that are bad, or lack a caption, before a long job meets them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from captune.data.columns import column, image_sizes, undecoded
from captune.data.images import open_image, read_image
from captune.data.naming import Source
from captune.errors import BadImage, SourceError
from captune.utils.hashing import fingerprint
from captune.utils.progress import Bar
from captune.utils.skipped import skip
from captune.utils.wording import counted


def refuse_without_captions(source: str, lacking: Sequence[str]) -> None:
    """Raise SourceError where images of a source have no caption; says where these may stand."""
    if not lacking:
        return
    raise SourceError(
        f"{source}: no caption to learn from for {counted(len(lacking), 'image')}, the first is {lacking[0]!r}"
        f"{captions_in(source)}"
    )


def captions_in(source: str) -> str:
    """Say, for the end of a message, that a folder of images holds a table of captions, where it does."""
    folder = Path(Source.parse(source).where)
    tables = sorted(folder.glob("captions.*")) if folder.is_dir() else []
    return f"; their captions may stand in {tables[0]}, which is a source, too" if tables else ""


def sharing(dataset: Dataset, others: Dataset) -> list[int]:
    """Return the rows whose image is also one of others', byte for byte, whatever it is called there.

    Only images of equal size are read. Images that are drawn on access are not compared, nor those at an address.
    """
    if not all(isinstance((part.features or {}).get("image"), Image) for part in (dataset, others)):
        return []
    sizes: dict[int, list[int]] = {}
    for row, size in enumerate(image_sizes(others)):
        if size is not None:
            sizes.setdefault(size, []).append(row)
    rows = [(row, size) for row, size in enumerate(image_sizes(dataset)) if size in sizes]
    ours, theirs = (undecoded(part.select_columns(["image"])) if rows else part for part in (dataset, others))
    known: dict[int, set[str]] = {}
    found = []
    for row, size in rows:
        if size not in known:
            known[size] = {bytes_digest(theirs[other]["image"]) for other in sizes[size]} - {""}
        if bytes_digest(ours[row]["image"]) in known[size]:
            found.append(row)
    return found


def bytes_digest(image: Any) -> str:
    """Return 8 hex digits that change with an image's bytes; nothing where it cannot be read."""
    try:
        return fingerprint(read_image(image, ""))
    except BadImage:
        return ""


def without_bad(
    dataset: Dataset, *, progress: bool = True, workers: int | None = None
) -> tuple[Dataset, list[tuple[str, str]]]:
    """Open every image once, a few at a time, and leave out the bad ones, which are logged.

    Args:
        dataset: a source's; one whose `image` column does not hold files is returned unchanged.
        progress: show a progress bar.
        workers: threads; None: one per core, at most 8.

    Returns:
        The rows whose images open, and (image_id, why) of the others.
    """
    if not isinstance((dataset.features or {}).get("image"), Image):
        return dataset, []
    rows, ids = undecoded(dataset), column(dataset, "image_id")
    workers = workers or min(8, os.cpu_count() or 1)

    def why(index: int) -> str | None:
        try:
            open_image(rows[index]["image"], ids[index])
        except BadImage as error:
            return error.why
        return None

    bad: dict[int, str] = {}
    with (
        ThreadPoolExecutor(workers) as pool,
        Bar(total=len(ids), desc="checking images", unit="image", show=progress) as bar,
    ):
        indices: Any = iter(range(len(ids)))
        while piece := list(itertools.islice(indices, 64 * workers)):
            for index, reason in zip(piece, pool.map(why, piece), strict=True):
                if reason is not None:
                    bad[index] = reason
                    skip("images that cannot be opened", f"{ids[index]}: {reason}")
            bar.update(len(piece))
    if not bad:
        return dataset, []
    kept = [index for index in range(len(ids)) if index not in bad]
    return dataset.select(kept), [(ids[index], reason) for index, reason in bad.items()]
