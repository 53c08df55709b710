"""The pairs that a reward model learns from: whose images there are, which are held out, and their frozen vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captune.data import column, load_images, without_bad
from captune.data.readers import nfc
from captune.errors import SourceError
from captune.evaluation.preferences import Preference, read_preferences
from captune.training.features import Captioned, Vectors, held_out
from captune.utils.skipped import skip

HELD_OUT = 500  # images for one use, at most
PART = 10  # one of so many images


@dataclass(frozen=True)
class Judged:
    """Images of which captions were compared.

    Attributes:
        source: the file of preferences, as written.
        data: the images, each with the captions that were compared.
        preferences: each of an image of `data`.
    """

    source: str
    data: Captioned
    preferences: list[Preference]

    def __len__(self) -> int:
        return len(self.data)

    def select(self, rows: Sequence[int]) -> Judged:
        """Return some of the images, with what was said of them."""
        kept = {self.data.ids[row] for row in rows}
        return Judged(self.source, self.data.select(rows), [o for o in self.preferences if o.image_id in kept])


def judged(source: str, images: str | None, limit: int | None = None) -> Judged:
    """Read preferences and find their images; what cannot be used is counted.

    Args:
        source: a file of `captune.evaluation.preferences`.
        images: the source of the images; None: those of the file.
        limit: read only the first of them.

    Raises:
        SourceError: the file has no images and no source is named, or nothing is left.
    """
    found = read_preferences(source)
    told = []
    for one in found.preferences[:limit]:
        one = one._replace(image_id=nfc(one.image_id))
        if not (one.first.strip() and one.second.strip()):
            skip("pairs with a caption that has no words", one.image_id)
        elif one.first.strip() == one.second.strip():
            skip("pairs of equal captions", one.image_id)
        else:
            told.append(one)
    wanted = list(dict.fromkeys(one.image_id for one in told))
    if images is not None:
        rows = _of_source(wanted, images)
    elif found.images:
        rows = _of_file(wanted, found.images)
    else:
        raise SourceError(f"{source} neither holds nor names its images: say where they are with --images")
    if rows is not None:
        rows, _ = without_bad(rows)
    ids = [nfc(str(image_id)) for image_id in column(rows, "image_id")] if rows is not None else []
    there = set(ids)
    lacking = [one.image_id for one in told if one.image_id not in there]
    if lacking:
        skip(f"pairs of images that are not in {images or source}", lacking[0], len(lacking))
    told = [one for one in told if one.image_id in there]
    if not told:
        raise SourceError(
            f"{source}: no pair can be used" + (f"; its images have ids like {wanted[0]!r}" if wanted else "")
        )
    captions: dict[str, set[str]] = {image_id: set() for image_id in ids}
    for one in told:
        captions[one.image_id] |= {one.first, one.second}
    # in an order that who won does not change, so that kept vectors serve other verdicts on the same captions
    data = Captioned(images or source, rows, ids, [sorted(captions[image_id]) for image_id in ids])
    return Judged(source, data, told)


def _of_source(wanted: Iterable[str], source: str) -> Any:
    """The rows of a source's images, in the order of the pairs; None without any."""
    from datasets import IterableDataset

    dataset = load_images(source, decode=False)
    if isinstance(dataset, IterableDataset):
        raise SourceError(f"{source}: images are looked up by their ids, a stream cannot; leave streaming=1 out")
    place = {nfc(str(image_id)): row for row, image_id in enumerate(column(dataset, "image_id"))}
    rows = [place[image_id] for image_id in wanted if image_id in place]
    return _decoded(dataset.select(rows)) if rows else None


def _decoded(rows: Any) -> Any:
    from datasets import Image

    stored = isinstance((rows.features or {}).get("image"), Image)
    return rows.cast_column("image", Image()) if stored else rows


def _of_file(wanted: Iterable[str], images: dict[str, Any]) -> Any:
    from datasets import Dataset, Features, Image, Value

    there = [image_id for image_id in wanted if images.get(image_id)]
    if not there:
        return None
    features = Features({"image": Image(), "image_id": Value("string")})
    return Dataset.from_dict({"image": [images[i] for i in there], "image_id": there}, features=features)


def three_parts(whole: Judged, unseen: Judged | None) -> tuple[Judged, Judged, Judged]:
    """Return what trains, what chooses the step, and what accuracy is stated on, each of other images.

    Raises:
        SourceError: too few images.
    """
    number = min(HELD_OUT, len(whole) // PART)
    if not number:
        raise SourceError(
            f"{whole.source}: pairs of {len(whole)} images; {PART} are the least of which some can be held out"
        )
    train, choice, rest = held_out(whole, number if unseen else 2 * number, number)
    return train, choice, unseen or rest


@dataclass(frozen=True)
class Pairs:
    """Preferences as rows of vectors.

    Attributes:
        vectors: of images and captions.
        image: (P,) the number of each pair's image.
        first: (P,) that of its first caption.
        second: (P,) that of its second.
        winner: (P,) 1 the first, -1 the second, 0 a tie.
    """

    vectors: Vectors
    image: Tensor
    first: Tensor
    second: Tensor
    winner: Tensor

    def __len__(self) -> int:
        return len(self.winner)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return images (B, D), first captions (B, D), second ones (B, D) and who won (B,)."""
        texts = self.vectors.texts
        return (
            self.vectors.images[self.image[rows], 0],
            texts[self.first[rows]],
            texts[self.second[rows]],
            self.winner[rows],
        )


def pairs_of(vectors: Vectors, preferences: Iterable[Preference]) -> Pairs:
    """Return the preferences about images of which there are vectors."""
    image = {image_id: row for row, image_id in enumerate(vectors.ids)}
    text = {
        (owner, caption): row for row, (owner, caption) in enumerate(zip(vectors.owners, vectors.captions, strict=True))
    }
    rows = [
        (own, text[own, one.first], text[own, one.second], one.winner)
        for one in preferences
        if (own := image.get(one.image_id)) is not None
    ]
    return Pairs(vectors, *torch.tensor(rows, dtype=torch.long).reshape(-1, 4).unbind(dim=1))
