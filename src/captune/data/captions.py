"""Caption files: read in every format of `captune.data.caption_formats`, written as JSON lines while they grow.

A file of JSON lines is only ever appended to and each batch is flushed to the disk: a killed process leaves whole lines
and at most one torn one at the end, which reading leaves out with a warning and `CaptionWriter` removes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.data.caption_formats import FORMATS, format_of, matching, read_folder
from captune.data.lines import CAPTIONS, Kind, copy_lines, read_caption_lines
from captune.data.readers import nfc
from captune.errors import CaptionFileError
from captune.utils.files import jsonl_line, lock, naming, read_file, read_jsonl, refuse_address, torn_line, uncollected
from captune.utils.ids import Ids, digests
from captune.utils.skipped import Told, skip

if TYPE_CHECKING:
    from captune.data.places import Places

logger = logging.getLogger(__name__)


_LINES = (".jsonl", ".ndjson")  # suffixes of JSON lines
OUTSIDE = Told("ids are paths from the metadata to images elsewhere; --images SOURCE gives those of the source")
EDITS = ".edits.jsonl"
"""What is added to a caption file's name for the journal of what people changed; see `captune.annotation.edits`."""


def read_captions(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    behind: bool = True,
    images: str | Places | None = None,
) -> dict[str, str]:
    """Read {image_id: caption}, in file order.

    Ids become strings in Unicode's composed form (NFC), as sources have them. Empty captions are kept: the captioner
    wrote them. An id may occur twice only with the same caption.

    Args:
        path: JSON lines, COCO results JSON (a list of objects), JSON ``{id: caption}``, or any other of
            `captune.data.caption_formats`; a folder is read as the source of that name has its references.
        format: a format's name; default: by the file's name, and of JSON by its content.
        behind: warn where `captune review` was killed before its last corrections were in the file.
        images: the source of the images. Sidecars, metadata and shards name an image by its place: with the source
            their captions get its ids, and sidecars may stand in a tree of their own. A row or a sample whose image it
            does not have keeps the name that it has in the file.

    Raises:
        CaptionFileError: for a file of another format, or with two different captions for one image.
    """
    refuse_address(path)
    path = Path(path)
    if isinstance(images, str):
        from captune.data.places import Places

        images = Places(images)
    with uncollected():
        captions = _read(path, format, images)
    if behind:
        _say_behind(path, captions)
    return captions


def _say_behind(path: Path, captions: Mapping[str, str]) -> None:
    """Warn about corrections that are in the journal only."""
    journal = path.with_name(path.name + EDITS)
    if not journal.is_file():
        return
    corrected: dict[str, str] = {}
    for row in read_jsonl(journal, problems=[]):
        if row.get("action") == "merged":
            corrected.clear()
        else:
            corrected[str(row.get("image_id"))] = str(row.get("after"))
    if behind := [image_id for image_id, text in corrected.items() if captions.get(image_id, text) != text]:
        logger.warning(
            "%s: corrections of %d captions, such as that of %r, are in %s and not yet in the file: `captune review` "
            "takes them there", path, len(behind), behind[0], journal.name
        )  # fmt: skip


def _read(path: Path, format: str | None, images: Places | None) -> dict[str, str]:
    captions: dict[str, str] = {}
    chosen = format_of(path, format, reading=True)
    if format is None and chosen.name in ("jsonl", "coco"):  # the content says which, whatever the file's name
        chosen = FORMATS["jsonl" if is_jsonl(path) else "coco"]
    if chosen.name == "sidecars":
        entries = read_folder(path, images, metadata=format is None)
    else:
        entries = chosen.read(path)
    matched = None if images is None else matching(chosen, path, images)
    outside: list[str] = []
    for noun, number, image_id, caption in entries:
        if image_id is None or isinstance(image_id, bool | list | dict) or image_id == "":
            why = "needs an image_id (a string or a number)"
            why += "; captions by their ids in one object are a .json file" if path.suffix.lower() in _LINES else ""
            raise CaptionFileError(f"{path}, {noun} {number}: {why}")
        if not isinstance(caption, str):
            raise CaptionFileError(f"{path}, {noun} {number}: image {image_id!r} needs one caption, a string")
        key = nfc(image_id if isinstance(image_id, str) else str(image_id))
        if matched is not None:
            key = matched(key) or key
        elif chosen.name == "metadata" and (os.path.isabs(key) or key.startswith("../")):
            outside.append(key)
        if captions.setdefault(key, caption) != caption:
            raise CaptionFileError(f"{path}, {noun} {number}: a second, different caption for image {key!r}")
    if outside:
        skip(OUTSIDE, outside[0], len(outside))
    return captions


def is_jsonl(path: Path) -> bool:
    """Return whether a file holds JSON lines.

    By content: the first line is an object with an image_id. The name decides of a file that is empty or torn, and
    whether another object is a row or all of the captions by their ids.
    """
    first = read_file(path, error=CaptionFileError).partition(b"\n")[0].strip()
    if not first:
        return path.suffix.lower() != ".json"
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return path.suffix.lower() in _LINES
    return isinstance(row, dict) and ("image_id" in row or path.suffix.lower() in _LINES)


