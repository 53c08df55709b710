"""What frozen encoders make of images and captions, computed once, in files that a killed run keeps.

    <digest>/images/vectors.npy  (N, V, S) float32, V views of each image
    <digest>/texts/vectors.npy   (M, S) float32                              each beside an index.json

The digest is of the encoders and of the items (ids, captions, and the bytes of the images' files, so that an image that
was replaced under its name is encoded again); index.json says the same in full, and how many rows are done. Rows are
made in chunks that do not depend on where an earlier run stopped, so the bytes are the same. One process at a time
works in such a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from captune.data.columns import undecoded
from captune.data.images import open_image, read_image
from captune.data.views import view
from captune.errors import EncoderError, RunError
from captune.models.encoders.base import EncodesImages, EncodesTexts
from captune.models.encoders.pair import frozen_vectors
from captune.utils.files import discard, lock_folder, naming, read_json, replace_file
from captune.utils.hashing import fingerprint
from captune.utils.progress import Bar
from captune.utils.skipped import Told, skip

CHUNK = 32  # images encoded together
TEXTS = 512  # captions encoded together
INDEX = "index.json"
_SAME = 1 - 1e-5  # cosine from which two images are one


class Part(Protocol):
    """A set of images of which some can be taken."""

    def __len__(self) -> int:
        """Return how many images there are."""

    def select(self, rows: Sequence[int]) -> Self:
        """Return some of them."""


@dataclass(frozen=True)
class Captioned:
    """Captioned images.

    Attributes:
        source: as written.
        rows: a dataset with the column `image`.
        ids: of the images.
        captions: of each image, one at least.
    """

    source: str
    rows: Any
    ids: list[str]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> Captioned:
        """Return some of them."""
        return Captioned(
            self.source,
            self.rows.select(list(rows)),
            [self.ids[row] for row in rows],
            [self.captions[row] for row in rows],
        )


@dataclass(frozen=True)
class Vectors:
    """What the frozen encoders make of captioned images.

    Attributes:
        ids: of the N images.
        images: (N, V, S) unit vectors.
        texts: (M, S') unit vectors, an image's captions after each other.
        captions: the M captions.
        owners: of each caption, the number of its image.
        contents: of each image, a digest of its bytes.
    """

    ids: list[str]
    images: Tensor
    texts: Tensor
    captions: list[str]
    owners: list[int]
    contents: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> Vectors:
        """Return those of some images, in the order given."""
        place = {row: i for i, row in enumerate(rows)}
        kept = sorted((place[owner], text) for text, owner in enumerate(self.owners) if owner in place)
        texts = [text for _, text in kept]
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            images=self.images[list(rows)],
            texts=self.texts[texts],
            captions=[self.captions[text] for text in texts],
            owners=[owner for owner, _ in kept],
            contents=[self.contents[row] for row in rows],
        )


def vectors_of(
    folder: Path,
    data: Captioned,
    image_encoder: EncodesImages,
    text_encoder: EncodesTexts,
    *,
    whole: bool,
    views: int = 1,
) -> Vectors:
    """Encode captioned images, or take from the folder what an earlier run encoded.

    Args:
        folder: keeps the vectors of this and other data.
        data: what is encoded.
        image_encoder: frozen.
        text_encoder: frozen.
        whole: squeeze each image into a square first.
        views: V, of each image.

    Raises:
        EncoderError: an encoder gives a vector that is not finite.
        RunError: a file of the folder cannot be read, or another process is working on it.
    """
    captions, contents = [text for own in data.captions for text in own], contents_of(data)
    about = {
        "image_encoder": image_encoder.digest,
        "text_encoder": text_encoder.digest,
        "whole": whole,
        "views": views,
        "chunk": [CHUNK, TEXTS],
        "items": fingerprint(json.dumps([data.source, data.ids, data.captions, contents])),
    }

    def encode_images(start: int) -> np.ndarray:
        stop = min(start + CHUNK, len(data))
        opened = [open_image(data.rows[row]["image"], data.ids[row]) for row in range(start, stop)]
        made = []
        for number in range(views):
            seen = [
                view(image, number, data.ids[row], " ".join(data.captions[row]))
                for row, image in zip(range(start, stop), opened, strict=True)
            ]
            made.append(frozen_vectors(image_encoder, seen, whole=whole, batch_size=CHUNK))
        return torch.stack(made, dim=1).numpy()

    def encode_texts(start: int) -> np.ndarray:
        before = getattr(text_encoder, "truncated", 0)
        vectors = torch.as_tensor(text_encoder.encode_texts(captions[start : start + TEXTS])).numpy()
        if cut := getattr(text_encoder, "truncated", 0) - before:
            limit = getattr(text_encoder, "context_length", None)
            told = Told(f"captions were cut behind the {limit} tokens of the text encoder")
            skip(told, f"{data.source}, captions from {start} on", cut)
        return vectors

    own = folder / fingerprint(json.dumps(about, sort_keys=True))
    with _alone(own):
        images = _kept(own / "images", about, len(data), CHUNK, encode_images, f"images of {data.source}")
        texts = _kept(own / "texts", about, len(captions), TEXTS, encode_texts, f"captions of {data.source}")
    owners = [row for row, own in enumerate(data.captions) for _ in own]
    return Vectors(data.ids, images, texts, captions, owners, contents)


P = TypeVar("P", bound=Part)


def held_out(data: P, number: int, first: int) -> tuple[P, P, P]:
    """Return a set without `number` of its images, the first of these, and the others; always the same images."""
    held = np.random.default_rng(0).permutation(len(data))[:number].tolist()
    rest = np.setdiff1d(np.arange(len(data)), held).tolist()
    return data.select(rest), data.select(sorted(held[:first])), data.select(sorted(held[first:]))


def each_once(part: Vectors, use: str) -> Vectors:
    """Return a part with images of the same pixels as one that has the captions of all; each copy is counted.

    Args:
        part: what recall is measured on: of two equal images neither is found first.
        use: what it is for, for the count.
    """
    same = part.images[:, 0] @ part.images[:, 0].T >= _SAME
    first = same.int().argmax(dim=1).tolist()  # the earliest image that it equals
    for row, kept in enumerate(first):
        if kept < row:
            skip(f"copies of other images {use}", part.ids[row])
    kept = sorted(set(first))
    return (
        replace(part, owners=[first[owner] for owner in part.owners]).select(kept) if len(kept) < len(first) else part
    )


def without_shared(part: Vectors, use: str, *others: Vectors) -> Vectors:
    """Return a part without the images that also stand in others, by id or by pixels; each is counted.

    Args:
        part: what is left of it is returned.
        use: what it is for, for the count.
        others: whose images it may not share.
    """
    shared = torch.zeros(len(part), dtype=torch.bool)
    for other in others:
        shared |= (part.images[:, 0] @ other.images[:, 0].T).amax(dim=1) >= _SAME
        known = set(other.ids)
        shared |= torch.tensor([image_id in known for image_id in part.ids], dtype=torch.bool)
    for row in shared.nonzero().flatten().tolist():
        skip(f"images {use} that also stand among those held out from it", part.ids[row])
    return part.select((~shared).nonzero().flatten().tolist()) if bool(shared.any()) else part


def contents_of(data: Captioned) -> list[str]:
    """Return a digest of each image's bytes; of images that a program draws nothing, as their source decides them."""
    from datasets import Image

    if not isinstance((data.rows.features or {}).get("image"), Image):
        return [""] * len(data)
    raw = undecoded(data.rows)
    return [
        hashlib.blake2b(read_image(raw[row]["image"], image_id), digest_size=16).hexdigest()
        for row, image_id in enumerate(data.ids)
    ]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process works in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock_folder(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}") from error
    if held is None:
        raise RunError(f"another process is encoding into {folder}: wait for it, or name another --features")
    try:
        yield
    finally:
        if held >= 0:
            os.close(held)


def _kept(
    folder: Path, about: dict[str, Any], total: int, chunk: int, encode: Callable[[int], np.ndarray], what: str
) -> Tensor:
    """The rows of a folder, those that it lacks encoded; (total, ...)."""
    file, index = folder / "vectors.npy", folder / INDEX
    done = 0
    if index.is_file() and file.is_file():
        known = read_json(index, error=RunError)
        done = known.pop("done", 0)
        if known != about:
            done = 0
    if not done:
        discard(folder)
        folder.mkdir(parents=True)
    with Bar(total=total, initial=done, desc=f"encoding {what}") as bar:
        while done < total:
            made = encode(done)
            if not np.isfinite(made).all():
                raise EncoderError(
                    f"the encoder gives a vector that is not finite among the {what}, from row {done} on"
                )
            _put(file, made, done, total)
            done += len(made)
            replace_file(index, json.dumps(about | {"done": done}) + "\n")
            bar.update(len(made))
    return torch.from_numpy(np.load(file))


def _put(file: Path, rows: np.ndarray, first: int, total: int) -> None:
    """Write some of a file's rows, and put them on the disk.

    Not through a map of the file into memory: where the disk is full, writing to one kills the process without a word.
    """
    with naming(file), open(file, "rb+" if first else "wb") as target:
        if not first:
            header = {"descr": "<f4", "fortran_order": False, "shape": (total, *rows.shape[1:])}
            np.lib.format.write_array_header_1_0(target, header)
        else:
            np.lib.format.read_magic(target)
            np.lib.format.read_array_header_1_0(target)
            target.seek(first * rows[0].size * 4, os.SEEK_CUR)
        target.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        target.flush()
        os.fsync(target.fileno())
