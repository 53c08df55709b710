"""Captions from one format into another."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from captune.data import load_images, read_captions
from captune.data.caption_formats import output_format, write_captions
from captune.data.columns import column, undecoded
from captune.data.readers import nfc
from captune.data.sources import folder_of, whole_of
from captune.errors import CaptionFileError
from captune.inference.outputs import SidecarOutput, StreamOutput, images_of
from captune.utils.skipped import Told, skip
from captune.utils.wording import counted


def convert(
    captions: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    format: str | None = None,
    images: str | None = None,
    overwrite: bool = False,
) -> str:
    """Read captions in one format and write them in another.

    Args:
        captions: the file to read, or a folder: of images with sidecars or metadata, or of sidecars alone.
        output: the file to write, ``-`` for standard output, or for sidecars a folder.
        source_format: of `captions`; default: by its name.
        format: of `output`; default: by its name.
        images: the source of the images, for the formats that hold them, stand beside them, or name them by place.
        overwrite: replace sidecars that are there, which are kept otherwise.

    Returns:
        What was done, in a sentence.

    Raises:
        CaptionFileError: captions that cannot be read or written, or that belong to none of the images.
    """
    read = read_captions(captions, format=source_format, images=images)
    dataset = None if images is None else undecoded(load_images(images, decode=False, references=False))
    if format == "sidecars":
        if dataset is None:
            raise CaptionFileError("sidecars need the images that they stand beside: name --images")
        folder = None if _same_folder(output, images) else Path(output)
        whole = whole_of(str(images))
        among = None if whole is None else undecoded(load_images(whole, decode=False, references=False))
        writer = SidecarOutput(dataset, ".txt", folder, root=folder_of(str(images)), overwrite=overwrite, among=among)
        known = {key: text for key, text in read.items() if key in writer.files}
        _say_unknown(read, known, str(images))
        new = {key: text for key, text in known.items() if key not in writer.done}
        writer.write({"image_id": key, "caption": text} for key, text in new.items())
        kept = f"; {counted(len(known) - len(new), 'was', 'were')} there already" if len(new) < len(known) else ""
        return f"{counted(len(new), 'caption')} written as .txt files into {output}{kept}"
    chosen = output_format(output, format)
    if dataset is not None and (chosen is None or chosen.name not in ("webdataset", "metadata")):
        ids = {nfc(str(one)) for one in column(dataset, "image_id")}
        _say_unknown(read, {key: text for key, text in read.items() if key in ids}, str(images), kept=True)
    if chosen is None:
        with contextlib.closing(StreamOutput(output, format)) as stream:
            stream.write({"image_id": key, "caption": text} for key, text in read.items())
        return f"{counted(len(read), 'caption')} written to {stream.name}"
    needed = {} if dataset is None else images_of(chosen, dataset, read)
    if dataset is not None and chosen.name in ("webdataset", "metadata"):
        known = {key: text for key, text in read.items() if key in needed}
        _say_unknown(read, known, str(images))
        read = known
    write_captions(read, output, images=needed, format=chosen.name)
    return f"{counted(len(read), 'caption')} written into {output}"


def _same_folder(output: str | os.PathLike[str], images: str | None) -> bool:
    return images is not None and os.path.realpath(output) == os.path.realpath(os.path.expanduser(images))


def _say_unknown(read: dict[str, str], known: dict[str, str], images: str, kept: bool = False) -> None:
    """Count the captions of images that the source does not have; where all are such it is an error."""
    unknown = [key for key in read if key not in known]
    if not known:
        first = f", such as {unknown[0]!r}" if unknown else ""
        raise CaptionFileError(f"none of the {len(read)} captions is of an image of {images}{first}")
    if unknown:
        told = Told(f"captions are kept whose images are not in {images}")
        skip(told if kept else f"captions of images that are not in {images}", unknown[0], len(unknown))
