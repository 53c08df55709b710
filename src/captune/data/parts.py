"""A folder of caption parts, as `captune caption --engine ray` writes it: manifest.json says which parts make it."""

from __future__ import annotations

from typing import Any

from captune.errors import CaptionFileError, SettingError
from captune.utils.files import parse_json

MANIFEST = "manifest.json"
#: the formats that parts are written in, and the ends of their names
PARTS = {"jsonl": ".jsonl", "parquet": ".parquet", "csv": ".csv", "webdataset": ".tar"}


def parts_format(name: str | None, default: str = "jsonl") -> str:
    """Return the format of parts; SettingError for one that they are not written in."""
    if name is not None and name not in PARTS:
        raise SettingError(f"parts are written as {', '.join(PARTS)}, not as {name}")
    return name or default


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
