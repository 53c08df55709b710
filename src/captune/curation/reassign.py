"""`reassign`: captions to the images that fit them best (SynC), or images to such captions.

SynC (Kim et al., 2025) mends sets whose texts are clean and whose images are not, since a model drew them: it keeps
every caption c and looks for a better image in the whole set.

    T_K(c)   the K images nearest to c                         text-to-image retrieval, an encoder of both
    B_M(v)   the M captions nearest to image v                 image-to-text retrieval, the same encoder
    S(c, v) = max over c' in B_M(v) of cos(g(c), g(c'))        g a sentence encoder
    v*(c)   = argmax over v in T_K(c) of S(c, v)

An image may get several captions, or none. Captions are then sorted by S(c, v*), and the first 90% kept. Where v*
retrieves c itself, S is 1: the caption is found again, or one that says nearly the same.

`of: images` swaps the roles, for images that are right and texts that are noise (alt texts): T_K(v) are the K
captions nearest to image v, B_M(c) the M images nearest to caption c, and S(v, c) = max over v' in B_M(c) of
cos(h(v), h(v')), h an encoder of images (that of `by`, unless `alike` names another). An image with n captions gets
the n best ones; those that it had and that are among them stay.

`images` names another source: texts and images that never met. Each caption is given to one of its images.

What the published code does besides, and is not done here: it caches neighbours under names that lack K, so that
another K meets old ones; it stores scores in 16 bits; and its 90% is a constant inside of the code. As there, equal
scores are resolved in favour of the image that is nearest by the encoder of both, a caption's own image has no
advantage over others, and an image that no caption chose is left out. Here captions of one text are one caption in
B_M, which otherwise would hold the same text M times. Retrieval is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from captune.curation.base import Captions, Verdicts, Work, setting
from captune.curation.criteria import check_column
from captune.errors import CurationError, UsageError
from captune.utils.progress import Bar

_CELLS = 2**22  # numbers that are gathered at once
_QUERIES = 4096  # at once, at most
_DIGITS = 6  # scores that differ by less are equal: a product's last digits depend on its shape


@dataclass(frozen=True, kw_only=True)
class Reassign:
    """Give captions the images that fit them best, or images the captions that do (SynC)."""

    example = "captune curate reassign storybook:train?caption=alt_text --by storybook-clip --output runs/reassigned"

    of: Literal["captions", "images"] = setting(
        "captions: each gets an image of the set; images: each gets captions of the set", "captions"
    )
    by: str | None = setting(
        "the encoder that retrieves: a CLIP-like model, or an encoder pair; or name image_embeddings and "
        "text_embeddings",
        None,
        metavar="MODEL",
    )
    alike: str | None = setting(
        "the encoder that compares what is retrieved (default: all-MiniLM-L6-v2; of images: that of by)",
        None,
        metavar="MODEL",
    )
    image_embeddings: str | None = setting(
        "a column of the source's parquet files or JSON lines: vectors of images", None, metavar="COLUMN"
    )
    text_embeddings: str | None = setting("a column of vectors of captions in the same space", None, metavar="COLUMN")
    alike_embeddings: str | None = setting("a column of vectors, in place of alike", None, metavar="COLUMN")
    images: str | None = setting(
        "another source, whose images the captions are given to, in place of their own", None, metavar="SOURCE"
    )
    candidates: Annotated[int, Field(ge=1)] = setting("K, how many are looked at for each", 15)
    back: Annotated[int, Field(ge=1)] = setting("M, how many each candidate retrieves in turn", 2)
    keep: Annotated[float, Field(gt=0, le=1)] = setting("the share of captions that is kept, the best", 0.9)
    column: str = setting("the column that keeps the score", "cycle", metavar="NAME")

    def __post_init__(self) -> None:
        columns = [name for name in ("image_embeddings", "text_embeddings") if getattr(self, name)]
        if bool(self.by) == bool(columns):
            raise UsageError(
                "reassign retrieves by an encoder (by), or by two columns of vectors: name one or the other"
            )
        if len(columns) == 1:
            raise UsageError("image_embeddings and text_embeddings belong together; name both")
        if self.alike and self.alike_embeddings:
            raise UsageError("alike and alike_embeddings name the same vectors in two ways; keep one")

        check_column(self.column)
        if self.images and (self.of == "images" or columns):
            raise UsageError(
                "images gives captions to images of another source by an encoder: leave of and columns of vectors out"
            )

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts."""
        pool = captions
        if self.images is not None:
            pool = Captions.of_images(self.images, work.path("no-captions.arrow"), work.path("pool.arrow"))
        codes, texts, first = _distinct(captions)
        found = self._vectors(captions, pool, texts, first, work)
        to_images = self.of == "captions"
        sides = (found.texts, found.images) if to_images else (found.images, found.texts)
        most = 1 if to_images else int(np.diff(captions.starts).max())
        chosen, scores = best_by_cycle(*sides, found.alike, self.candidates, self.back, most, work)
        verdicts = Verdicts(len(captions))
        verdicts.images = None if pool is captions else pool
        verdicts.notes |= found.notes | {"images": len(found.rows), "different captions": len(texts)}
        assign = self._to_images if to_images else self._to_captions
        assign(captions, verdicts, found.rows, codes, texts, chosen, scores)
        verdicts.columns[self.column] = verdicts.score.copy()
        return verdicts

    def _to_images(
        self, captions: Captions, verdicts: Verdicts, rows: np.ndarray, codes: np.ndarray, texts: pa.Array,
        chosen: np.ndarray, scores: np.ndarray,
    ) -> None:  # fmt: skip
        verdicts.score[:] = scores[codes, 0]
        row = rows[chosen[codes, 0]]
        self._drop(verdicts, np.arange(len(captions)))
        stays = (row == captions.rows) & (verdicts.images is None)
        verdicts.keep(stays & ~verdicts.dropped, "its own image fits best")
        for index in np.flatnonzero(~stays & ~verdicts.dropped).tolist():
            verdicts.move(index, int(row[index]), "another image fits best")
        left = row[~verdicts.dropped]
        verdicts.notes["images chosen"] = len(np.unique(left))
        verdicts.notes["most captions of one image"] = int(np.bincount(left).max())

    def _to_captions(
        self, captions: Captions, verdicts: Verdicts, rows: np.ndarray, codes: np.ndarray, texts: pa.Array,
        chosen: np.ndarray, scores: np.ndarray,
    ) -> None:  # fmt: skip
        new = np.full(len(captions), -1, dtype=np.int64)
        place_of = {row: place for place, row in enumerate(rows.tolist())}
        unplaced: list[int] = []
        unusable: list[int] = []
        for start, stop in zip(captions.starts[:-1].tolist(), captions.starts[1:].tolist(), strict=True):
            place = place_of.get(int(captions.rows[start]))
            if place is None:
                unusable.extend(range(start, stop))
                continue
            best = dict(zip(chosen[place, : stop - start].tolist(), scores[place].tolist(), strict=False))
            free = []
            for index in range(start, stop):
                own = int(codes[index])
                if own in best:
                    new[index], verdicts.score[index] = own, best.pop(own)
                else:
                    free.append(index)
            for index, (code, score) in zip(free, best.items(), strict=False):
                new[index], verdicts.score[index] = code, score
            unplaced.extend(free[len(best) :])
        verdicts.drop(np.array(unusable, dtype=np.int64), "the image cannot be opened")
        verdicts.drop(
            np.array(unplaced, dtype=np.int64), f"the image has more captions than {chosen.shape[1]} candidates"
        )
        self._drop(verdicts, np.flatnonzero(~verdicts.dropped))
        stays = new == codes
        verdicts.keep(stays & ~verdicts.dropped, "its own caption fits best")
        for index in np.flatnonzero(~stays & ~verdicts.dropped).tolist():
            verdicts.change(index, texts[int(new[index])].as_py(), "another caption fits best")
        verdicts.notes["captions chosen"] = len(np.unique(new[~verdicts.dropped]))

    def _drop(self, verdicts: Verdicts, judged: np.ndarray) -> None:
        """Drop all but the best share of those that have a score."""
        number = math.ceil(self.keep * len(judged) - 1e-9)
        order = judged[np.argsort(-np.round(verdicts.score[judged], _DIGITS), kind="stable")]
        verdicts.drop(order[number:], f"not in the highest {self.keep:g} by the cycle score")

    def _vectors(self, captions: Captions, pool: Captions, texts: pa.Array, first: np.ndarray, work: Work) -> _Vectors:
        from captune.curation.reading import read_vectors
        from captune.curation.vectors import Loaded, image_vectors, text_vectors
        from captune.models.encoders import (
            DEFAULT_TEXT_ENCODER,
            described,
            load_encoder,
            load_image_encoder,
            load_text_encoder,
        )

        entries = captions.column("entry")
        held = captions.starts[:-1]  # the first caption of each image that has one
        notes: dict[str, Any] = {}

        def read(slot: str, which: np.ndarray) -> np.ndarray:
            name = getattr(self, f"{slot}_embeddings")
            return read_vectors(captions.source, name, entries[which], work.path(f"{slot}-column.npy"))

        chunks = pa.chunked_array([texts])
        if self.by:
            encoder = Loaded(load_encoder, self.by, work.device)
            notes["retrieved by"] = described(encoder.it)
            of_texts = text_vectors(chunks, encoder, work, "texts")
            of_images, rows = image_vectors(pool, encoder, work, "images")
        else:
            notes["retrieved by"] = f"{self.image_embeddings} and {self.text_embeddings}"
            of_texts = read("text", first)
            of_images, rows = read("image", held), captions.rows[held]
            if of_texts.shape[1] != of_images.shape[1]:
                raise CurationError(
                    f"{self.text_embeddings} holds vectors of {of_texts.shape[1]} numbers and {self.image_embeddings} "
                    f"of {of_images.shape[1]}: they are not of one space"
                )
        if not len(rows):
            raise CurationError(f"no image of {pool.source} can be opened")
        if self.by and len(rows) < len(pool.image_ids):
            notes["images that cannot be opened"] = len(pool.image_ids) - len(rows)
        if self.alike_embeddings:
            notes["compared by"] = self.alike_embeddings
            which = first if self.of == "captions" else np.searchsorted(captions.rows, rows)
            if self.of == "images" and not np.isin(rows, captions.rows).all():
                raise CurationError(
                    f"alike_embeddings: {self.alike_embeddings} is a column of captions, and an image of "
                    f"{captions.source} has none: name an encoder with alike"
                )
            alike = read("alike", which)
        elif self.of == "captions":
            name = self.alike or DEFAULT_TEXT_ENCODER
            sentences = encoder if name == self.by else Loaded(load_text_encoder, name, work.device)
            notes["compared by"] = described(sentences.it)
            alike = of_texts if name == self.by else text_vectors(chunks, sentences, work, "alike")
        elif self.alike in (None, self.by):
            notes["compared by"], alike = notes["retrieved by"], of_images
        else:
            looks = Loaded(load_image_encoder, str(self.alike), work.device)
            notes["compared by"] = described(looks.it)
            alike, _ = image_vectors(pool, looks, work, "alike")  # of those that open, as above
        return _Vectors(of_texts, of_images, np.asarray(rows), alike, notes)


