"""Where captions go while they are made: a file of any format, a sidecar beside each image, or a stream.

A file of JSON lines is appended to, batch by batch. A file of another format is made of such a journal, which stays
beside it as ``caps.csv.jsonl``, whenever a run is done; one that somebody changed meanwhile is refused. A sidecar is
whole or not there, and what is there is kept. A stream (``-``, a FIFO) takes JSON lines, CSV or text, and nothing
of it can be resumed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from captune.data import CaptionWriter, ImageSource, read_captions
from captune.data.caption_formats import Format, write_captions, write_rows
from captune.data.columns import column, undecoded
from captune.data.lines import CAPTIONS, CaptionsOfFile, Kind, read_caption_lines, reorder
from captune.data.places import tree_of
from captune.data.readers import nfc
from captune.data.sidecars import SIDECARS, as_file, sidecar_line
from captune.errors import CaptionFileError, SettingError, SourceError
from captune.inference.contents import Content, Contents
from captune.inference.settings import beside, write_settings
from captune.utils.files import STDOUT, jsonl_line, open_stream, read_json, remove_stale, replacing
from captune.utils.ids import Ids, as_values, digests, numbers
from captune.utils.skipped import counting

logger = logging.getLogger(__name__)

ImageOf = Callable[[int], Any]  # the image of a row, undecoded


class Output(Protocol):
    """What a captioning job writes to."""

    def have(self, ids: Sequence[str], image: ImageOf | None) -> np.ndarray:
        """Return which images have a caption, as booleans.

        Args:
            ids: theirs.
            image: gives each by its number among these; None: they are drawn by a program.
        """
        ...

    def cut_off(self, image_ids: Collection[str]) -> bool:
        """Whether a batch of these images may have been cut off while it was written, so that all is made again."""
        ...

    def write(self, rows: Sequence[Mapping[str, Any]], contents: Mapping[str, Content]) -> None:
        """Write captions of images with these contents.

        When it returns, a killed process does not lose them; they are on the disk when the next `write` returns.
        """
        ...

    def finish(self, places: Ids, images: ImageSource) -> None:
        """Bring the captions into the order of their images' places."""
        ...

    def close(self) -> None:
        """Release what is open."""
        ...