class CaptionWriter:
    """Appends rows to a JSONL caption file; when `write` returns, its rows are on the disk.

        with CaptionWriter("caps.jsonl") as writer:
            if image_id not in writer.done:
                writer.write([{"image_id": image_id, "caption": caption}])

    Args:
        path: the file; only one writer can hold it.
        resume: keep what the file holds (a torn last line is removed and logged); False: start an empty file.
        kind: what each row holds besides its id.

    Attributes:
        done: the ids that the file holds: what is in it, and how many.
        last: the last of them when it was opened.

    Raises:
        CaptionFileError: if another process writes to the file, or it is not a caption file.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = True, kind: Kind = CAPTIONS) -> None:
        self.path, self.kind = Path(path), kind
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.done = Ids()
        self.last: str | None = None
        self._syncing: Future[None] | None = None
        self._syncer = ThreadPoolExecutor(max_workers=1)  # starts no thread before it is needed
        self._file = self.path.open("ab")
        try:
            if not lock(self._file):
                raise CaptionFileError(f"{self.path}: another process is writing to it; wait for it to end")
            if resume:
                if self._load() or self.path.with_name(self.path.name + EDITS).is_file():
                    self._look_through()
                self._repair()
            else:
                self._file.truncate(0)
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> bool:
        """Read which ids the file holds; returns whether one stands twice."""

        def pieces() -> Iterator[tuple[np.ndarray, None]]:
            for lines in read_caption_lines(self.path, self.kind):
                self.last = lines.ids[-1] if lines.ids else self.last
                yield digests(lines.ids), None

        self.done = Ids()
        return self.done.load(pieces())

    def _look_through(self) -> None:
        if self.kind is CAPTIONS:
            read_captions(self.path)  # which refuses different captions of one image, and tells of edits
            return
        seen: set[str] = set()
        for lines in read_caption_lines(self.path, self.kind):
            for image_id in lines.ids:
                if image_id in seen:
                    raise CaptionFileError(f"{self.path}: a second {self.kind.noun} for image {image_id!r}")
                seen.add(image_id)

    def _repair(self) -> None:
        start, line = torn_line(self.path)
        if not line:
            return
        try:
            whole = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            whole = False
        if whole:  # only the line end is missing
            self._file.write(b"\n")
        elif not line.startswith((b"{", b"\0")):
            raise CaptionFileError(f"{self.path} is not a caption file; name another output")
        else:
            logger.warning(
                "%s: the last line is cut off; it is removed and its image %s again", self.path, self.kind.done
            )
            self._file.truncate(start)
        self._flush()

    def write(self, rows: Iterable[Mapping[str, Any]], *, wait: bool = True) -> None:
        """Append rows, each with at least ``image_id`` and ``caption`` (of the kind), and wait for the disk.

        Args:
            rows: what is written.
            wait: False: they are in the file, which a killed process does not lose, and on their way to the disk. The
                next `write` and `close` wait for them, and say if the disk failed.

        Raises:
            CaptionFileError: for a row without either, or an id that has a caption already.
        """
        rows = list(rows)
        for row in rows:
            if not isinstance(row.get("image_id"), str) or not isinstance(row.get(self.kind.column), self.kind.type):
                both = "both strings" if self.kind is CAPTIONS else f"under {self.kind.column!r}"
                raise CaptionFileError(f"a row needs an image_id and a {self.kind.noun}, {both}; got {dict(row)!r}")
        keys = digests([row["image_id"] for row in rows])
        if (known := self.done.known(keys)).any():
            first = rows[int(known.argmax())]["image_id"]
            raise CaptionFileError(f"{self.path}: image {first!r} has a {self.kind.noun} already")
        self._synced()
        with naming(self.path):
            self._file.write("".join(jsonl_line(row) for row in rows).encode("utf-8"))
            self._flush(wait=wait)
        self.done.add(keys)

    def leave_out(self, image_ids: Sequence[str]) -> None:
        """Take rows out of the file, in one step, so that their images can get other captions."""
        gone = Ids()
        gone.add(digests(image_ids))
        kept = [np.empty((0, 2), np.int64)]
        for lines in read_caption_lines(self.path, self.kind):
            left = ~gone.known(digests(lines.ids))
            kept.append(np.stack([lines.starts[left], lines.ends[left]], axis=1))
        places = np.concatenate(kept)
        self._synced()
        copy_lines(self.path, places[:, 0], places[:, 1])
        new = self.path.open("ab")  # the lock was on the file that is gone
        self._file.close()
        self._file = new
        if not lock(self._file):
            raise CaptionFileError(f"{self.path}: another process is writing to it; wait for it to end")
        last = self.last
        self._load()
        self.last = last

    def _flush(self, *, wait: bool = True) -> None:
        self._file.flush()
        self._syncing = self._syncer.submit(os.fsync, self._file.fileno())
        if wait:
            self._synced()

    def _synced(self) -> None:
        """Wait until what was written is on the disk."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            with naming(self.path):
                syncing.result()

    def close(self) -> None:
        """Close the file, which releases it for other writers; what was written is on the disk then."""
        try:
            self._synced()
        finally:
            self._syncer.shutdown()
            with naming(self.path):  # which writes what is left
                self._file.close()

    def __enter__(self) -> CaptionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
