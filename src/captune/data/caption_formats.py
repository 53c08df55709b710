"""The formats of caption files, each read and written by one small function, chosen by a file's name or by `--format`.

| format | file | one caption |
|---|---|---|
| jsonl | .jsonl, .ndjson | ``{"image_id": …, "caption": …}`` on a line |
| coco | .json | the same objects in a list, as COCO's tools read results |
| csv, tsv | .csv, .tsv | a row under the header ``image_id,caption`` |
| parquet | .parquet | a row with the columns image_id and caption |
| metadata | metadata.jsonl, metadata.csv | ``file_name`` and ``text``, as the ImageFolder of `datasets` reads them |
| webdataset | .tar | KEY.txt beside the image KEY.jpg |
| sidecars | a folder | NAME.txt beside the image NAME.jpg |
| parts | a folder with manifest.json | the parts that `captune caption --engine ray` writes; read only |

Reading gives ids as the file has them: of metadata the path to the image, of shards the key, the image's name without
its suffix. With the source of the images they are the source's.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from captune.data.folders import files_below
from captune.data.images import IMAGE_SUFFIXES, read_image
from captune.data.parts import MANIFEST, read_manifest
from captune.data.readers import ID_KEYS, IMAGE_KEYS, REFERENCE_KEYS, first_key
from captune.data.sidecars import (
    METADATA,
    SIDECARS,
    CaptionEntry,
    as_file,
    read_metadata,
    read_sidecar,
    read_table,
)
from captune.errors import CaptionFileError, UsageError
from captune.utils.files import is_stream, jsonl_line, jsonl_rows, output_path, read_json, replacing, write_csv
from captune.utils.registry import nearest
from captune.utils.skipped import Told, skip

if TYPE_CHECKING:
    from captune.data.places import Places


DOTS = Told("dots in names became _, as a webdataset key ends at the first dot")


#: what a stream takes: no file's name says it there, and text is captions alone
STREAMED = ("jsonl", "csv", "tsv", "text")


class Format(NamedTuple):
    """How captions stand in a file.

    Attributes:
        name: for `--format`.
        suffixes: of the files that have it.
        read: yields the entries of a file.
        write: writes {image_id: caption} to a temporary path beside the last argument, the file's own path; the
            images, undecoded, are there where the format holds them or names their files. None: only read here.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], Iterator[CaptionEntry]]
    write: Callable[[Path, Mapping[str, str], Mapping[str, Any], Path], None] | None


def format_of(path: str | os.PathLike[str], name: str | None = None, *, reading: bool = False) -> Format:
    """Return the format of a file, by its name.

    Args:
        path: the file or folder; it need not exist.
        name: a format's name, which decides.
        reading: a suffix that no format has, or none, is no error: the file is taken for JSON.

    Raises:
        UsageError: for an unknown format or suffix.
    """
    path = Path(path)
    if name is not None:
        if name not in FORMATS:
            offered = [one for one in FORMATS if reading or one != "parts"]
            raise UsageError(f"--format: {nearest(name, offered, 'format')}")
        return FORMATS[name]
    if path.name.lower() in METADATA:
        return FORMATS["metadata"]
    if path.is_dir():
        return FORMATS["parts" if (path / MANIFEST).is_file() else "sidecars"]
    suffix = path.suffix.lower()
    found = next((format for format in FORMATS.values() if suffix in format.suffixes), None)
    if found is None and not reading:
        known = " ".join(dict.fromkeys(ending for format in FORMATS.values() for ending in format.suffixes))
        what = "without a suffix" if suffix in ("", ".") else f"as {path.suffix}"
        stem = Path(path.stem.rstrip("."))
        stem = stem.with_suffix("") if stem.suffix.lower() in known.split() else stem  # such as x.json.gz
        raise UsageError(
            f"captions are written as {known} or metadata.jsonl, not {what}: name the output "
            f"{path.parent / stem}.jsonl, or say --format"
        )
    return found or FORMATS["jsonl"]


def output_format(path: str | os.PathLike[str], name: str | None = None) -> Format | None:
    """Return the format of captions that are to be written; None: lines into a stream.

    Args:
        path: the output, ``-`` for standard output.
        name: as in `format_of`; of a stream one of `STREAMED`.

    Raises:
        UsageError: an address, a device, an ending that no format has, or a path that cannot be written.
    """
    if is_stream(path):
        if name not in (None, *STREAMED):
            raise UsageError(f"{path} takes --format {', '.join(STREAMED[:-1])} or {STREAMED[-1]}; {name} needs a file")
        return None
    output_path(path, what="captions")
    chosen = format_of(path, name)
    if chosen.name == "sidecars":
        raise UsageError("sidecars are written with --sidecar .txt, without --output")
    if chosen.name == "parts":
        raise UsageError(f"{path} is a folder of caption parts, which --engine ray writes; name a file")
    return chosen