class FileOutput:
    """A caption file of any format.

    Args:
        path: the file.
        format: its format.
        resume: keep what it holds; False: start it again.
        kind: what it holds of each image; others than captions are written as JSON lines only.

    Attributes:
        made: what the settings beside the file say of it: the digest of the bytes that were made of the journal.

    Raises:
        CaptionFileError: the file was changed since it was made of its journal, which would be written over it.
    """

    def __init__(self, path: Path, format: Format, *, resume: bool, kind: Kind = CAPTIONS) -> None:
        self.path, self.format, self.kind = path, format, kind
        self.journal = path if format.name == "jsonl" else beside(path, "jsonl")
        if not resume and self.journal != path:
            self.journal.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        self.made: dict[str, str] = {}
        self.writer = CaptionWriter(self.journal, resume=resume, kind=kind)
        try:
            if self.journal != path and path.exists():
                self._check_unchanged()
        except BaseException:
            self.writer.close()
            raise
        companions = (self.journal, *(beside(path, end) for end in ("settings.json", "images.jsonl")))
        remove_stale(path.parent, {path.name, *(file.name for file in companions)})
        self.contents = Contents(beside(path, "images.jsonl"), resume=resume)

    def _check_unchanged(self) -> None:
        settings = beside(self.path, "settings.json")
        kept = read_json(settings) if settings.exists() else None
        made = kept.get("made") if isinstance(kept, dict) else None
        self.made = {} if made is None else {"made": made}
        if made == _digest(self.path):
            return
        # a run that was killed between the file and its digest, or a file from before there was one
        with counting():  # ids do not matter here
            theirs = Counter(read_captions(self.path, format=self.format.name).values())
        ours = Counter(read_captions(self.journal, format="jsonl").values())
        if theirs - ours or (made is not None and theirs != ours):
            other = next(iter(theirs - ours or ours - theirs))
            where = self.journal if other in theirs - ours else self.path
            raise CaptionFileError(
                f"{self.path} was changed since captune wrote it ({other[:80]!a} is not in {where.name}), and "
                f"{self.journal.name} would be written over it: name another output, or pass --overwrite "
                "to replace it"
            )

    def have(self, ids: Sequence[str], image: ImageOf | None) -> np.ndarray:
        """Return which images have a caption; that of an image that is another now is taken out of the file."""
        done = self.writer.done.known(digests(ids))
        if image is not None and done.any():
            rows = np.flatnonzero(done).tolist()
            if changed := self.contents.changed([ids[row] for row in rows], map(image, rows)):
                self.writer.leave_out(changed)
                done = self.writer.done.known(digests(ids))
        return done

    def cut_off(self, image_ids: Collection[str]) -> bool:
        """Whether the journal's last caption was of this batch."""
        return self.writer.last in image_ids

    def write(self, rows: Sequence[Mapping[str, Any]], contents: Mapping[str, Content]) -> None:
        """Append captions to the journal."""
        self.contents.add(contents)
        self.writer.write(rows, wait=False)  # the model need not wait for the disk

    def finish(self, places: Ids, images: ImageSource) -> None:
        """Sort the captions by place, those of images that the source no longer has last; write the format."""
        last = 2**62
        for lines in read_caption_lines(self.journal, self.kind):
            keys = digests(lines.ids)
            others = keys[~places.known(keys)]
            places.add(others, as_values(np.arange(last, last + len(others))))
            last += len(others)
        reorder(self.journal, places)
        self.contents.close(places, self.writer.done)
        if self.journal != self.path:
            captions = CaptionsOfFile(self.journal)
            write_captions(
                captions, self.path, images=images_of(self.format, images, self.writer.done), format=self.format.name
            )
            self.made = {"made": _digest(self.path)}
            write_settings(self.path, read_json(beside(self.path, "settings.json")) | self.made)

    def close(self) -> None:
        """Release the file for other writers."""
        self.writer.close()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SidecarOutput:
    """A text file beside each image: photos/a.jpg gets photos/a.txt.

    Args:
        images: the images, undecoded; each is a file.
        suffix: of the sidecars.
        folder: where to put them instead, in the images' tree; None: beside the images.
        root: the folder that this tree begins at, of all images or of a few; None: the deepest that holds all of these.
        overwrite: replace those that are there, which are kept otherwise.
        among: all images of the source, where `images` are some of them: one of the others may share a sidecar.

    Raises:
        SettingError: another suffix than .txt or .caption.
        SourceError: an image that is no file, or two images with one sidecar.
    """

    def __init__(
        self,
        images: ImageSource,
        suffix: str,
        folder: Path | None = None,
        *,
        root: Path | None = None,
        overwrite: bool = False,
        among: ImageSource | None = None,
    ) -> None:
        suffix = suffix if suffix.startswith(".") else f".{suffix}"
        if suffix not in SIDECARS:
            raise SettingError(f"a sidecar ends with {' or '.join(SIDECARS)}, not with {suffix}")
        self.files = sidecars(images if among is None else among, suffix, folder, root)
        if among is not None:
            ids = [nfc(str(one)) for one in column(images, "image_id")]
            if gone := next((one for one in ids if one not in self.files), None):
                raise SourceError(f"image {gone!r} is gone since the source was listed: run the same command again")
            self.files = {one: self.files[one] for one in ids}
        names: dict[str, set[str]] = {}
        for file in self.files.values():
            names.setdefault(os.path.dirname(file), set()).add(os.path.basename(file))
        if stale := sum(remove_stale(Path(place), those) for place, those in names.items()):
            logger.info("%d files that a killed run had not finished are removed", stale)
        self.done = set() if overwrite else {one for one, file in self.files.items() if os.path.exists(file)}

    def have(self, ids: Sequence[str], image: ImageOf | None) -> np.ndarray:
        """Return which images have a sidecar."""
        return np.array([one in self.done for one in ids], dtype=bool)

    def cut_off(self, image_ids: Collection[str]) -> bool:
        """Always: a batch is made as a whole, so that its captions do not depend on where a run was stopped."""
        return True

    def write(self, rows: Iterable[Mapping[str, Any]], contents: Mapping[str, Content] | None = None) -> None:
        """Write each caption into its file, in one step."""
        for row in rows:
            file, line = Path(self.files[row["image_id"]]), sidecar_line(row["image_id"], row["caption"])
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with replacing(file) as temporary:
                    temporary.write_bytes(as_file(line))
            except UnicodeEncodeError as error:
                raise CaptionFileError(f"{file}: the caption holds half a character, which is no UTF-8 text") from error

    def finish(self, places: Ids, images: ImageSource) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is open."""


class StreamOutput:
    """Lines for a person or another program: standard output, or a FIFO.

    Args:
        path: ``-``, or the FIFO's.
        format: of `captune.data.caption_formats.STREAMED`; default: jsonl.

    Attributes:
        name: for people.

    Raises:
        UsageError: a FIFO that nobody reads.
    """

    def __init__(self, path: str | os.PathLike[str], format: str | None = None) -> None:
        self.standard = str(path) in ("-", *STDOUT)
        self.name = "standard output" if self.standard else str(path)
        self.file: IO[str] = sys.stdout if self.standard else open_stream(str(path))
        self.plain, self.delimiter = format == "text", {"csv": ",", "tsv": "\t"}.get(format or "")
        if self.delimiter:
            write_rows(self.file, [("image_id", "caption")], self.delimiter, self.name)

    def have(self, ids: Sequence[str], image: ImageOf | None) -> np.ndarray:
        """None has a caption: nothing is resumed."""
        return np.zeros(len(ids), dtype=bool)

    def cut_off(self, image_ids: Collection[str]) -> bool:
        """Never: nothing is resumed."""
        return False

    def write(self, rows: Iterable[Mapping[str, Any]], contents: Mapping[str, Content] | None = None) -> None:
        """Write and flush."""
        if self.delimiter:
            pairs = ((row["image_id"], row["caption"]) for row in rows)
            write_rows(self.file, pairs, self.delimiter, self.name)
        else:
            plain = (f"{sidecar_line(row['image_id'], row['caption'])}\n" for row in rows)
            self.file.writelines(plain if self.plain else map(jsonl_line, rows))
        self.file.flush()

    def finish(self, places: Ids, images: ImageSource) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Close a FIFO; standard output stays open."""
        if not self.standard:
            self.file.close()


