"""Webdataset shards: tar files whose members of one key make a sample, read without unpacking anything.

A member's key is its name without its last extension, compared without case; dots in names stay, so that
``000/22.05.jpg`` and ``000/22.06.jpg`` are two samples. The members of a sample may lie anywhere in a shard.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import datasets
from datasets import Dataset, Features, IterableDataset
from datasets.arrow_writer import ArrowWriter

from captune.data.images import IMAGE_SUFFIXES
from captune.data.readers import BLANK, HALF, REFERENCE_KEYS, Blanks, first_key, is_utf8, nfc, references_at
from captune.data.tables import FEATURES
from captune.errors import SourceError
from captune.utils.files import parse_json, replace_file, replacing
from captune.utils.hashing import fingerprint
from captune.utils.skipped import Told, skip

CAPTION_SUFFIXES = (".txt", ".caption", ".json")
_FORMAT = 2  # of what is kept in the cache; 1 did not count captions of several lines
LINES = "captions of several lines in shards are one each; a list in .json, or the lines beside an image, are several"

Row = dict[str, Any]
Skips = dict[str, list[Any]]


def webdataset_key(image_id: str) -> str:
    """Return the key of an image in a shard: its id without the suffix, and without dots in its name."""
    folder, slash, name = stem_of(image_id).rpartition("/")
    return folder + slash + name.replace(".", "_")


def stem_of(image_id: str) -> str:
    """Return an id without the suffix of an image, if it has one."""
    stem, suffix = os.path.splitext(image_id)
    return stem if suffix.lower() in IMAGE_SUFFIXES else image_id


def load_webdataset(files: list[str], options: dict[str, str], *, stream: bool, images: bool) -> Any:
    """Load local shards as a dataset of image, image_id (the key) and references.

    Args:
        files: the tar files, in order.
        options: `image`: the one suffix that images have; `caption`: the suffix of the captions (txt, caption, json),
            or the key inside .json that holds them.
        stream: read the shards as they come, instead of copying them into the cache of `datasets` first.
        images: False leaves the images out.

    Raises:
        SourceError: a shard that is damaged or cannot be read, or two samples of one key.
    """
    check_options(files, options)
    for name in files:
        if not os.path.isfile(name):
            raise SourceError(f"{name} is no file")
    if not images:
        rows = list(samples(files, options, images=False))
        return Dataset.from_dict(
            {name: [row[name] for row in rows] for name in ("image_id", "references")},
            features=Features({name: FEATURES[name] for name in ("image_id", "references")}),
        )
    if stream:
        return IterableDataset.from_generator(
            samples, features=FEATURES, gen_kwargs={"files": files, "options": options}
        )
    return _cached(files, options)


def check_options(files: list[str], options: dict[str, str]) -> None:
    """Raise SourceError for settings that shards do not take."""
    for key, why in (("id", "the id of a sample is its key in the shard"), ("config", "shards have no configurations")):
        if key in options:
            raise SourceError(f"{files[0]}: {why}; leave ?{key}={options[key]} out")
    if "image" in options and f".{options['image'].lower().lstrip('.')}" not in IMAGE_SUFFIXES:
        raise SourceError(f"{files[0]}: ?image= names a kind of image, as in ?image=jpg, not {options['image']!r}")


def _cached(files: list[str], options: dict[str, str]) -> Dataset:
    """The samples in the cache of `datasets`, written there unless the same files were before."""
    states = [(os.path.abspath(name), os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in files]
    mark = fingerprint(json.dumps([_FORMAT, states, sorted(options.items())]))
    kept = Path(datasets.config.HF_DATASETS_CACHE) / "captune" / mark
    table, notes = kept / "samples.arrow", kept / "skipped.json"
    if not (table.is_file() and notes.is_file()):
        kept.mkdir(parents=True, exist_ok=True)
        skips: Skips = {}
        with replacing(table) as temporary:
            with ArrowWriter(path=str(temporary), features=FEATURES, writer_batch_size=100) as writer:
                for row in samples(files, options, skips=skips):
                    writer.write(row)
                written, _ = writer.finalize()
            if not written:
                raise SourceError(f"{files[0]} holds no images (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")
        replace_file(notes, json.dumps(skips))
    _say(parse_json(notes.read_bytes(), str(notes), error=SourceError))
    return Dataset.from_file(str(table))


def opened(name: str) -> IO[bytes]:
    """Open a shard on the disk."""
    return open(name, "rb")


def shard_captions(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (key, captions) of a shard's images, as they are written: also blank ones and words for missing values."""
    for row in samples([name], {}, images=False, exact=True):
        yield row["image_id"], row["references"]


