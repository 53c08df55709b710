"""Caption files of the field, each read into `Entry` rows: an image's id, its file name and its references.

COCO captions JSON, Karpathy's dataset_*.json, Flickr8k.token.txt, Kaggle's captions.txt, Flickr30k's results.csv,
JSONL, a JSON list of results, and a JSON object {id: caption or captions}. No image is opened here.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from captune.data.images import IMAGE_SUFFIXES
from captune.data.paths import ImageFolder
from captune.errors import CaptionFileError, CaptuneError, SourceError
from captune.utils.files import jsonl_rows, read_file, read_json, uncollected
from captune.utils.skipped import skip
from captune.utils.tables import QUOTES, header_of, refuse_repeated, rows_of

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
KEPT = ("scene", "alt_text", "objects")  # columns besides that scorers read
TEXT_SUFFIXES = frozenset((".txt", ".csv", ".tsv", ".token"))


MISSING = frozenset(("nan", "null", "none", "<na>", "n/a", "#n/a"))
"""What spreadsheets and pandas write for a cell without a value, in lower case; no caption is one of these words."""

LONGEST_MISSING = max(map(len, MISSING))
TOKEN = re.compile(r"[^\t]+#\d+\t")
"""How a line of Flickr8k.token.txt begins."""

BLANK = "references that are blank or a word for a missing value"
HALF = "references with half a character, which is no text in UTF-8"
"""JSON can hold a lone surrogate; no table of images, tokenizer or trainer can."""


class Entry(NamedTuple):
    """One image of a caption file.

    Attributes:
        image_id: its id, in Unicode's composed form (NFC).
        name: its file, relative to the image folder; None: only the id is known.
        references: its captions.
        number: the line or the entry that names it first.
        kept: what stands there of the columns `KEPT`; None: nothing.
    """

    image_id: str
    name: str | None
    references: list[str]
    number: int = 0
    kept: dict[str, Any] | None = None


def read_entries(path: Path, split: str | None = None) -> list[Entry]:
    """Return the images that a caption file names, in file order, each once with all its references.

    A reference that is blank, or a word for a missing value such as NaN, is left out and counted.

    Raises:
        SourceError: if the file has no known format, is not read whole, or has no such split.
    """
    try:
        with uncollected():
            return _read(path, split)
    except CaptionFileError as error:
        raise SourceError(str(error)) from error


def _read(path: Path, split: str | None) -> list[Entry]:
    suffix = path.suffix.lower()
    noun = "line"
    if suffix in TEXT_SUFFIXES:
        entries: Iterable[Entry] = _read_text(path)
    elif suffix in (".jsonl", ".ndjson"):
        entries = _read_jsonl(path)
    else:
        noun = "entry"
        entries, split = _read_json(path, split)
    if split is not None:
        raise SourceError(f"{path} has no splits; leave ?split={split} out")
    return _merge(path, noun, entries)


def _merge(path: Path, noun: str, entries: Iterable[Entry]) -> list[Entry]:
    merged: dict[str, Entry] = {}
    written: dict[str, str] = {}  # ids that are not ASCII, as they were written
    blanks = Blanks()
    for entry in entries:
        image_id, name, references, number, _ = entry
        if not (image_id.isascii() and (name is None or name.isascii())):
            composed = nfc(image_id)
            if written.setdefault(composed, image_id) != image_id:
                raise SourceError(
                    f"{path}, {noun} {number}: the id {image_id!r} is written in two Unicode forms that look the same "
                    f"(the other in {noun} {merged[composed].number}); write it in one"
                )
            image_id, name = composed, None if name is None else nfc(name)
            entry = entry._replace(image_id=image_id, name=name)
        if (len(references) != 1 or len(references[0]) <= LONGEST_MISSING) and blanks.remove(references):
            blanks.note(f"{path}, {noun} {number}")
        first = merged.setdefault(image_id, entry)
        if first is not entry:
            if name != first.name:
                raise SourceError(
                    f"{path}, {noun} {number}: two images share the image_id {image_id!r}: {first.name} "
                    f"({noun} {first.number}) and {name}"
                )
            known = first.kept or {}
            for column, value in (entry.kept or {}).items():
                if known.get(column) is not None and not same_values(known[column], value):
                    raise SourceError(
                        f"{path}, {noun} {number}: {image_id!r} has other {column} than in {noun} {first.number}; put "
                        "all of an image's into one"
                    )
            more = {column: value for column, value in (entry.kept or {}).items() if known.get(column) is None}
            if more:
                merged[image_id] = first._replace(kept=known | more)
            first.references.extend(references)
    blanks.say()
    return list(merged.values())


def same_values(one: Any, other: Any) -> bool:
    """Return whether two rows of an image say the same of it: one says nothing, or lists differ in their order."""
    if isinstance(one, list) and isinstance(other, list):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    return None in (one, other) or bool(one == other)


def nfc(text: str) -> str:
    """Return a text in Unicode's composed form: file systems write the same name in one form or the other."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_utf8(text: str) -> bool:
    """Whether a text holds no half of a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_said(text: str) -> bool:
    """Return whether a reference is kept: it is not blank, no word for a missing value, and whole in Unicode."""
    return bool(text) and text.lower() not in MISSING and is_utf8(text)


class Blanks:
    """Counts the references of one source that are left out because they say nothing."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def remove(self, references: list[str]) -> bool:
        """Remove blank references and words for missing values from a list; return whether there were any."""
        if not references or len(min(references, key=len)) > LONGEST_MISSING:
            return False
        kept = [text for text in references if text and text.lower() not in MISSING]
        removed = len(references) - len(kept)
        self.count += removed
        references[:] = kept
        return removed > 0

    def note(self, place: str) -> None:
        """Remember the first place."""
        self.first = self.first or place

    def say(self) -> None:
        """Count them for the end of the command."""
        if self.count:
            skip(BLANK, self.first, self.count)


