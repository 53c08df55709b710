"""A source as pieces that another process, or another machine, can read by itself.

A piece is small (a name and row numbers, or the files of one part of a folder) and can be pickled; what it holds is
read where its images are captioned. Pieces of ``size`` rows follow each other in the source's order, whatever files
the rows are in; of webdataset shards each is a piece, since only reading one tells how many samples it has.

Sources are those of `captune.data.sources`, and addresses that fsspec reads (``s3://bucket/photos``): a folder of
images, parquet files, or webdataset shards. An address that stands inside a table is never fetched.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset

from captune.data.columns import ImageSource, column, image_paths
from captune.data.images import IMAGE_SUFFIXES
from captune.data.naming import Source, absolute
from captune.data.paths import ImageFolder
from captune.data.readers import ID_KEYS, REFERENCE_KEYS, Blanks, as_id, first_key, nfc, references_at
from captune.data.shards import base_of, shards_of
from captune.data.sources import load_images
from captune.data.tables import FEATURES, as_pair, check_image_column, first_image, image_columns, reason
from captune.data.webdataset import check_options, opened, samples
from captune.errors import SourceError, redact
from captune.utils.remote import file_mark, filesystem, is_address
from captune.utils.skipped import skip

Row = dict[str, Any]
_AT_ONCE = 32  # files that are asked of a store together; rows of a table that are read together


@dataclass(frozen=True)
class Piece:
    """Some images of a source.

    Attributes:
        name: for messages.
        rows: how many it has; None where only reading it tells.
        mark: changes with the images, as far as their ids, and the sizes and times of their files, show it.
    """

    name: str
    rows: int | None
    mark: str

    @property
    def distinct(self) -> bool:
        """Whether no other piece can have one of its ids; where it cannot be known before they are read, False."""
        return True

    def load(self) -> ImageSource:
        """Return its rows as a dataset of image (undecoded) and image_id.

        Raises:
            SourceError: they cannot be read, or are not what they were when the pieces were made.
        """
        return IterableDataset.from_generator(_generated, features=FEATURES, gen_kwargs={"piece": self})

    def read(self) -> Iterator[Row]:
        """Yield its rows, with references where the pieces were made with them."""
        yield from self.load()

    def captioned(self) -> list[str]:
        """Return the ids of the rows that have references, without reading an image."""
        raise NotImplementedError


def _generated(piece: Piece) -> Iterator[Row]:
    for row in piece.read():
        yield {"references": [], **row}


@dataclass(frozen=True)
class Rows(Piece):
    """Rows of a source that each process loads by itself: a local folder, a captions file, a scheme, a dataset."""

    source: str
    start: int
    ids: str  # a digest of them

    def load(self) -> Dataset:
        """Return the rows; the ids have to be those of before."""
        assert self.rows is not None
        dataset = _loaded(self.source)
        stop = self.start + self.rows
        part = dataset.select(range(min(self.start, len(dataset)), min(stop, len(dataset))))
        if _digest(_ids(part)) != self.ids:
            raise SourceError(
                f"{self.source} has other images here than where the job was started (rows {self.start} to "
                f"{stop - 1}): every machine has to see the same files; run the command again if they changed"
            )
        return part

    def captioned(self) -> list[str]:
        """Return the ids of the rows that have references."""
        part = _loaded(self.source).select(range(self.start, self.start + (self.rows or 0)))
        said = column(part, "references")
        return [one for one, texts in zip(_ids(part), said, strict=True) if any(text.strip() for text in texts)]


@dataclass(frozen=True)
class Files(Piece):
    """Image files of a remote folder."""

    root: str
    files: tuple[str, ...] = field(repr=False)

    def read(self) -> Iterator[Row]:
        """Yield them with their bytes; a file that is gone is an image without any."""
        system, root = filesystem(self.root)
        for start in range(0, len(self.files), _AT_ONCE):
            names = self.files[start : start + _AT_ONCE]
            paths = {name: posixpath.join(root, name) for name in names}
            found = system.cat(list(paths.values()), on_error="return")
            if isinstance(found, bytes):  # of a single file
                found = {next(iter(paths.values())): found}
            for name, path in paths.items():
                data = found.get(path, found.get(path.lstrip("/")))
                if isinstance(data, FileNotFoundError):
                    data = None
                elif isinstance(data, Exception):
                    raise SourceError(f"{self.root}/{name} cannot be read: {reason(data)}") from data
                yield {"image": {"bytes": data, "path": name}, "image_id": nfc(name)}


@dataclass(frozen=True)
class Table(Piece):
    """Rows of parquet files, which may begin in one and end in another."""

    spans: tuple[tuple[str, int, int, int], ...]  # file, its first row, one past its last, the first one's number
    image: str
    id: str | None
    folder: str | None  # of images that are paths; None: of a remote table
    caption: str | None  # the column of the references, where they are wanted

    @property
    def distinct(self) -> bool:
        """Whether its ids are row numbers."""
        return self.id is None

    def read(self) -> Iterator[Row]:
        """Yield the rows, a few at a time, from the row groups that hold them."""
        for name, start, stop, number in self.spans:
            columns = [self.image, *(one for one in (self.id, self.caption) if one)]
            for index, row in enumerate(_table_rows(name, start, stop, columns)):
                place = f"{name}, row {start + index + 1}"
                image_id, references = self._named(row, place, number + index)
                image = first_image(row, [self.image])["image"]
                if self.folder is not None:
                    image = as_pair(image, ImageFolder(name, self.folder, self.folder))  # type: ignore[arg-type]
                elif not isinstance(image, bytes) and not (isinstance(image, dict) and image.get("bytes")):
                    named = image.get("path") if isinstance(image, dict) else image
                    if named:
                        raise SourceError(
                            f"{place} names an image, {redact(str(named))}, and holds none: of a remote table only "
                            "images inside of it are read"
                        )
                pair = {"bytes": image, "path": None} if isinstance(image, bytes) else image
                pair = dict(pair or {"bytes": None, "path": None})
                if pair.get("bytes") is not None:  # a name for errors
                    pair["path"] = pair.get("path") or image_id
                image = pair
                yield {"image": image, "image_id": image_id, "references": references}

    def _named(self, row: Row, place: str, number: int) -> tuple[str, list[str]]:
        image_id = nfc(as_id(row[self.id], f"{place} ({self.id})")) if self.id else f"{number:06d}"
        references = references_at(row[self.caption], place) if self.caption else []
        blanks = Blanks()
        if blanks.remove(references):
            blanks.note(place)
            blanks.say()
        return image_id, references

    def captioned(self) -> list[str]:
        """Return the ids of the rows that have references."""
        columns = [one for one in (self.id, self.caption) if one]
        found: list[str] = []
        for name, start, stop, number in self.spans if self.caption else ():
            for index, row in enumerate(_table_rows(name, start, stop, columns)):
                image_id, references = self._named(row, f"{name}, row {start + index + 1}", number + index)
                found += [image_id] if references else []
        return found


@dataclass(frozen=True)
class Shard(Piece):
    """A webdataset shard."""

    file: str
    options: tuple[tuple[str, str], ...]

    @property
    def distinct(self) -> bool:
        """Not known: its keys are read with it."""
        return False

    def read(self) -> Iterator[Row]:
        """Yield its samples that have an image."""
        if not is_address(self.file):
            yield from samples([self.file], dict(self.options))
            return
        system, path = filesystem(self.file)
        with tempfile.TemporaryDirectory(prefix="captune-") as folder:  # the members of a sample may lie anywhere in it
            local = os.path.join(folder, "shard.tar")
            try:
                system.get_file(path, local)
            except (OSError, ValueError) as error:
                raise SourceError(f"{self.file} cannot be read: {reason(error)}") from error
            yield from samples([self.file], dict(self.options), opener=lambda _: opened(local))


def pieces_of(source: str, size: int, *, limit: int | None = None, references: bool = False) -> list[Piece]:
    """Return the pieces of a source, in its order.

    Args:
        source: as written, or an address that fsspec reads.
        size: rows of each piece; the last has fewer.
        limit: the first so many images only.
        references: read them as well; an id may stand in several rows then.

    Raises:
        SourceError: the source cannot be read, holds no images, or two of them have one id.
    """
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    parsed = Source.parse(source)
    remote = is_address(parsed.where)
    chosen = {
        key for key in ("n", "seed", "skip", "part", "shard", "split", "images") if getattr(parsed, key) is not None
    }
    if remote and chosen:
        raise SourceError(f"{source}: of an address {', '.join(sorted(chosen))} cannot be chosen; leave that out")
    found = _remote_files(parsed.where) if remote else ([] if chosen else shards_of(parsed.where))
    options = {key: str(value) for key, value in parsed.columns.items() if key != "streaming"}
    if found and found[0].lower().endswith(".tar"):
        if limit is not None:
            raise SourceError(f"{source}: how many images a shard has is not known: leave --limit out, or name shards")
        check_options(found, options)
        given = tuple(sorted(options.items()))
        return [Shard(os.path.basename(name), None, _digest([name, file_mark(name)]), name, given) for name in found]
    if found and found[0].lower().endswith(".parquet"):
        folder = None if remote else os.path.abspath(base_of(parsed.where))
        return _tables(found, options, size, limit, folder, references)
    if remote:
        if options:
            raise SourceError(f"{source}: a folder of images takes no {', '.join(options)}")
        return _folder(parsed.where, size, limit)
    return _rows(source, size, limit, references)


def _rows(source: str, size: int, limit: int | None, repeats: bool) -> list[Piece]:
    written = source if ":" in source.partition("?")[0] else absolute(source)
    _loaded.cache_clear()
    dataset = _loaded(written)
    ids = _ids(dataset)
    if not repeats and (repeated := next((one for one, count in Counter(ids).items() if count > 1), None)):
        raise SourceError(f"two images of {source} have the image_id {repeated!r}; give each its own")
    total = len(ids) if limit is None else min(limit, len(ids))
    if not total:
        raise SourceError(f"{source} holds no images")
    paths = image_paths(dataset)
    made: list[Piece] = []
    for start in range(0, total, size):
        part = ids[start : min(start + size, total)]
        states = [_state(path) for path in paths[start : start + len(part)]] if paths else []
        name = f"images {start} to {start + len(part) - 1}"
        made.append(Rows(name, len(part), _digest([*part, *states]), written, start, _digest(part)))
    return made


@functools.lru_cache(maxsize=2)
def _loaded(source: str) -> Dataset:
    dataset = load_images(source, decode=False)
    if not isinstance(dataset, Dataset):
        raise SourceError(f"{source} is a stream, whose pieces nobody can look up: leave ?streaming= out")
    return dataset


def _ids(dataset: Dataset) -> list[str]:
    return [nfc(str(one)) for one in column(dataset, "image_id")]


def _state(path: str | None) -> str:
    try:
        status = os.stat(path or "")
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(parts: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()


# ----------------------------------------------------------------------- fsspec


def _remote_files(where: str) -> list[str]:
    """The tar or parquet files that an address names; empty for a folder of images."""
    system, path = filesystem(where)
    suffix = os.path.splitext(path)[1].lower()
    try:
        if any(mark in path for mark in "*?["):
            names = system.glob(path)
        elif suffix in (".tar", ".parquet"):
            names = [path] if system.exists(path) else []
            if not names:
                raise SourceError(f"{where} does not exist")
        else:
            names = [name for name in system.find(path) if name.lower().endswith((".tar", ".parquet"))]
    except (OSError, ValueError) as error:
        raise SourceError(f"{where} cannot be read: {reason(error)}") from error
    for kind in (".tar", ".parquet"):
        if files := sorted(name for name in names if name.lower().endswith(kind)):
            if others := [name for name in names if not name.lower().endswith(kind)]:
                skip(f"files beside {kind} files", min(others), len(others))
            return [str(system.unstrip_protocol(name)) for name in files]
    if suffix or any(mark in path for mark in "*?["):
        raise SourceError(f"{where}: no .parquet or .tar file is so named")
    return []


def _folder(where: str, size: int, limit: int | None) -> list[Piece]:
    system, root = filesystem(where)
    try:
        listed = system.find(root, detail=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"{where} cannot be read: {reason(error)}") from error
    base = root.rstrip("/") + "/"
    names: dict[str, dict[str, Any]] = {}
    others = Counter[str]()
    for path, info in listed.items():
        name = path.removeprefix(base) if path.startswith(base) else path.removeprefix(base.lstrip("/"))
        if any(part.startswith(".") for part in name.split("/")):
            continue
        suffix = posixpath.splitext(name)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            names[name] = info
        else:
            others[suffix] += 1
    if not names:
        kinds = ", ".join(f"{count} {suffix or 'suffixless'}" for suffix, count in sorted(others.items())[:10])
        raise SourceError(f"no image files in {where} or below{f', only {kinds}' if kinds else ''}")
    for suffix, count in sorted(others.items()):
        skip(f"{suffix or 'suffixless'} files, which are not read as images", where, count)
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(nfc(name), name)) != name:
            raise SourceError(f"{where} has two files of the name {name!r}, in two Unicode forms ({other!a}); rename")
    ordered = sorted(names)[:limit]
    made: list[Piece] = []
    for start in range(0, len(ordered), size):
        part = tuple(ordered[start : start + size])
        states = [file_mark(name, names[name]) for name in part]
        label = f"{part[0]} to {part[-1]}"
        made.append(Files(label, len(part), _digest([*part, *states]), where.rstrip("/"), part))
    return made


# ----------------------------------------------------------------------- tables


def _open_table(name: str) -> pq.ParquetFile:
    try:
        if not is_address(name):
            return pq.ParquetFile(name)
        system, path = filesystem(name)
        return pq.ParquetFile(system.open(path, "rb"))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{name} cannot be read as parquet: {reason(error)}") from error


def _table_rows(name: str, start: int, stop: int, columns: list[str]) -> Iterator[Row]:
    with _open_table(name) as file:
        groups: list[int] = []
        first, before = 0, 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if before + rows > start and before < stop:
                first = before if not groups else first
                groups.append(group)
            before += rows
        if before < stop:
            raise SourceError(f"{name} has {before} rows, not the {stop} that it had: run the command again")
        at = first
        try:
            for batch in file.iter_batches(batch_size=_AT_ONCE, row_groups=groups, columns=columns):
                low, high = max(start - at, 0), min(stop - at, batch.num_rows)
                at += batch.num_rows
                if high > low:
                    yield from batch.slice(low, high - low).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{name} cannot be read as parquet: {reason(error)}") from error


def _tables(
    files: list[str], options: dict[str, str], size: int, limit: int | None, folder: str | None, references: bool
) -> list[Piece]:
    counts: list[int] = []
    features: Features | None = None
    for name in files:
        with _open_table(name) as file:
            if twice := [one for one, count in Counter(file.schema_arrow.names).items() if count > 1]:
                raise SourceError(f"{name} has the column {twice[0]!r} several times; give each its own name")
            counts.append(file.metadata.num_rows)
            own = Features.from_arrow_schema(file.schema_arrow)
        if features is not None and list(own) != list(features):
            raise SourceError(f"{name} has other columns than {files[0]}: {', '.join(own)}")
        features = features or own
    assert features is not None
    columns = list(features)
    for key, value in options.items():
        if key not in ("image", "caption", "id"):
            raise SourceError(f"{files[0]} takes no ?{key}=")
        if value not in columns:
            raise SourceError(f"{files[0]} has no column {value!r}; it has {', '.join(columns)}")
    images = image_columns(SimpleNamespace(features=features), columns, options)
    if len(images) != 1:
        several = f"several columns of images ({', '.join(images)})" if images else "no column of images"
        raise SourceError(f"{files[0]} has {several}; it has {', '.join(columns)}; name one with ?image=COLUMN")
    check_image_column(features[images[0]], images[0], files[0])
    own_id = options.get("id") or first_key(set(columns) - set(images), ID_KEYS)
    said = options.get("caption") or first_key(columns, REFERENCE_KEYS) if references else None
    total = sum(counts) if limit is None else min(limit, sum(counts))
    if not total:
        raise SourceError(f"{files[0]} holds no rows")
    marks = [file_mark(name) for name in files]
    made: list[Piece] = []
    index, at, before = 0, 0, 0  # the file, the next row in it, the rows of the files before
    for start in range(0, total, size):
        spans: list[tuple[str, int, int, int]] = []
        states: list[str] = []
        wanted = min(size, total - start)
        while wanted:
            if at == counts[index]:
                before += counts[index]
                index, at = index + 1, 0
                continue
            take = min(wanted, counts[index] - at)
            spans.append((files[index], at, at + take, before + at))
            states.append(f"{files[index]} {at} {take} {marks[index]}")
            at, wanted = at + take, wanted - take
        rows = sum(stop - first for _, first, stop, _ in spans)
        name = f"rows {start} to {start + rows - 1}"
        made.append(
            Table(
                name, rows, _digest([*states, images[0], own_id or ""]), tuple(spans), images[0], own_id, folder, said
            )
        )
    return made
