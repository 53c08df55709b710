"""A folder of caption parts, as `captune caption --engine ray` writes it: manifest.json says which parts make it."""

from __future__ import annotations

from typing import Any

from captune.errors import CaptionFileError, SettingError
from captune.utils.files import parse_json

MANIFEST = "manifest.json"
WINDOW = 16  # batches that are sorted by size together, as in one process
#: the formats that parts are written in, and the ends of their names
PARTS = {"jsonl": ".jsonl", "parquet": ".parquet", "csv": ".csv", "webdataset": ".tar"}


def parts_format(name: str | None, default: str = "jsonl") -> str:
    """Return the format of parts; SettingError for one that they are not written in."""
    if name is not None and name not in PARTS:
        raise SettingError(f"parts are written as {', '.join(PARTS)}, not as {name}")
    return name or default


def check_part_size(size: int | None, batch_size: int) -> None:
    """Raise SettingError for a size that is no whole number of windows; None is the default."""
    rows = WINDOW * batch_size
    if size is not None and (size < 1 or size % rows):
        raise SettingError(
            f"a part of {size} images is no whole number of windows of {WINDOW} batches: take a multiple of {rows}, as "
            f"{max(1, round(size / rows)) * rows}, so that the batches are those of one process"
        )


def read_manifest(content: bytes, name: str) -> dict[str, Any]:
    """Read a manifest.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        CaptionFileError: it is another kind of file, or of another format.
    """
    manifest = parse_json(content, name)
    if not isinstance(manifest, dict) or manifest.get("kind") != "caption parts":
        raise CaptionFileError(f"{name} is no manifest of caption parts; name another folder")
    if manifest.get("format") != 1:
        raise CaptionFileError(f"{name} has format {manifest.get('format')}; this captune reads 1")
    if not {"complete", "part_format", "part_size"} <= manifest.keys():
        raise CaptionFileError(f"{name} does not say what its parts are; make it again with --overwrite")
    return manifest