def as_references(value: Any) -> list[str]:
    """Return a caption, a list of captions, or a list of {"raw": caption} as a list of strings.

    A value that is not there (None) is a blank caption, which `Blanks` removes.

    Raises:
        SourceError: for anything else.
    """
    if isinstance(value, str):
        return [value.strip()]
    if value is None:
        return [""]
    if isinstance(value, dict):
        key = next((key for key in ("raw", "caption", "text") if key in value), None)
        if key is None:
            raise SourceError(f"expected a caption, found an object with {', '.join(map(str, value)) or 'nothing'}")
        return as_references(value[key])
    if isinstance(value, bytes):
        try:
            return [value.decode("utf-8").strip()]
        except UnicodeDecodeError as error:
            raise SourceError(f"a caption is not UTF-8 text: {error}") from error
    if isinstance(value, Iterable):
        return [reference for item in value for reference in as_references(item)]
    raise SourceError(f"expected a caption or a list of captions, found {type(value).__name__}")


def references_at(value: Any, place: str) -> list[str]:
    """Return `as_references` of a value; an error names its place."""
    try:
        return as_references(value)
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from error


def as_id(value: Any, place: str) -> str:
    """Return an id as a string.

    Raises:
        SourceError: for one that is missing, blank, or neither a string nor a number; it names the place.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise SourceError(f"{place}: {'has no id' if value in (None, '') else f'{value!r} is no id'}; give the image one")


def as_name(value: Any, key: str, place: str) -> str:
    """Return a file name.

    Raises:
        SourceError: for anything else; it names the place.
    """
    if isinstance(value, str) and value.strip():
        return value
    raise SourceError(f"{place}: {key!r} must be a file name, not {value!r}")


def first_key(keys: Iterable[str], known: tuple[str, ...]) -> str | None:
    """Return the first of ``known`` that is among ``keys``."""
    present = set(keys)
    return next((key for key in known if key in present), None)


# ---------------------------------------------------------------- text tables


def _read_text(path: Path) -> Iterator[Entry]:
    try:
        text = read_file(path, error=SourceError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: {error}") from error
    return text_entries(path, text)


def text_entries(path: Path, text: str) -> Iterator[Entry]:
    """Return an entry for each row of a caption table whose text has been read, blank captions too."""
    first = text.partition("\n")[0]
    if TOKEN.match(first):
        return _read_token(path, text)
    for delimiter in "|\t,;":
        # Flickr30k's results.csv quotes nothing: its captions hold lone quotation marks
        plain = delimiter == "|" and "| " in first
        options: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": True}
        options["quoting"] = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
        header = header_of(text, **options)
        image, caption = first_key(header, (*IMAGE_KEYS, *ID_KEYS)), first_key(header, REFERENCE_KEYS)
        if image is not None and caption is not None:
            # "id" beside a file may number the captions, as COCO's does: an image would fall apart into five
            ids = [key for key in ID_KEYS if key != "id"] if image in IMAGE_KEYS else []
            own = first_key(header, tuple(ids)) or image
            refuse_repeated(path, header, (image, own, caption), SourceError)
            rows = _read_table(path, text, options, header.index(image), header.index(own), header.index(caption))
            return (row._replace(name=None) for row in rows) if image in ID_KEYS else rows
    raise SourceError(
        f"{path} is not a known caption table: expected lines 'name.jpg#0<tab>caption' (Flickr8k), a header "
        f"'image,caption' or 'image_id,caption' (CSV) or 'image_name| comment_number| comment' (Flickr30k); "
        f"it begins {first[:80]!r}"
    )


def _read_token(path: Path, text: str) -> Iterator[Entry]:
    """Flickr8k.token.txt: ``name.jpg#0<tab>caption``."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        key, tab, caption = line.rstrip("\r").partition("\t")
        name, mark, index = key.rpartition("#")
        if not tab or not mark or not index.isdecimal() or not name.strip():
            raise SourceError(f"{path}, line {number}: expected 'name.jpg#0<tab>caption', found {line[:80]!r}")
        yield Entry(name, name, [caption.strip()], number)


