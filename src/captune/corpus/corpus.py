"""The class `Corpus`: building, opening, searching."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from captune.corpus import files
from captune.corpus.index import EXACT, INDEXES, OnDevice, nearest, open_index
from captune.errors import CorpusError
from captune.models.encoders import (
    DEFAULT_IMAGE_ENCODER,
    EncodesImages,
    EncodesTexts,
    load_image_encoder,
    load_text_encoder,
    unit_vectors,
)
from captune.utils.files import read_jsonl
from captune.utils.memory import remembers
from captune.utils.registry import nearest as unknown

if TYPE_CHECKING:
    from captune.data import ImageSource

logger = logging.getLogger(__name__)
_TIE = 1e-6  # scores nearer than this are equal: the same sentence's vector differs by 1e-7 from batch to batch
_TIES_SORTED = 1024  # among more equal entries than this, the index chooses
_KEPT = 20_000  # answers to texts, so that what two scorers ask, or a reward again, is searched once
_CELLS = 2**22  # values gathered at once when candidates are compared

Answer = tuple[np.ndarray, np.ndarray]


class Corpus:
    """Captioned images, D = {(x_i, t_i)}, searched by text: one entry per caption, one image vector per image.

    Args:
        folder: what `build` made.
        index: "flat" (exact, faiss), "device" (exact, on `device`, which holds a copy of the vectors), "ivf" or "hnsw"
            (approximate, if the corpus was built with it).
        search_effort: the lists (IVF) or candidates (HNSW) that a query visits; None: the index's default.
        text_encoder: an object to use instead of loading the corpus' own; refused if the corpus was made with another.
        image_encoder: likewise.
        device: of the encoders and of the index "device".

    Attributes:
        image_vectors: (M, D_image) float32 unit vectors, memory-mapped.
        text_vectors: (N, D_text) float32 unit vectors, memory-mapped, one per entry.
        owners: (N,) int64, the row of each entry's image.
        image_ids: the M ids.

    Raises:
        CorpusError: if the folder holds no finished corpus, or not the index or the encoders that are asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        index: str = "flat",
        search_effort: int | None = None,
        text_encoder: EncodesTexts | None = None,
        image_encoder: EncodesImages | None = None,
        device: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        if index not in INDEXES:
            raise CorpusError(unknown(index, INDEXES, "index"))
        self.config = files.complete_config(self.folder)
        entries, images = self.config["entries"], self.config["images"]
        self.text_vectors = files.open_vectors(self.folder, "texts.npy", (entries, None), np.float32)
        self.image_vectors = files.open_vectors(self.folder, "images.npy", (images, None), np.float32)
        self.owners = files.open_vectors(self.folder, "owners.npy", (entries,), np.int64)
        self.image_ids = files.read_image_ids(self.folder, images)
        vectors = ("texts.npy", self.text_vectors), ("images.npy", self.image_vectors)
        files.check_whole(self.folder, self.owners, images, *vectors)
        self.index = index
        self._index: Any = None
        if index == "device":
            self._index = OnDevice(self.text_vectors, device)
        elif index != "flat":
            self._index = open_index(self.folder, index, search_effort, entries)
        self.search_effort = 0 if index in EXACT else search_effort or INDEXES[index]
        self._device = device
        if text_encoder is not None:
            self.text_encoder = self._same("text_encoder", text_encoder)
        if image_encoder is not None:
            self.image_encoder = self._same("image_encoder", image_encoder)
        self._answers: dict[tuple[str, int, int, bool], tuple[np.ndarray, np.ndarray]] = {}
        remembers(self)

    def clear(self) -> None:
        """Forget the answers to earlier queries."""
        self._answers.clear()

    @classmethod
    def build(
        cls,
        source: str | ImageSource,
        output: str | Path,
        *,
        text_encoder: str | EncodesTexts | None = None,
        image_encoder: str | EncodesImages = DEFAULT_IMAGE_ENCODER,
        index: str = "flat",
        batch_size: int = 32,
        shard_size: int = 1024,
        overwrite: bool = False,
        progress: bool = True,
        device: str | None = None,
        engine: str | None = None,
        workers: int | None = None,
        address: str | None = None,
    ) -> Corpus:
        """Build a corpus of a captioned source; a killed build resumes.

        Each image is encoded once and each of its references is an entry. Images that cannot be read or have no
        caption are left out, counted, and listed in skipped.jsonl. An existing corpus of the same source and encoders
        is opened; another one is refused unless `overwrite`. For a moment the vectors need twice their room on disk.

        Args:
            source: anything that `captune.data.load_images` reads, or a dataset with its columns.
            output: the folder.
            text_encoder: a name (sentence-transformers, or a CLIP-like model), or an object with its methods; None:
                what the source's scheme offers (storybook-clip for storybook), else all-MiniLM-L6-v2.
            image_encoder: a name (a CLIP-like model, or a vision model such as DINOv2), or an object with its methods.
            index: "flat" is exact; "ivf" and "hnsw" add an approximate index and open the corpus with it.
            batch_size: images and texts per pass.
            shard_size: source rows per piece, the most that a killed build loses.
            overwrite: remove the corpus that `output` holds.
            progress: show a progress bar.
            device: of the encoders.
            engine: None, or "ray": the vectors are made by several workers; source and encoders are names then.
            workers: of Ray; default: one for each GPU, else 2.
            address: of a Ray cluster, whose machines all see `output`; None: this machine.

        Raises:
            CorpusError: if the folder holds something else, or nothing can be retrieved.
        """
        from captune.corpus.build import build

        make_shards = None
        if engine == "ray":
            from captune.corpus.ray_build import make_shards as by_ray

            make_shards = partial(by_ray, device=device, workers=workers, address=address)
        elif engine is not None:
            raise CorpusError(f"the engine of a corpus is ray or None, not {engine!r}")
        build(
            source,
            output,
            text_encoder=text_encoder,
            image_encoder=image_encoder,
            index=index,
            batch_size=batch_size,
            shard_size=shard_size,
            overwrite=overwrite,
            progress=progress,
            device=device,
            make_shards=make_shards,
        )
        return cls(
            output,
            index=index,
            device=device,
            text_encoder=None if isinstance(text_encoder, str) else text_encoder,
            image_encoder=None if isinstance(image_encoder, str) else image_encoder,
        )

    @classmethod
    def open(cls, folder: str | Path, **options: Any) -> Corpus:
        """Open a corpus; loads no model, and vectors are read from the disk as they are needed.

        Args:
            folder: what `build` made.
            options: those of the class.
        """
        return cls(folder, **options)

    def __len__(self) -> int:
        return len(self.text_vectors)

    @property
    def digest(self) -> str:
        """A digest of entries, image vectors and text vectors."""
        return str(self.config["digest"])

    @property
    def signature(self) -> str:
        """What figures from this corpus depend on, as a text."""
        slots = (self.config[slot] for slot in ("text_encoder", "image_encoder"))
        text, image = (
            f"{made['name']}@{made['digest']}" + (f" ({made['note']})" if made.get("note") else "") for made in slots
        )
        index = self.index + (f"-{self.search_effort}" if self.search_effort else "")
        return (
            f"corpus:{self.digest}|entries:{len(self)}|images:{len(self.image_ids)}|index:{index}"
            f"|text:{text}|image:{image}"
        )

    @cached_property
    def captions(self) -> list[str]:
        """The text of each entry, read at first use."""
        rows = [row.get("caption") for row in read_jsonl(self.folder / "entries.jsonl")]
        if len(rows) != len(self) or not all(isinstance(caption, str) for caption in rows):
            raise CorpusError(
                f"{self.folder / 'entries.jsonl'} has not the {len(self)} captions that the corpus is made of; build "
                "it again with --overwrite"
            )
        return cast(list[str], rows)

    @cached_property
    def text_encoder(self) -> EncodesTexts:
        """The text encoder, loaded at first use; CorpusError if its weights are not those of the build."""
        return self._same("text_encoder", load_text_encoder(self.config["text_encoder"]["name"], self._device))

    @cached_property
    def image_encoder(self) -> EncodesImages:
        """The image encoder, loaded at first use; CorpusError if its weights are not those of the build."""
        return self._same("image_encoder", load_image_encoder(self.config["image_encoder"]["name"], self._device))

    def _same(self, slot: str, encoder: Any) -> Any:
        made = self.config[slot]
        if not files.same_encoder(self.config, slot, encoder):
            raise CorpusError(
                f"{self.folder} was made with the {slot.replace('_', ' ')} {made['name']}@{made['digest']}, not "
                f"{encoder.name}@{encoder.digest}: vectors of two encoders do not compare"
            )
        return encoder

    # -------------------------------------------------------------- search

    def search(
        self,
        queries: Sequence[str] | np.ndarray,
        k: int = 5,
        *,
        exclude: Sequence[str | None] | None = None,
        unique_images: bool = False,
    ) -> Answer:
        """Find the k entries most like each query.

        Equal entries come in the order of the corpus, so the answer does not depend on how queries are batched.

        Args:
            queries: texts, or vectors (Q, D_text).
            k: entries per query.
            exclude: an image id per query, none of whose entries is found; k entries are found all the same. Ids that
                the corpus lacks exclude nothing.
            unique_images: find k different images, each by its best entry.

        Returns:
            (cosines, rows), each (Q, k), best first.

        Raises:
            CorpusError: if fewer than k entries (images) are left.
        """
        excluded = self._excluded(exclude, len(queries))
        if isinstance(queries, np.ndarray):
            vectors = unit_vectors(queries, [f"query {i}" for i in range(len(queries))])
            return self._search(vectors, k, excluded, unique_images)
        keys = [(text, int(image), k, unique_images) for text, image in zip(queries, excluded, strict=True)]
        answered = {key: self._answers[key] for key in keys if key in self._answers}  # GRC and QIR ask the same
        new = [key for key in dict.fromkeys(keys) if key not in answered]
        if new:
            vectors = unit_vectors(self.text_encoder.encode_texts([key[0] for key in new]), [key[0] for key in new])
            found = self._search(vectors, k, np.array([key[1] for key in new]), unique_images)
            answered.update(zip(new, zip(*found, strict=True), strict=True))
            self._answers.update(answered)
        for key in list(self._answers)[: max(0, len(self._answers) - _KEPT)]:
            del self._answers[key]
        answers = [answered[key] for key in keys]
        return np.array([a[0] for a in answers]).reshape(-1, k), np.array([a[1] for a in answers]).reshape(-1, k)

    @cached_property
    def _image_rows(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def has(self, image_id: str) -> bool:
        """Return whether an image is in the corpus under this id."""
        return image_id in self._image_rows

    @cached_property
    def _captions_of(self) -> np.ndarray:
        return np.bincount(self.owners, minlength=len(self.image_ids))

    def _excluded(self, ids: Sequence[str | None] | None, count: int) -> np.ndarray:
        """(Q,): the row of the image that each query excludes, -1 for none."""
        if ids is None:
            return np.full(count, -1)
        if len(ids) != count:
            raise CorpusError(f"{count} queries but {len(ids)} image ids to exclude")
        return np.array([-1 if i is None else self._image_rows.get(str(i), -1) for i in ids], dtype=np.int64)

    def _search(self, queries: np.ndarray, k: int, excluded: np.ndarray, unique_images: bool) -> Answer:
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        if queries.shape[1] != self.text_vectors.shape[1]:
            raise CorpusError(
                f"queries have {queries.shape[1]} dimensions, the corpus' texts {self.text_vectors.shape[1]}"
            )
        if not len(queries):
            return scores, rows
        most = int(self._captions_of[excluded[excluded >= 0]].max(initial=0))  # entries that one query excludes
        left, what = (len(self.image_ids) - bool(most), "images") if unique_images else (len(self) - most, "entries")
        if not 1 <= k <= left:
            raise CorpusError(f"{self.folder} has {left} {what} to retrieve besides a query's own; k = {k}")
        per_image = -(-len(self) // len(self.image_ids)) if unique_images else 1
        fetch, pending, index = min(len(self), k * per_image + most + 1), np.arange(len(queries)), self._index
        approximate = self.index not in EXACT
        while True:
            found_scores, found_rows, groups = self._candidates(queries[pending], fetch, index)
            final = fetch == len(self) or approximate or fetch >= _TIES_SORTED
            unanswered = []
            for i, query in enumerate(pending):
                taken = self._choose(found_rows[i], k, excluded[query], unique_images)
                if len(taken) < k or (groups[i, taken[-1]] == groups[i, -1] and not final):
                    unanswered.append(query)  # too few, or one that was not fetched may equal the last one taken
                else:
                    scores[query], rows[query] = found_scores[i, taken], found_rows[i, taken]
            if not unanswered:
                return scores, rows
            # what an approximate index could not fill is searched exactly
            pending, fetch = np.array(unanswered), min(len(self), fetch * 4)
            index, approximate = None if approximate else index, False

    def _candidates(self, queries: np.ndarray, fetch: int, index: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(scores, rows, groups) of each query's candidates, best first; equal ones make a group, ordered by row.

        A row is -1 where an index found fewer. The scores are computed again, each by itself: a matrix product's last
        digits depend on its shape.
        """
        _, rows = nearest(self.text_vectors, queries, fetch) if index is None else index.search(queries, fetch)
        scores = np.empty(rows.shape)
        step = max(1, _CELLS // (fetch * queries.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            texts = self.text_vectors[rows[part]].astype(np.float64)
            scores[part] = (texts * queries[part, None].astype(np.float64)).sum(axis=-1)
        scores[rows < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        with np.errstate(invalid="ignore"):  # -inf - -inf
            groups = np.cumsum(scores[:, :-1] - scores[:, 1:] > _TIE, axis=1)
        groups = np.concatenate([np.zeros((len(rows), 1), dtype=groups.dtype), groups], axis=1)
        order = np.lexsort((rows, groups), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1), groups

    def _choose(self, rows: np.ndarray, k: int, excluded: int, unique_images: bool) -> list[int]:
        """The positions of the first k candidates of one query that may be taken."""
        taken: list[int] = []
        images: set[int] = set()
        for position, row in enumerate(rows):
            owner = -1 if row < 0 else int(self.owners[row])
            if row < 0 or owner == excluded or (unique_images and owner in images):
                continue
            images.add(owner)
            taken.append(position)
            if len(taken) == k:
                break
        return taken
