"""A source of images -> a caption file: streamed, resumable, and not stopped by a bad image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset
from PIL import Image

from captune.data import BadImage, CaptionFileError, CaptionWriter, ImageSource, load_images, open_image, read_jsonl
from captune.data.sources import undecoded

if TYPE_CHECKING:
    from captune.captioner import Captioner


class Captioned(NamedTuple):
    """What a captioning run did. bad: (image, reason) of each image that could not be read."""

    path: Path
    new: int
    kept: int
    bad: list[tuple[str, str]]
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.new / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        parts = [f"{self.new} images captioned into {self.path}"]
        if self.kept:
            parts.append(f"{self.kept} were there already")
        if self.bad:
            parts.append(f"{len(self.bad)} could not be read")
        speed = f" ({self.images_per_second:.1f} images per second)" if self.new else ""
        return ", ".join(parts) + speed


def caption_source(
    model: str | Path,
    source: str,
    output: str | Path,
    *,
    adapter: str | Path | None = None,
    overwrite: bool = False,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    loading: dict[str, Any] | None = None,
    **generation: Any,
) -> Captioned:
    """Caption the images of `source` that `output` has no caption of; the model is loaded only if there are any.

    :param overwrite: start afresh; otherwise the file is continued, if the same captioner wrote it.
    :param loading: further arguments of `Captioner.load` (dtype, device, trust_remote_code).
    :param generation: settings of `Captioner.generate`.
    :raises SourceError, CaptionerError, CaptionFileError: each says what to do.
    """
    from transformers import set_seed

    from captune.captioner import Captioner
    from captune.loading import resolve

    output, dataset = Path(output), load_images(source, limit=limit, decode=False)
    adapted = [f"+ {_identity(adapter, adapter)}"] if adapter else []
    captioner_id = " ".join([_identity(model, resolve(model)), *adapted, *_said(generation)])
    if not overwrite:
        _same_captioner(output, captioner_id)
    with CaptionWriter(output, resume=not overwrite) as writer:
        todo, kept = _left_over(dataset, writer.done)
        if isinstance(todo, Dataset) and not len(todo):
            return Captioned(output, 0, kept, [], 0.0)
        captioner = Captioner.load(model, adapter, **(loading or {}))
        set_seed(seed)
        settings = {"batch_size": batch_size, **generation}
        return write_captions(captioner, todo, writer, captioner_id=captioner_id, kept=kept, **settings)


def write_captions(
    captioner: Captioner,
    dataset: ImageSource,
    writer: CaptionWriter,
    *,
    captioner_id: str | None = None,
    kept: int = 0,
    batch_size: int = 32,
    **generation: Any,
) -> Captioned:
    """Caption every row of `dataset` (columns image, image_id; undecoded or not) into an open `CaptionWriter`."""
    bad: list[tuple[str, str]] = []
    total = len(dataset) if isinstance(dataset, Dataset) else None
    extra = {"captioner": captioner_id} if captioner_id else {}
    start, before, rows = time.perf_counter(), len(writer.done), []
    try:
        stream = captioner.caption(
            _readable(dataset, writer.done, bad), batch_size=batch_size, total=total, **generation
        )
        for image_id, caption in stream:
            rows.append({"image_id": image_id, "caption": caption, **extra})
            if len(rows) >= batch_size:
                writer.write(rows)
                rows = []
    finally:  # also when interrupted: what was made is kept
        if rows:
            writer.write(rows)
    return Captioned(writer.path, len(writer.done) - before, kept, bad, time.perf_counter() - start)


def _readable(dataset: ImageSource, done: set[str], bad: list[tuple[str, str]]) -> Iterator[tuple[str, Image.Image]]:
    for row in undecoded(dataset):
        if row["image_id"] not in done:
            try:
                image = open_image(row["image"], row["image_id"])
            except BadImage as problem:
                bad.append((problem.item, problem.why))
            else:
                yield row["image_id"], image


def _left_over(dataset: ImageSource, done: set[str]) -> tuple[ImageSource, int]:
    """The rows without a caption, and how many have one (0 where the source streams: then rows are skipped as read)."""
    if not done or not isinstance(dataset, Dataset):
        return dataset, 0
    left = [i for i, image_id in enumerate(dataset["image_id"]) if image_id not in done]
    return dataset.select(left), len(dataset) - len(left)


def _same_captioner(path: Path, captioner_id: str) -> None:
    if not path.is_file() or not path.stat().st_size:
        return
    others = {row["captioner"] for row in read_jsonl(path) if row.get("captioner", captioner_id) != captioner_id}
    if others:
        raise CaptionFileError(
            f"{path} holds captions by another captioner or other settings ({sorted(others)[0]}; now {captioner_id}); "
            "name another --output, or say --overwrite"
        )


def _said(generation: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in sorted(generation.items()) if value is not None]


def _identity(name: str | Path, folder: str | Path) -> str:
    """A name and, for a folder on this machine, a mark of its weights (their sizes and first and last megabyte)."""
    weights = sorted(Path(folder).expanduser().glob("*.safetensors"))
    if not weights:
        return str(name)
    mark = hashlib.sha256()
    for file in weights:
        with file.open("rb") as content:
            mark.update(f"{file.name} {file.stat().st_size} ".encode() + content.read(2**20))
            content.seek(max(0, file.stat().st_size - 2**20))
            mark.update(content.read())
    return f"{name}@{mark.hexdigest()[:8]}"