def _read_table(path: Path, text: str, options: dict[str, Any], image: int, own: int, caption: int) -> Iterator[Entry]:
    plain = options["quoting"] == csv.QUOTE_NONE

    def mend(row: list[str]) -> list[str]:  # one row of results.csv lacks the mark before its comment
        return [row[0], *re.split(r"\s+", row[1].strip(), maxsplit=1)] if plain and len(row) == 2 else row

    for number, lines, row in rows_of(path, text, SourceError, mend=mend, **options):
        refuse_swallowed(path, number, lines, row, image, options["delimiter"], SourceError)
        name = row[image].strip()
        if not name or "\n" in name:
            raise SourceError(f"{path}, line {number}: expected an image's file name, found {name!r}")
        image_id = name if own == image else as_id(row[own].strip(), f"{path}, line {number}")
        yield Entry(image_id, name, [row[caption].strip()], number)


def refuse_swallowed(
    path: Path, number: int, lines: int, row: list[str], image: int, delimiter: str, error: type[CaptuneError]
) -> None:
    """Refuse a row of several lines one of which looks like a row: a lone quotation mark swallows what follows.

    Args:
        path: of the table, for errors.
        number: of the row's first line.
        lines: how many it has.
        row: its cells.
        image: which of them names the image.
        delimiter: what stands between cells.
        error: what is raised.
    """
    if lines == 1:
        return
    kind = _kind(row[image])
    for cell in row:
        for line, text in enumerate(cell.split("\n")[1:], start=1):
            cells = [part.strip().strip('"') for part in text.split(delimiter)]
            alike = len(cells) > max(image, 1) and _kind(cells[image]) == kind
            if alike and (kind == "file" or len(cells) == len(row)):
                raise error(
                    f"{path}, line {number}: a quotation mark opens a cell there and closes it in line "
                    f"{number + lines - 1}, and line {number + line} between them looks like a row of its own; put "
                    f"caption and marks right: {QUOTES}"
                )


def is_image_name(name: str) -> bool:
    """Return whether a cell is the name of an image file, by its suffix."""
    return os.path.splitext(name.strip())[1].lower() in IMAGE_SUFFIXES


def _kind(name: str) -> str:
    return "file" if is_image_name(name) else "number" if name.strip().isdecimal() else "text"


# ----------------------------------------------------------------------- JSON


def _read_jsonl(path: Path) -> Iterator[Entry]:
    return _row_entries(jsonl_rows(path, whole=True), path, "line")


def _row_entries(rows: Iterable[tuple[int, dict[str, Any]]], path: Path, noun: str) -> Iterator[Entry]:
    """The images of numbered objects.

    Raises:
        SourceError: a file stands under two ids of the name "id", which may number captions.
    """
    files: dict[str, Entry] = {}  # the first of each
    for number, row in rows:
        entry = row_entry(row, path, noun, number)
        if "id" in row and entry.name is not None and first_key(row, ID_KEYS) == "id":
            other = files.setdefault(entry.name, entry)
            if other.image_id != entry.image_id:
                raise two_ids(
                    f"{path}: {noun} {other.number} and {noun} {number}", entry.name, other.image_id, entry.image_id,
                    file="leave them out", own="call them image_id",
                )  # fmt: skip
        yield entry