def write_captions(
    captions: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    images: Mapping[str, Any] | None = None,
    format: str | None = None,
) -> None:
    """Write {image_id: caption} as a file of any format, in one step.

    Args:
        captions: in the order of the file.
        path: the file.
        images: {image_id: the image, undecoded}; webdataset shards hold them, metadata files name theirs.
        format: a format's name; default: by the path.

    Raises:
        CaptionFileError: for a caption that the format cannot hold, or an image that is not there.
    """
    path = Path(path)
    chosen = format_of(path, format)
    if chosen.write is None:
        raise UsageError(f"{path}: {chosen.name} are not written as a file; name another, such as captions.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        chosen.write(temporary, captions, images or {}, path)


# ------------------------------------------------------------------------ JSON


def _read_jsonl(path: Path) -> Iterator[CaptionEntry]:
    for number, row in jsonl_rows(path):
        yield "line", number, row.get("image_id"), row.get("caption")


def _write_jsonl(temporary: Path, captions: Mapping[str, str], images: Mapping[str, Any], path: Path) -> None:
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(jsonl_line({"image_id": key, "caption": text}) for key, text in captions.items())


def _read_json(path: Path) -> Iterator[CaptionEntry]:
    content = read_json(path)
    if isinstance(content, dict):
        for number, (image_id, caption) in enumerate(content.items(), start=1):
            yield "entry", number, image_id, caption
        return
    for number, row in enumerate(content if isinstance(content, list) else [content], start=1):
        if not isinstance(row, dict):
            raise CaptionFileError(f"{path}, entry {number}: expected an object with image_id and caption")
        yield "entry", number, row.get("image_id"), row.get("caption")


def _write_coco(temporary: Path, captions: Mapping[str, str], images: Mapping[str, Any], path: Path) -> None:
    """Whole-number ids become numbers, as COCO's tools expect."""
    whole = {key: key.isdecimal() and key.isascii() and str(int(key)) == key for key in captions}
    rows = [{"image_id": int(key) if whole[key] else key, "caption": text} for key, text in captions.items()]
    temporary.write_text(json.dumps(rows, ensure_ascii=not _encodes(captions)), encoding="utf-8")


def _encodes(captions: Mapping[str, str]) -> bool:
    try:
        for key, text in captions.items():
            key.encode(), text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---------------------------------------------------------------------- tables


def _write_table(
    temporary: Path, rows: Iterable[tuple[str, str]], header: tuple[str, str], delimiter: str, path: Path
) -> None:
    with temporary.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [header], delimiter, path)
        write_rows(file, rows, delimiter, path)


def write_rows(file: IO[str], rows: Iterable[tuple[str, str]], delimiter: str, path: str | Path) -> None:
    """Write rows of an id and a caption, or the header, as CSV.

    Args:
        file: open for writing text.
        rows: the rows.
        delimiter: between the two.
        path: the file's name for messages.

    Raises:
        CaptionFileError: for half a character.
    """

    def whole() -> Iterator[tuple[str, str]]:
        for row in rows:
            try:
                "".join(row).encode()  # standard output would escape it
            except UnicodeEncodeError as error:
                raise _not_text(path, row[0]) from error
            yield row

    write_csv(file, whole(), delimiter)


def _not_text(path: str | Path, image_id: str) -> CaptionFileError:
    return CaptionFileError(
        f"{path}: the caption or the id of image {image_id!a} holds half a character, which is no text in UTF-8; "
        "write .jsonl, which escapes it"
    )


def _write_csv(temporary: Path, captions: Mapping[str, str], images: Mapping[str, Any], path: Path) -> None:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    _write_table(temporary, captions.items(), ("image_id", "caption"), delimiter, path)


