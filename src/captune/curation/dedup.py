"""`dedup`: what is said twice, shown twice, or is in another set as well.

Exact: captions of equal normalised text (Unicode's NFKC, case, spaces, a full stop at the end), images of equal
decoded pixels. Near: vectors of an encoder, or of a column of the source, whose cosine is at least `near`; what is near
to what is near is one group. Of a group the first is kept, or with `best` the one with the highest value of a column.
With `merge` the captions of an image that is there again are not dropped: they move to the image that is kept.

`against` names another set: what this set shares with it is dropped and counted, the first thousand pairs are named in
the report, and repetitions inside this set stay. Training captions are checked against a test set that way.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from captune.curation.base import MOST_NAMED, Captions, Verdicts, Work, keep, setting
from captune.errors import BadImage, CurationError, UsageError

_PART, _IMAGES = 4096, 256  # captions and images of a part
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True)
class Dedup:
    """Drop captions that say the same again, images that are there again, or what another set holds, too."""

    example = "captune curate dedup captions.parquet --near 0.95 --by all-MiniLM-L6-v2 --output runs/unique"

    of: Literal["captions", "images"] = setting("what is compared", "captions")
    near: Annotated[float, Field(gt=0, le=1)] | None = setting(
        "the least cosine of two that count as one; none: equal ones only", None
    )
    by: str | None = setting("the encoder for near, a sentence or an image encoder", None, metavar="MODEL")
    embeddings: str | None = setting(
        "or a column of the source's parquet files or JSON lines that holds vectors", None, metavar="COLUMN"
    )
    within: Literal["set", "image"] = setting(
        "captions are compared in the whole set, or among those of an image", "set"
    )
    most: Annotated[int, Field(ge=1)] = setting("so many of a group are kept", 1)
    best: str | None = setting("the column whose highest value is kept; none: the first", None, metavar="COLUMN")
    merge: bool = setting("of images: the captions of a repeated image move to the one that is kept", False)
    against: str | None = setting("another set: what is in it, too, is dropped here", None, metavar="SOURCE")

    def __post_init__(self) -> None:
        if self.near is None and (self.by or self.embeddings):
            raise UsageError("by and embeddings are for near: give the least cosine, such as near 0.95")
        if self.near is not None and not (self.by or self.embeddings):
            raise UsageError("near needs vectors: name an encoder with by, or a column with embeddings")
        if self.by and self.embeddings:
            raise UsageError("by and embeddings name the same vectors in two ways; keep one")
        if self.within == "image" and (self.of == "images" or self.near is not None or self.against):
            raise UsageError(
                "within image compares the captions of an image for equality; leave of, near and against out"
            )
        if self.merge and (self.of != "images" or self.against):
            raise UsageError("merge moves captions to the image that is kept: take of images, and leave against out")
        if self.against and (self.most > 1 or self.best):
            raise UsageError("against drops all that the other set holds; leave most and best out")

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts."""
        if self.best is not None and self.best not in captions.columns:
            have = ", ".join(captions.columns) or "no column of numbers"
            raise CurationError(f"best: the set has no column {self.best!r}; it has {have}")
        verdicts = Verdicts(len(captions))
        items = _Images(captions, work) if self.of == "images" else _Texts(captions, work)
        noun = "image" if self.of == "images" else "caption"
        unusable = items.unusable()
        if self.against is not None:
            self._against(items, verdicts, work, noun)
        else:
            self._repeated(items, verdicts, work, noun)
        verdicts.drop(items.captions_of(np.flatnonzero(unusable)), "the image cannot be opened")
        return verdicts

    def _repeated(self, items: _Items, verdicts: Verdicts, work: Work, noun: str) -> None:
        keys = items.digests("own")
        if self.within == "image":
            keys = keys ^ (items.rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        first = _first_of(keys)
        first = np.where(items.unusable(), np.arange(len(first)), first)
        exact = first
        if self.near is not None:
            unique = np.flatnonzero(first == np.arange(len(first)))  # equal ones need no vectors
            unique = unique[~items.unusable()[unique]]
            vectors = self._vectors(items, unique, work, "own")
            group = unique[_near_groups(vectors, self.near, work, verdicts.notes)]
            joined = np.arange(len(first))
            joined[unique] = group
            first = joined[first]
        value = np.zeros(len(first)) if self.best is None else np.nan_to_num(items.values(self.best), nan=-np.inf)
        order = np.lexsort((np.arange(len(first)), -value, first))  # in each group: best, then first
        start = np.searchsorted(first[order], first[order])
        rank = np.arange(len(order)) - start
        repeated = order[rank >= self.most]
        kept = np.empty(len(order), dtype=np.int64)
        kept[order] = order[start]
        same = exact[repeated] == exact[kept[repeated]]
        for which, how in ((repeated[same], "equal"), (repeated[~same], "near")):
            reason = f"repeats an {how} {noun}" if how == "equal" else f"repeats a near {noun}"
            self._leave(items, which, kept[which], verdicts, reason)

    def _leave(self, items: _Items, which: np.ndarray, kept: np.ndarray, verdicts: Verdicts, reason: str) -> None:
        repeating, other = items.captions_with(which, kept)
        verdicts.other[repeating] = other
        if not self.merge:
            verdicts.drop(repeating, reason)
            return
        rows = items.captions.rows[other]
        for index, row in zip(repeating.tolist(), rows.tolist(), strict=True):
            verdicts.move(index, row, reason)

    def _against(self, items: _Items, verdicts: Verdicts, work: Work, noun: str) -> None:
        files = work.path("against.arrow"), work.path("against-images.arrow")
        theirs: _Items
        if self.of == "images" and not self.embeddings:  # of captions or not
            other = Captions.of_images(str(self.against), *files)
            theirs = _Images(other, work, np.arange(len(other.image_ids)))
        else:
            other = _other(str(self.against), *files)
            theirs = _Images(other, work) if self.of == "images" else _Texts(other, work)
            if self.of == "images" and (bare := len(other.image_ids) - len(theirs.rows)):
                raise CurationError(
                    f"{bare} of the {len(other.image_ids)} images of {self.against} have no caption and so no vector "
                    f"in the column {self.embeddings!r}: leave embeddings out, and they are compared, too"
                )
        own_keys, keys = items.digests("own"), theirs.digests("against")
        usable = np.flatnonzero(~theirs.unusable())
        order = usable[np.argsort(keys[usable], kind="stable")]
        place = np.minimum(np.searchsorted(keys[order], own_keys), max(len(order) - 1, 0))
        shared = (keys[order[place]] == own_keys) & ~items.unusable() if len(order) else np.zeros(len(own_keys), bool)
        match = np.full(len(own_keys), -1, dtype=np.int64)
        match[shared] = order[place[shared]]
        equal = int(shared.sum())
        if self.near is not None:
            from captune.curation.near import found_share, is_whole, near_pairs

            mine = np.flatnonzero(~items.unusable() & (match < 0))
            if len(mine) and len(usable):  # all else is equal, or is not to be compared
                both = _together(
                    self._vectors(items, mine, work, "own"), self._vectors(theirs, usable, work, "against"), work
                )
                for i, j in near_pairs(both, self.near, own=len(mine), progress=work.progress):
                    rows, first = np.unique(i, return_index=True)
                    new = match[mine[rows]] < 0
                    match[mine[rows[new]]] = usable[j[first[new]] - len(mine)]
                if not is_whole(len(both), len(mine)):
                    known = match[mine] >= 0
                    share = found_share(both, self.near, lambda i, near: np.full(len(near), known[i]), own=len(mine))
                    verdicts.notes["near pairs found, of those of a sample"] = list(share)
        found = np.flatnonzero(match >= 0)
        near = len(found) - equal
        for chosen, how in ((shared[found], "an equal"), (~shared[found], "a near")):
            verdicts.drop(items.captions_of(found[chosen]), f"{how} {noun} is in {self.against}")
        verdicts.notes["shared with the other set"] = {
            f"equal {noun}s": equal,
            f"near {noun}s": near,
            **({"images that cannot be opened there": unusable} if (unusable := int(theirs.unusable().sum())) else {}),
            "of them": [f"{items.name(int(at))} = {theirs.name(int(match[at]))}" for at in found[:MOST_NAMED]],
            **({"and not named": len(found) - MOST_NAMED} if len(found) > MOST_NAMED else {}),
        }

    def _vectors(self, items: _Items, which: np.ndarray, work: Work, name: str) -> np.ndarray:
        if self.embeddings:
            from captune.curation.reading import read_vectors

            path = work.path(f"vectors-{name}.npy")
            return read_vectors(items.captions.source, self.embeddings, items.entries[which], path)
        return items.encode(str(self.by), which, f"vectors-{name}")


class _Items:
    """What is compared: the captions of a set, or its images."""

    rows: np.ndarray
    entries: np.ndarray
    what: str

    def __init__(self, captions: Captions, work: Work) -> None:
        self.captions, self.work = captions, work
        self._bad: np.ndarray | None = None

    def unusable(self) -> np.ndarray:
        """(items,) bool: what cannot be compared."""
        return np.zeros(len(self.rows), dtype=bool) if self._bad is None else self._bad

    def digests(self, name: str) -> np.ndarray:
        """(items,) uint64: equal for equal ones."""
        raise NotImplementedError

    def encode(self, by: str, which: np.ndarray, name: str) -> np.ndarray:
        """(n, D) unit vectors of some, kept under a name."""
        raise NotImplementedError

    def values(self, column: str) -> np.ndarray:
        """(items,) of a column."""
        raise NotImplementedError

    def captions_of(self, which: np.ndarray) -> np.ndarray:
        """The captions of some items."""
        raise NotImplementedError

    def captions_with(self, which: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The captions of some items, and for each a caption of the item that is kept."""
        raise NotImplementedError

    def name(self, item: int) -> str:
        """What a record calls it."""
        raise NotImplementedError


class _Texts(_Items):
    what = "caption"

    def __init__(self, captions: Captions, work: Work) -> None:
        super().__init__(captions, work)
        self.rows, self.entries = captions.rows, captions.column("entry")

    def digests(self, name: str) -> np.ndarray:
        made = np.empty(len(self.rows), dtype=np.uint64)
        for start in range(0, len(made), _PART):
            texts = self.captions.texts(start, min(start + _PART, len(made)))
            made[start : start + len(texts)] = [_digest(normalised(text).encode("utf-8", "replace")) for text in texts]
        return made

    def encode(self, by: str, which: np.ndarray, name: str) -> np.ndarray:
        from captune.curation.vectors import Loaded, text_vectors
        from captune.models.encoders import load_text_encoder

        texts = pa.chunked_array([self.captions.table["text"].take(which).combine_chunks()])
        return text_vectors(texts, Loaded(load_text_encoder, by, self.work.device), self.work, f"{name}-{len(which)}")

    def values(self, column: str) -> np.ndarray:
        return self.captions.column(column)

    def captions_of(self, which: np.ndarray) -> np.ndarray:
        return which

    def captions_with(self, which: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return which, kept

    def name(self, item: int) -> str:
        return self.captions.name(item)


class _Images(_Items):
    what = "image"

    def __init__(self, captions: Captions, work: Work, rows: np.ndarray | None = None) -> None:
        super().__init__(captions, work)
        self.starts = captions.starts
        self.rows = captions.rows[self.starts[:-1]] if rows is None else rows
        self.entries = captions.column("entry")[self.starts[:-1]]

    def unusable(self) -> np.ndarray:
        if self._bad is None:
            self.digests("own")
        return super().unusable()

    def digests(self, name: str) -> np.ndarray:
        count = len(self.rows)
        parts = [
            (f"pixels-{name}-{count}-{start:09d}.npy", self.rows[start : start + _IMAGES], min(_IMAGES, count - start))
            for start in range(0, count, _IMAGES)
        ]
        self.work.share(_Pixels(self.captions), parts, "looking for equal images")
        whole = np.concatenate([np.load(self.work.path(part)) for part, *_ in parts])
        self._bad = whole[:, 1] > 0
        return np.asarray(whole[:, 0])

    def encode(self, by: str, which: np.ndarray, name: str) -> np.ndarray:
        from captune.curation.vectors import Loaded, image_vectors
        from captune.models.encoders import load_image_encoder

        encoder = Loaded(load_image_encoder, by, self.work.device)
        return image_vectors(self.captions, encoder, self.work, f"{name}-{len(which)}", self.rows[which])[0]

    def values(self, column: str) -> np.ndarray:
        return np.fmax.reduceat(self.captions.column(column), self.starts[:-1])

    def captions_of(self, which: np.ndarray) -> np.ndarray:
        return self.captions_with(which, which)[0]

    def captions_with(self, which: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = self.starts[which + 1] - self.starts[which]
        ends = np.cumsum(sizes)
        own = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - sizes, sizes)
        return own + np.repeat(self.starts[which], sizes), np.repeat(self.starts[kept], sizes)

    def name(self, item: int) -> str:
        return str(self.captions.image_ids[int(self.rows[item])].as_py())


class _Pixels:
    """Writes (n, 2) uint64: a digest of each image's pixels, and 1 where it cannot be opened."""

    def __init__(self, captions: Captions) -> None:
        self.captions = captions

    def __call__(self, path: Path, rows: np.ndarray) -> None:
        from captune.data.images import open_image
        from captune.utils.hashing import pixels_digest

        made = np.zeros((len(rows), 2), dtype=np.uint64)
        for at, row in enumerate(rows.tolist()):
            try:
                image = open_image(self.captions.images[row]["image"], self.captions.image_ids[row].as_py())
                made[at, 0] = _digest(pixels_digest(image))
            except BadImage:
                made[at, 1] = 1
        keep(path, made)


def normalised(text: str) -> str:
    """Return a text without what does not change what it says: Unicode's form, case, spaces, a full stop at the end."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _SPACES.sub(" ", text.casefold()).strip().rstrip(".").rstrip()


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _first_of(keys: np.ndarray) -> np.ndarray:
    """(N,) the first place with the key of each place."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)])


def _near_groups(vectors: np.ndarray, least: float, work: Work, notes: dict[str, Any]) -> np.ndarray:
    """(N,) the first of each vector's group."""
    from captune.curation.near import WHOLE, found_share, groups, near_pairs

    first = groups(len(vectors), near_pairs(vectors, least, progress=work.progress))
    if len(vectors) > WHOLE:
        found, there = found_share(vectors, least, lambda i, near: first[near] == first[i])
        notes["near pairs found, of those of a sample"] = [found, there]
    return first


def _together(own: np.ndarray, theirs: np.ndarray, work: Work) -> np.ndarray:
    """Both sets' vectors in one array on the disk."""
    if own.shape[1] != theirs.shape[1]:
        raise CurationError(f"vectors of {own.shape[1]} numbers cannot be compared with those of {theirs.shape[1]}")
    shape = (len(own) + len(theirs), own.shape[1])
    both = np.lib.format.open_memmap(work.path("vectors-both.npy"), "w+", np.float32, shape)
    both[: len(own)], both[len(own) :] = own, theirs
    return np.asarray(both)


def _other(source: str, captions: Path, images: Path) -> Captions:
    """The captions of another set."""
    from captune.curation.reading import read_source

    if not captions.is_file():
        read_source(source, None, captions, images)
    return Captions.open(source, captions, images)