def two_ids(rows: str, name: str, first: str, second: str, *, file: str, own: str) -> SourceError:
    """Return the refusal of a file that stands under two ids of the name "id", which may number captions.

    Args:
        rows: the places of both.
        name: the file.
        first: its id in one.
        second: its id in the other.
        file: how the file becomes the image's id.
        own: how it is said that the ids are those of images.
    """
    return SourceError(
        f"{rows} name the file {name} under the ids {first!r} and {second!r}, so that one image would be two; if the "
        f"ids number captions, let the file be the image's id: {file}; if they number images, {own}"
    )


def row_entry(row: dict[str, Any], path: Path, noun: str, number: int) -> Entry:
    """Return the image of an object in JSON, blank captions too.

    Args:
        row: the object.
        path: of the file, for errors.
        noun: what the file calls it.
        number: its place.

    Raises:
        SourceError: it has no image and no id.
    """
    image_key, id_key, reference_key = (first_key(row, keys) for keys in (IMAGE_KEYS, ID_KEYS, REFERENCE_KEYS))
    if reference_key and not row[reference_key]:  # an empty list beside a caption
        reference_key = first_key((key for key in row if row[key]), REFERENCE_KEYS) or reference_key
    name = row[image_key] if image_key else None
    if isinstance(name, dict):
        name = name.get("path")
    if image_key and not (isinstance(name, str) and name):
        as_name(name, image_key, f"{path}, {noun} {number}")
    image_id = row[id_key] if id_key else name
    if not (isinstance(image_id, str) and image_id):
        if id_key is None:
            raise SourceError(
                f"{path}, {noun} {number}: needs an 'image' or an 'image_id'; it has {', '.join(row) or 'nothing'}"
            )
        image_id = as_id(image_id, f"{path}, {noun} {number}")
    value = row[reference_key] if reference_key else []
    references = [value.strip()] if isinstance(value, str) else references_at(value, f"{path}, {noun} {number}")
    kept = None if row.keys().isdisjoint(KEPT) else {key: row[key] for key in KEPT if key in row}
    return Entry(image_id, name, references, number, kept)


def _read_json(path: Path, split: str | None) -> tuple[Iterable[Entry], str | None]:
    """The entries, and the split if the format has none."""
    content = read_json(path, error=SourceError)
    if isinstance(content, list):
        for number, row in enumerate(content, start=1):
            if not isinstance(row, dict):
                raise SourceError(f"{path}, entry {number}: expected an object with 'image_id' and 'caption'")
        return _row_entries(enumerate(content, start=1), path, "entry"), split
    if not isinstance(content, dict):
        raise SourceError(f"{path}: expected COCO or Karpathy captions, a list of results or {{id: caption}}")
    images: Any = content.get("images")
    annotations = content.get("annotations")
    listed = isinstance(images, list) and all(isinstance(image, dict) for image in images)
    if listed and isinstance(annotations, list):
        return _read_coco(path, images, annotations), split
    if listed and images and "sentences" in images[0]:
        return _read_karpathy(path, images, split), None
    if listed and "annotations" not in content:  # COCO's image_info files, without captions
        return _read_coco(path, images, []), split
    entries = []
    for number, (key, value) in enumerate(content.items(), start=1):
        if isinstance(value, str) and key:
            entries.append(Entry(key, None, [value.strip()], number))
            continue
        place = f"{path}, entry {number} ({key!r})"
        rows = value if isinstance(value, list) else [value]
        if any(isinstance(row, dict) and (row.keys() & {*ID_KEYS, *IMAGE_KEYS}) for row in rows):
            known = "COCO captions have the lists 'images' and 'annotations', Karpathy's have 'images'"
            raise SourceError(f"{place}: expected an image's captions, found a list of rows; {known}")
        entries.append(Entry(as_id(key, place), None, references_at(value, place), number))
    return entries, split