class KeptOutput:
    """Captions that are kept in memory, for what writes them somewhere by itself.

    Attributes:
        captions: by image_id; when the job is done, in the order of the images' places.
    """

    def __init__(self) -> None:
        self.captions: dict[str, str] = {}

    def have(self, ids: Sequence[str], image: ImageOf | None) -> np.ndarray:
        """None has a caption: nothing is resumed."""
        return np.zeros(len(ids), dtype=bool)

    def cut_off(self, image_ids: Collection[str]) -> bool:
        """Never: nothing is resumed."""
        return False

    def write(self, rows: Iterable[Mapping[str, Any]], contents: Mapping[str, Content] | None = None) -> None:
        """Keep them."""
        self.captions.update((row["image_id"], row["caption"]) for row in rows)

    def finish(self, places: Ids, images: ImageSource) -> None:
        """Bring them into order."""
        ids = list(self.captions)
        order = np.argsort(numbers(places.find(digests(ids))[1]))
        self.captions = {ids[at]: self.captions[ids[at]] for at in order.tolist()}

    def close(self) -> None:
        """Nothing is open."""


def images_of(format: Format, images: ImageSource, wanted: Container[str]) -> Mapping[str, Any]:
    """Return {image_id: the image, undecoded} where a format needs it, else nothing."""
    if format.name not in ("webdataset", "metadata"):
        return {}
    return _Images(undecoded(images), wanted)


class _Images(Mapping[str, Any]):
    """The images of a dataset by id, each read when it is asked for."""

    def __init__(self, images: Any, wanted: Container[str]) -> None:
        self.images = images
        self.rows = {
            nfc(str(key)): row for row, key in enumerate(column(images, "image_id")) if nfc(str(key)) in wanted
        }

    def __getitem__(self, image_id: str) -> Any:
        return self.images[self.rows[image_id]]["image"]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows)


def sidecars(images: ImageSource, suffix: str, folder: Path | None = None, root: Path | None = None) -> dict[str, str]:
    """Return {image_id: its sidecar's path}.

    Args:
        images: undecoded; each is a file.
        suffix: of the sidecars.
        folder: put them there instead of beside the images, in the tree that the images have below `root`.
        root: a folder above all images; None: the deepest there is.

    Raises:
        SourceError: an image that is no file of a folder, or two images with one sidecar.
    """
    files: dict[str, str] = {}
    for row in images.select_columns(["image_id", "image"]):
        image, image_id = row["image"], nfc(str(row["image_id"]))
        path = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else None
        if not path:
            raise SourceError(
                f"image {image_id!r} is no file of its own, so that nothing can stand beside it; write --output "
                "captions.jsonl, or a .tar with the images"
            )
        files[image_id] = path
    below = {} if folder is None else tree_of(files, root)
    taken: dict[str, str] = {}
    for image_id, path in files.items():
        file = Path(path) if folder is None else folder / below[image_id]
        made = files[image_id] = str(file.with_name(file.stem + suffix))
        if (other := taken.setdefault(made, image_id)) != image_id:
            raise SourceError(
                f"{other!r} and {image_id!r} would share the sidecar {os.path.basename(made)}: rename one of the images"
            )
    return files
