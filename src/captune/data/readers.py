"""Caption files of the field, each read into `Entry` rows: an image's id, its file name and its references.

COCO captions JSON, Karpathy's dataset_*.json, Flickr8k.token.txt, Kaggle's captions.txt, Flickr30k's results.csv,
JSONL, a JSON list of results, and a JSON object {id: caption or captions}. No image is opened here.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from captune.data.images import IMAGE_SUFFIXES
from captune.errors import CaptionFileError, SourceError
from captune.utils.files import read_jsonl

logger = logging.getLogger(__name__)

ID_KEYS = ("image_id", "id", "cocoid", "imgid", "img_id", "__key__")
IMAGE_KEYS = ("image", "image_path", "file_name", "filename", "file", "filepath", "image_name", "img", "path")
REFERENCE_KEYS = (
    "references",
    "captions",
    "caption",
    "sentences_raw",
    "sentences",
    "comment",
    "raw",
    "text",
    "txt",
    "answer",
)
TEXT_SUFFIXES = frozenset((".txt", ".csv", ".tsv", ".token"))


class Entry(NamedTuple):
    """One image of a caption file: ``name`` is its file, relative to the image folder (None: only the id is known)."""

    image_id: str
    name: str | None
    references: list[str]


def read_entries(path: Path, split: str | None = None) -> list[Entry]:
    """Return the images that a caption file names, in file order, each once with all its references.

    Raises:
        SourceError: if the file has no known format, or no such split.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in TEXT_SUFFIXES:
            entries: Iterable[Entry] = _read_text(path)
        elif suffix in (".jsonl", ".ndjson"):
            entries = _read_jsonl(path)
        else:
            entries, split = _read_json(path, split)
    except CaptionFileError as error:
        raise SourceError(str(error)) from error
    if split is not None:
        raise SourceError(f"{path} has no splits; leave ?split={split} out")
    return _merge(entries)


def _merge(entries: Iterable[Entry]) -> list[Entry]:
    merged: dict[str, Entry] = {}
    for entry in entries:
        if entry.image_id in merged:
            if entry.name != merged[entry.image_id].name:
                raise SourceError(
                    f"two images share the image_id {entry.image_id!r}: {merged[entry.image_id].name} and {entry.name}"
                )
            merged[entry.image_id].references.extend(entry.references)
        else:
            merged[entry.image_id] = entry
    return list(merged.values())


def as_references(value: Any) -> list[str]:
    """Return a caption, a list of captions, or a list of {"raw": caption} as a list of strings; None gives none."""
    if value is None:
        return []
    if isinstance(value, dict):
        value = next((value[key] for key in ("raw", "caption", "text") if key in value), None)
        return as_references(value)
    if isinstance(value, str):
        return [value.strip()]
    if isinstance(value, bytes):
        return [value.decode("utf-8", "replace").strip()]
    if isinstance(value, Iterable):
        return [reference for item in value for reference in as_references(item)]
    raise SourceError(f"expected a caption or a list of captions, found {type(value).__name__}")


def first_key(keys: Iterable[str], known: tuple[str, ...]) -> str | None:
    """Return the first of ``known`` that is among ``keys``."""
    present = set(keys)
    return next((key for key in known if key in present), None)


# ---------------------------------------------------------------- text tables


def _read_text(path: Path) -> Iterator[Entry]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: {error}") from error
    first = text.split("\n", 1)[0]
    if re.match(r"[^\t]+#\d+\t", first):
        return _read_token(path, text)
    delimiter = next((mark for mark in ("|", "\t", ",") if mark in first), None)
    header = [cell.strip().lower() for cell in first.strip().split(delimiter)] if delimiter else []
    image, caption = first_key(header, IMAGE_KEYS), first_key(header, REFERENCE_KEYS)
    if delimiter is None or image is None or caption is None:
        raise SourceError(
            f"{path} is not a known caption table: expected lines 'name.jpg#0<tab>caption' (Flickr8k), a header "
            f"'image,caption' (CSV) or 'image_name| comment_number| comment' (Flickr30k); it begins {first[:80]!r}"
        )
    return _read_table(path, text, delimiter, header.index(image), header.index(caption))


def _read_token(path: Path, text: str) -> Iterator[Entry]:
    """Flickr8k.token.txt: ``name.jpg#0<tab>caption``."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        key, tab, caption = line.rstrip("\r").partition("\t")
        name, mark, index = key.rpartition("#")
        if not tab or not mark or not index.isdecimal():
            raise SourceError(f"{path}, line {number}: expected 'name.jpg#0<tab>caption', found {line[:80]!r}")
        yield Entry(name, name, [caption.strip()])


def _read_table(path: Path, text: str, delimiter: str, image: int, caption: int) -> Iterator[Entry]:
    """A table with a header. With "|" nothing is quoted (Flickr30k's captions hold lone quotation marks)."""
    quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    # newline="\n": only line feeds end a row, whatever else a caption holds
    rows = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, quoting=quoting)
    next(rows)
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if delimiter == "|" and len(row) == 2:  # one row of results.csv lacks the mark before its comment
                row = [row[0], *re.split(r"\s+", row[1].strip(), maxsplit=1)]
            if len(row) <= max(image, caption):
                raise SourceError(f"{path}, line {rows.line_num}: expected an image and a caption, found {row!r}")
            text_parts = row[caption:] if caption == len(row) - 1 or delimiter == "|" else row[caption : caption + 1]
            name = row[image].strip()
            yield Entry(name, name, [delimiter.join(text_parts).strip()])
    except csv.Error as error:
        raise SourceError(f"{path}, line {rows.line_num}: {error}") from error


# ----------------------------------------------------------------------- JSON