def _read_coco(path: Path, images: list[dict[str, Any]], annotations: list[Any]) -> list[Entry]:
    """COCO captions; every image has an id of its own and a file name, every annotation belongs to one."""
    entries: dict[Any, Entry] = {}
    number = 0
    try:
        for number, image in enumerate(images, start=1):
            image_id, name = image["id"], image["file_name"]
            if not isinstance(name, str) or not name:
                as_name(name, "file_name", f"{path}, entry {number} of 'images'")
            text = str(image_id) if type(image_id) is int else as_id(image_id, f"{path}, entry {number} of 'images'")
            entry = Entry(text, name, [], number)
            if (first := entries.setdefault(image_id, entry)) is not entry:
                raise SourceError(
                    f"{path}: entries {first.number} and {number} of 'images' have the id {image_id}: {first.name} and "
                    f"{name}; give each its own"
                )
    except (KeyError, TypeError) as error:
        raise SourceError(
            f"{path}, entry {number} of 'images': not COCO captions: {error!r} is missing or of the wrong kind"
        ) from error
    for number, annotation in enumerate(annotations, start=1):
        try:
            if "caption" not in annotation:
                raise SourceError(f"{path} has COCO annotations without captions (instances?); use captions_*.json")
            references = entries[annotation["image_id"]].references
            if isinstance(caption := annotation["caption"], str):
                references.append(caption.strip())
            else:
                references.extend(references_at(caption, f"{path}, entry {number} of 'annotations'"))
        except (KeyError, TypeError) as error:
            place = f"{path}, entry {number} of 'annotations'"
            if isinstance(annotation, dict) and "image_id" in annotation:
                listed = f"a caption belongs to image {annotation['image_id']!r}, which is not listed"
                raise SourceError(f"{place}: {listed}") from error
            raise SourceError(f"{place}: not a COCO caption: {error!r} is missing or of the wrong kind") from error
    return list(entries.values())


def _read_karpathy(path: Path, images: list[dict[str, Any]], split: str | None) -> list[Entry]:
    """image_id is COCO's id where there is one (as in COCO's results), else the file name."""
    wanted = set(re.split(r"[ +,]", split)) if split else None  # "+" in a query may arrive as a blank
    entries: dict[str, Entry] = {}
    splits = set()
    for number, image in enumerate(images, start=1):
        place = f"{path}, entry {number} of 'images'"
        splits.add(str(image.get("split")))
        if wanted is not None and image.get("split") not in wanted:
            continue
        name = as_name(image.get("filename"), "filename", place)
        image_id = as_id(image.get("cocoid", name), place)
        if image.get("filepath"):
            name = f"{image['filepath']}/{name}"
        if "sentences" not in image:
            raise SourceError(f"{place}: 'sentences' is missing")
        entry = Entry(image_id, name, references_at(image["sentences"], place), number)
        if (first := entries.setdefault(image_id, entry)) is not entry:
            raise SourceError(
                f"{path}: entries {first.number} and {number} of 'images' have the id {image_id}: {first.name} and "
                f"{name}; give each its own"
            )
    if wanted is not None and wanted - splits:
        known = ", ".join(sorted(splits))
        raise SourceError(f"{path} has no split {split!r}; it has {known} (several: ?split=train+restval)")
    return list(entries.values())


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
        if folder.is_dir() and any(_is_there(folder, entry.name or entry.image_id) for entry in probe):
            return folder
    bare = {entry.image_id for entry in probe if entry.name is None}  # ids without a suffix
    for folder in candidates:
        if bare and folder.is_dir() and bare & _stems(folder).keys():
            return folder
    raise SourceError(
        f"{path}: its images (such as {probe[0].name or probe[0].image_id}) are not beside it, nor in images/ there; "
        f"name their folder: {path}?images=FOLDER"
    )


def _is_there(folder: Path, name: str) -> bool:
    return any((folder / form).is_file() for form in dict.fromkeys((name, unicodedata.normalize("NFD", name))))


def image_paths(path: Path, folder: Path, entries: list[Entry]) -> list[str]:
    """Return a path for each entry; a file that does not exist fails when it is opened.

    Args:
        path: the caption file.
        folder: that of the images.
        entries: what the file names.

    Raises:
        SourceError: for a path that leads out of the data's folder, or an id that two files answer to.
    """
    where = ImageFolder(path, folder, path.parent)
    stems = _stems(folder) if any(entry.name is None for entry in entries) else {}
    paths = []
    for image_id, name, _, number, _ in entries:
        if name is None:
            found = stems.get(image_id, [image_id])
            if len(found) > 1:
                raise SourceError(
                    f"{path}, entry {number}: the id {image_id!r} may be {' or '.join(found)} in {folder}; "
                    "write the name with its suffix"
                )
            name = found[0]
        file = where.path(name)
        if not name.isascii() and not os.path.exists(file):  # the file system may have the other Unicode form
            other = where.path(unicodedata.normalize("NFD", name))
            file = other if os.path.exists(other) else file
        paths.append(file)
    return paths


def _stems(folder: Path) -> dict[str, list[str]]:
    """Ids -> the files, of the images directly in a folder, whose name is that or that and a suffix."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(nfc(Path(name).stem), []).append(name)
    return stems | {nfc(name): [name] for name in names}