def samples(
    files: list[str],
    options: dict[str, str],
    images: bool = True,
    skips: Skips | None = None,
    opener: Callable[[str], IO[bytes]] = opened,
    exact: bool = False,
) -> Iterator[Row]:
    """Yield the samples of shards in the order in which their first members come; what is left out is counted.

    Args:
        files: the shards.
        options: of the source.
        images: False leaves the images out.
        skips: receives what is left out, instead of the end of the command.
        opener: opens a shard.
        exact: captions as they are written, not as references.
    """
    found: Skips = {} if skips is None else skips
    blanks = Blanks()
    seen: dict[str, str] = {}
    try:
        for name in files:
            with opener(name) as file:
                for key, members in _index(name, file, options, found).items():
                    if nfc(key) in seen:
                        raise SourceError(
                            f"two samples share the key {key!r}: in {seen[nfc(key)]} and {name}; rename one"
                        )
                    seen[nfc(key)] = name
                    place = f"{name}: {key}"
                    if "" not in members:
                        _count(found, "captions in shards without an image of their key", place)
                        continue
                    references = _captions(file, members, place, options, exact)
                    if not exact and any("\n" in text for text in references):
                        _count(found, LINES, place)
                    if not exact and blanks.remove(references):
                        blanks.note(place)
                    if not exact and not all(map(is_utf8, references)):
                        references = [text for text in references if is_utf8(text)]
                        _count(found, HALF, place)
                    row: Row = {"image_id": nfc(key), "references": references}
                    if images:
                        member = members[""]
                        row["image"] = {"bytes": _read(file, member, name), "path": member.name}
                    yield row
    finally:  # a stream may not be read to its end
        if blanks.count:
            found[BLANK] = [blanks.first, blanks.count]
        if skips is None:
            _say(found)


def count_samples(name: str, options: dict[str, Any]) -> int:
    """Return how many images a shard holds, from its headers.

    Raises:
        SourceError: a shard that is damaged or cannot be read.
    """
    with open(name, "rb") as file:
        return sum("" in members for members in _index(name, file, options, {}).values())


def _say(found: Skips) -> None:
    """Count for the end of the command what was left out, and what was read as it may not be meant."""
    for reason, (item, count) in found.items():
        skip(Told(reason) if reason == LINES else reason, item, count)


def _count(found: Skips, reason: str, item: str) -> None:
    found.setdefault(reason, [item, 0])[1] += 1


def _index(name: str, file: Any, options: dict[str, str], found: Skips) -> dict[str, dict[str, tarfile.TarInfo]]:
    """{key: {"": its image, ".txt": …}} of a shard, from the headers alone.

    Raises:
        SourceError: for a damaged shard, or a key with two images or two captions of one kind.
    """
    wanted = {f".{options['image'].lower().lstrip('.')}"} if "image" in options else IMAGE_SUFFIXES
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                base = member.name.rpartition("/")[2]
                if member.isdir() or base.startswith("."):
                    continue
                if not member.isreg() or member.issparse():
                    _count(found, "members of shards that are no plain files", f"{name}: {member.name}")
                    continue
                stem, suffix = os.path.splitext(member.name)
                suffix = suffix.lower()
                kind = "" if suffix in wanted else suffix
                if kind and kind not in CAPTION_SUFFIXES:
                    _count(
                        found, f"{suffix or 'nameless'} members of shards, which are not read", f"{name}: {member.name}"
                    )
                    continue
                sample = samples.setdefault(stem, {})
                if (first := sample.setdefault(kind, member)) is not member:
                    raise SourceError(
                        f"{name}: the key {stem!r} has two {'captions' if kind else 'images'}, {first.name} and "
                        f"{member.name}; rename or remove one" + ("" if kind else ", or choose a kind with ?image=jpg")
                    )
            end = tar.offset
        file.seek(end)
        if file.read(512).strip(b"\0"):
            raise SourceError(f"{name} is damaged at byte {end}: what follows is no member of a tar file")
    except tarfile.TarError as error:
        raise SourceError(f"{name} cannot be read as a tar file: {error}; copy it again") from error
    return samples


def _read(file: Any, member: tarfile.TarInfo, name: str) -> bytes:
    file.seek(member.offset_data)
    data: bytes = file.read(member.size)
    if len(data) < member.size:
        raise SourceError(f"{name} is cut off inside {member.name}; copy it again")
    return data


def _captions(
    file: Any, members: dict[str, tarfile.TarInfo], place: str, options: dict[str, str], exact: bool = False
) -> list[str]:
    """The captions of a sample: of .txt, else .caption, else those inside .json."""
    chosen = options.get("caption", "")
    kind = f".{chosen.lower().lstrip('.')}"
    if kind in CAPTION_SUFFIXES:
        kinds: tuple[str, ...] = (kind,)
    else:
        kinds = (".json",) if chosen else CAPTION_SUFFIXES
    references: list[str] = []
    for suffix in kinds:
        if suffix not in members or (references if exact else any(references)):
            continue
        member = members[suffix]
        data = _read(file, member, place)
        if suffix != ".json":
            try:
                text = data.decode("utf-8-sig")
                references = [text.removesuffix("\n") if exact else text.strip()]
            except UnicodeDecodeError as error:
                raise SourceError(f"{place}: {member.name} is not UTF-8 text: {error}") from error
            continue
        content = parse_json(data, f"{place}: {member.name}", error=SourceError)
        if isinstance(content, dict):
            key = chosen if chosen and kind != ".json" else first_key(content, REFERENCE_KEYS)
            content = [] if key is None or key not in content else content[key]
        references += references_at(content, f"{place}: {member.name}")
    return references