def _read_jsonl(path: Path) -> Iterator[Entry]:
    for number, row in enumerate(read_jsonl(path), start=1):
        yield _row_entry(row, f"{path}, line {number}")


def _row_entry(row: dict[str, Any], place: str) -> Entry:
    image_key, id_key, reference_key = (first_key(row, keys) for keys in (IMAGE_KEYS, ID_KEYS, REFERENCE_KEYS))
    name = row[image_key] if image_key else None
    if isinstance(name, dict):
        name = name.get("path")
    if name is not None and not isinstance(name, str):
        raise SourceError(f"{place}: {image_key!r} must be a file name")
    image_id = row[id_key] if id_key else name
    if image_id is None:
        raise SourceError(f"{place}: needs an 'image' or an 'image_id'; it has {', '.join(row) or 'nothing'}")
    return Entry(str(image_id), name, as_references(row[reference_key]) if reference_key else [])


def _read_json(path: Path, split: str | None) -> tuple[Iterable[Entry], str | None]:
    """The entries, and the split if the format has none."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SourceError(f"{path} is not valid JSON: {error}") from error
    if isinstance(content, list):
        rows = [(row, f"{path}, entry {number}") for number, row in enumerate(content, start=1)]
        for row, place in rows:
            if not isinstance(row, dict):
                raise SourceError(f"{place}: expected an object with 'image_id' and 'caption'")
        return [_row_entry(row, place) for row, place in rows], split
    if not isinstance(content, dict):
        raise SourceError(f"{path}: expected COCO or Karpathy captions, a list of results or {{id: caption}}")
    images = content.get("images")
    if isinstance(images, list) and isinstance(content.get("annotations"), list):
        return _read_coco(path, images, content["annotations"]), split
    if isinstance(images, list) and images and "sentences" in images[0]:
        return _read_karpathy(path, images, split), None
    if isinstance(images, list):  # COCO's image_info files, without captions
        return _read_coco(path, images, []), split
    try:
        return [Entry(str(key), None, as_references(value)) for key, value in content.items()], split
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def _read_coco(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> list[Entry]:
    try:
        entries = {image["id"]: Entry(str(image["id"]), image["file_name"], []) for image in images}
        for annotation in annotations:
            if annotation["image_id"] not in entries:
                raise SourceError(f"{path}: a caption belongs to image {annotation['image_id']}, which is not listed")
            if "caption" not in annotation:
                raise SourceError(f"{path} has COCO annotations without captions (instances?); use captions_*.json")
            entries[annotation["image_id"]].references.extend(as_references(annotation["caption"]))
    except (KeyError, TypeError) as error:
        raise SourceError(f"{path}: not COCO captions: {error!r} is missing or of the wrong kind") from error
    return list(entries.values())


def _read_karpathy(path: Path, images: list[dict[str, Any]], split: str | None) -> list[Entry]:
    """image_id is COCO's id where there is one (as in COCO's results), else the file name."""
    wanted = set(re.split(r"[ +,]", split)) if split else None  # "+" in a query may arrive as a blank
    entries, splits = [], set()
    for image in images:
        splits.add(image.get("split"))
        if wanted is not None and image.get("split") not in wanted:
            continue
        name = image["filename"]
        if image.get("filepath"):
            name = f"{image['filepath']}/{name}"
        image_id = str(image.get("cocoid", image["filename"]))
        entries.append(Entry(image_id, name, as_references(image["sentences"])))
    if wanted is not None and wanted - splits:
        known = ", ".join(sorted(str(name) for name in splits))
        raise SourceError(f"{path} has no split {split!r}; it has {known} (several: ?split=train+restval)")
    return entries


# ---------------------------------------------------------------- image files


def find_image_folder(path: Path, entries: list[Entry], given: str | None) -> Path:
    """Return the folder that the entries' file names are relative to.

    Args:
        path: the caption file.
        entries: what it names.
        given: the folder, where the source names one; None: the usual places beside the file are tried.

    Raises:
        SourceError: if none of the first entries has its file in any of them.
    """
    if given is not None:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise SourceError(f"{path}: the image folder {folder} of ?images= does not exist")
        return folder
    beside = path.parent
    candidates = [beside]
    subset = re.search(r"(train|val|test)\d{4}", path.name)
    usual = ["images", "Images", "Flicker8k_Dataset", "flickr30k_images", "flickr30k-images", "val2014", "train2014"]
    for parent in (beside, beside.parent):
        names = [subset.group(0), f"images/{subset.group(0)}", *usual] if subset else usual
        candidates += [parent / name for name in names]
    candidates.append(beside.parent)
    probe = entries[:50]
    for folder in candidates:
        if folder.is_dir() and any((folder / (entry.name or entry.image_id)).is_file() for entry in probe):
            return folder
    bare = {entry.image_id for entry in probe if entry.name is None}  # ids without a suffix
    for folder in candidates:
        if bare and folder.is_dir() and bare & _stems(folder).keys():
            return folder
    raise SourceError(
        f"{path}: its images (such as {probe[0].name or probe[0].image_id}) are not beside it, nor in images/ there; "
        f"name their folder: {path}?images=FOLDER"
    )


def image_paths(folder: Path, entries: list[Entry]) -> list[str]:
    """Return a path for each entry; a file that does not exist fails when it is opened."""
    stems = _stems(folder) if any(entry.name is None for entry in entries) else {}
    paths = []
    for image_id, name, _ in entries:
        if name is None:
            name = stems.get(image_id, image_id)
        paths.append(str(folder / name))
    return paths


def _stems(folder: Path) -> dict[str, str]:
    """File names without their suffix -> file names, of the images directly in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return {Path(name).stem: name for name in reversed(names)} | {name: name for name in names}