class _Vectors(NamedTuple):
    """Of T different captions and V images.

    Attributes:
        texts: (T, D) unit vectors.
        images: (V, D) unit vectors in the same space.
        rows: (V,) the images' rows in the source.
        alike: (T, D') or (V, D') unit vectors that compare captions, or images.
        notes: what the record says about them.
    """

    texts: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    alike: np.ndarray
    notes: dict[str, Any]


def best_by_cycle(
    queries: np.ndarray, pool: np.ndarray, alike: np.ndarray, candidates: int, back: int, most: int, work: Work
) -> tuple[np.ndarray, np.ndarray]:
    """Return what of a pool fits each query best, by whether it leads back to the query.

    Args:
        queries: (Q, D) unit vectors.
        pool: (P, D) unit vectors in the same space.
        alike: (Q, D') unit vectors that compare queries with each other.
        candidates: K, the nearest of the pool that are looked at.
        back: M, the queries that each of the pool retrieves.
        most: how many are returned for each query, at most K.
        work: keeps what is done, in blocks.

    Returns:
        (Q, n) places in the pool, best first, and (Q, n) scores S, n = min(most, K, P).
    """
    k, m = min(candidates, len(pool)), min(back, len(queries))
    n = min(most, k)
    returns = _blocks("back", len(pool), m * pool.shape[1], lambda part: _nearest(queries, pool[part], m), work)

    def best(part: slice) -> np.ndarray:
        found = _nearest(pool, queries[part], k)
        again = alike[returns[found]]  # (B, K, M, D')
        scores = np.einsum("qd,qkmd->qkm", alike[part].astype(np.float64), again.astype(np.float64)).max(axis=2)
        order = np.argsort(-np.round(scores, _DIGITS), axis=1, kind="stable")[:, :n]  # equal: the nearest
        return np.stack([np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)], axis=-1)

    width = k * max(pool.shape[1], m * alike.shape[1])
    made = _blocks("best", len(queries), width, best, work)
    return made[..., 0].astype(np.int64), made[..., 1]