def _read_parquet(path: Path) -> Iterator[CaptionEntry]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        image, caption = first_key(columns, (*ID_KEYS, *IMAGE_KEYS)), first_key(columns, REFERENCE_KEYS)
        if image is None or caption is None:
            raise CaptionFileError(f"{path} needs the columns image_id and caption; it has {', '.join(columns)}")
        number = 0
        for batch in file.iter_batches(columns=[image, caption]):
            for key, text in zip(batch[image].to_pylist(), batch[caption].to_pylist(), strict=True):
                number += 1
                yield "row", number, key, text
    except (pyarrow.ArrowException, OSError) as error:
        raise CaptionFileError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _write_parquet(temporary: Path, captions: Mapping[str, str], images: Mapping[str, Any], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    if not _encodes(captions):
        raise next(_not_text(path, key) for key, text in captions.items() if not _encodes({key: text}))
    parquet.write_table(
        pyarrow.table({"image_id": list(captions), "caption": list(captions.values())}, schema=pyarrow.schema(
            {"image_id": pyarrow.string(), "caption": pyarrow.string()}
        )),
        temporary,
    )  # fmt: skip


# ------------------------------------------------------- beside or with images


def _write_metadata(temporary: Path, captions: Mapping[str, str], images: Mapping[str, Any], path: Path) -> None:
    """`file_name` is the image's file relative to the metadata's folder, where its file is known, else its id."""
    rows = ((_file_name(key, images.get(key), path), text) for key, text in captions.items())
    if path.suffix.lower() == ".csv":
        _write_table(temporary, rows, ("file_name", "text"), ",", path)
        return
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(jsonl_line({"file_name": name, "text": text}) for name, text in rows)


def _file_name(image_id: str, image: Any, path: Path) -> str:
    file = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else None
    return image_id if not file else Path(os.path.relpath(file, path.parent.absolute())).as_posix()


def _read_webdataset(path: Path) -> Iterator[CaptionEntry]:
    from captune.data.webdataset import shard_captions

    for number, (key, captions) in enumerate(shard_captions(str(path)), start=1):
        if len(captions) != 1:
            raise CaptionFileError(f"{path}: {key} has {len(captions)} captions, not one")
        yield "sample", number, key, captions[0]


def _write_webdataset(temporary: Path, captions: Mapping[str, str], images: Mapping[str, Any], path: Path) -> None:
    """Images as they are on the disk, and their captions, under the keys that `webdataset_key` says."""
    from captune.data.webdataset import stem_of, webdataset_key

    keys: dict[str, str] = {}
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for image_id, text in captions.items():
            if image_id not in images:
                raise CaptionFileError(f"{path} holds the images, and that of {image_id!r} is not known: name --images")
            data = read_image(images[image_id], image_id)
            suffix = os.path.splitext(image_id)[1]
            if suffix.lower() not in IMAGE_SUFFIXES:
                suffix = _suffix_of(data, image_id)
            stem = webdataset_key(image_id)
            if stem != stem_of(image_id):
                skip(DOTS, image_id)
            if (other := keys.setdefault(stem, image_id)) != image_id:
                raise CaptionFileError(f"{path}: {other!r} and {image_id!r} would have the same key; rename one")
            try:
                encoded = as_file(text)
            except UnicodeEncodeError as error:
                raise _not_text(path, image_id) from error
            for name, content in ((stem + suffix, data), (f"{stem}.txt", encoded)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _suffix_of(data: bytes, image_id: str) -> str:
    """The suffix by which readers of webdataset know what kind of image it is."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        kind = str(image.format)
    suffix = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}")
    if suffix not in IMAGE_SUFFIXES:
        raise CaptionFileError(f"{image_id}: no suffix is known for images of the kind {kind}; name it NAME.SUFFIX")
    return suffix


def holds_captions(folder: Path) -> bool:
    """Whether a folder, or one below it, has captions that are read: sidecars, metadata, or parts."""
    if (folder / MANIFEST).is_file():
        return True
    others = files_below(folder, ())[1]
    tables = (*others.get(".jsonl", ()), *others.get(".csv", ()))
    return any(others.get(suffix) for suffix in SIDECARS) or any(os.path.basename(file) in METADATA for file in tables)


def read_folder(path: Path, images: Places | None = None, *, metadata: bool = True) -> Iterator[CaptionEntry]:
    """Yield the captions of a folder, those that it has as a source: of sidecars, and of metadata files.

    Args:
        path: the folder.
        images: what the captions are of; None: the images of the folder.
        metadata: False reads sidecars alone.

    Raises:
        CaptionFileError: no captions, no images, captions that are of none of them, or two of one image that differ.
    """
    names, others = files_below(path, IMAGE_SUFFIXES)
    sidecars = [file for suffix in SIDECARS for file in sorted(others.get(suffix, ()))]
    tables = [file for suffix in (".jsonl", ".csv") for file in sorted(others.get(suffix, ())) if metadata]
    tables = [file for file in tables if os.path.basename(file) in METADATA]
    if not sidecars and not tables:
        raise CaptionFileError(
            f"{path} holds no captions: {len(names)} images, and no NAME.txt, NAME.caption or metadata.jsonl"
        )
    if images is None:
        if not len(names):
            alone = f", or name {tables[0]}" if tables else ""
            raise CaptionFileError(
                f"{path} holds captions and no images: say where the images are with --images SOURCE{alone}; what has "
                f"no such flag reads what captune convert {path} captions.jsonl --images SOURCE writes"
            )
        from captune.data.places import Places

        images = Places(str(path))
    own = images.folder is not None and os.path.realpath(images.folder) == os.path.realpath(path)
    where = "the folder" if own else images.source
    found: dict[str, CaptionEntry] = {}
    strange: list[str] = []
    for file in sidecars:
        name = os.path.relpath(file, path)
        image_id = images.of_place(os.path.splitext(name)[0])
        if image_id is None:
            strange.append(name)
            continue
        lines = read_sidecar(Path(file), exact=True)
        if len(lines) > 1:
            raise CaptionFileError(f"{path}: the sidecar of {image_id} has {len(lines)} captions, not one")
        first = found.setdefault(image_id, (f"{name}, line", 1, image_id, lines[0]))
        if first[3] != lines[0]:  # NAME.caption beside NAME.txt
            other = first[0].partition(",")[0]
            raise CaptionFileError(f"{path}: {image_id!r} has one caption in {other} and another in {name}; remove one")
    for file in tables:
        for noun, number, name, caption in read_metadata(Path(file)):
            written, noun = str(name), f"{os.path.relpath(file, path)}, {noun}"
            there = os.path.join(os.path.dirname(file), written)
            image_id = images.of_file(there, Path(os.path.relpath(there, path)).as_posix())
            if image_id is None:
                skip(f"rows of metadata whose image is not in {where}", f"{path}, {noun} {number}: {written}")
                continue
            first = found.setdefault(image_id, (noun, number, image_id, caption))
            if first[3] != caption:
                raise CaptionFileError(
                    f"{path}: {image_id!r} has one caption in {first[0]} {first[1]} and another in {noun} {number}; "
                    f"choose with captune convert {path} OUTPUT --from sidecars, or --from metadata"
                )
    if not found:
        like = f"such as {strange[0]}" if strange else "in its metadata"
        raise CaptionFileError(
            f"{path} holds no captions of the {len(images.files)} images of {images.source}, such as "
            f"{next(iter(images.files), '')!r}; it has others, {like}"
        )
    if strange and not own:  # of its own folder the source says so
        skip(f"sidecars that match no image of {images.source}", strange[0], len(strange))
    if lacking := [image_id for image_id in images.chosen if image_id not in found]:
        skip("images without a caption" if tables else "images without a sidecar", lacking[0], len(lacking))
    yield from (found[image_id] for image_id in images.files if image_id in found)


def _read_metadata(path: Path) -> Iterator[CaptionEntry]:
    """The rows of a metadata file, or of those in a folder."""
    if not path.is_dir():
        yield from read_metadata(path)
        return
    files = [path / name for name in METADATA if (path / name).is_file()]
    if not files:
        raise CaptionFileError(f"{path} holds no {' and no '.join(METADATA)}")
    for file in files:
        for noun, number, name, caption in read_metadata(file):
            yield f"{file.name}, {noun}", number, name, caption


def matching(format: Format, path: Path, images: Places) -> Callable[[str], str | None] | None:
    """Return what gives the id of an image that a file of a format names; None where the file has ids."""
    name = format.name
    if name == "parts":
        name = read_manifest((path / MANIFEST).read_bytes(), str(path / MANIFEST))["part_format"]
    if name == "webdataset":
        return images.of_key
    if name == "metadata":
        folder = path if path.is_dir() else path.parent
        return lambda file: images.of_file(os.path.join(folder, file), file)
    return None


def _read_parts(path: Path) -> Iterator[CaptionEntry]:
    """The parts of a finished folder, in the order of the source."""
    name = path / MANIFEST
    manifest = read_manifest(name.read_bytes(), str(name))
    if not manifest["complete"]:
        raise CaptionFileError(f"{path} is not finished: run its `captune caption --engine ray` again, which resumes")
    for part in manifest["parts"]:
        if part["file"] is None:
            continue
        file = path / "parts" / Path(part["file"]).name
        if not file.is_file() or file.stat().st_size != part["bytes"]:
            raise CaptionFileError(f"{file} is not as {MANIFEST} says: run the same command again, or copy it again")
        yield from FORMATS[manifest["part_format"]].read(file)


FORMATS = {
    format.name: format
    for format in (
        Format("jsonl", (".jsonl", ".ndjson"), _read_jsonl, _write_jsonl),
        Format("coco", (".json",), _read_json, _write_coco),
        Format("csv", (".csv", ".tsv"), read_table, _write_csv),
        Format("parquet", (".parquet",), _read_parquet, _write_parquet),
        Format("metadata", (), _read_metadata, _write_metadata),
        Format("webdataset", (".tar",), _read_webdataset, _write_webdataset),
        Format("sidecars", (), read_folder, None),
        Format("parts", (), _read_parts, None),
    )
}