def _blocks(name: str, count: int, width: int, make: Any, work: Work) -> np.ndarray:
    """Results of blocks of rows, each kept."""
    size = max(1, min(_QUERIES, _CELLS // max(1, width)))
    bar = Bar(range(0, count, size), desc="retrieving", unit="block", show=work.progress, delay=2)
    parts = [work.kept(f"{name}-{start:09d}", lambda start=start: make(slice(start, start + size))) for start in bar]  # type: ignore[misc]
    return np.concatenate(parts)


def _nearest(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) rows of the nearest, best first, equal ones by row."""
    from captune.corpus.index import nearest

    queries = np.ascontiguousarray(queries)
    _, rows = nearest(vectors, queries, k)
    scores = np.einsum("qd,qkd->qk", queries.astype(np.float64), vectors[rows].astype(np.float64))
    order = np.lexsort((rows, -np.round(scores, _DIGITS)))
    return np.take_along_axis(rows, order, 1)


def _distinct(captions: Captions) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """(N,) which text each caption has, the T different texts in their order, and (T,) the first caption of each."""
    coded = captions.table["text"].combine_chunks()
    coded = (coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded).dictionary_encode()
    codes = np.asarray(coded.indices.to_numpy(), dtype=np.int64)
    return codes, coded.dictionary, np.unique(codes, return_index=True)[1]
