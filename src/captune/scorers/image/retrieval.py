"""CIM's two measures of a caption by what it retrieves (Jia et al., "Cross-modal Identity Mapping", 2026, section 3.2).

A caption c searches the texts t_i of a corpus D = {(x_i, t_i)}, i = 1..N. With S_i = cos(text(c), text(t_i)),

    A(c)      = TopK({S_i}) = {i_1, ..., i_K}                      the support set, best first
    GRC(c)    = || 1/K sum_r v~(x_{i_r}) ||_2                      equation (1)
    QIR(v, c) = sum_r lambda(r) cos(v~(v), v~(x_{i_r}))            equation (2), lambda(r) = 1 / 2^(r-1)

where v~ is the unit vector of an image and v the image that c describes. The reward of CIM, equation (3), is
GRC + beta QIR with beta = 1: "grc:runs/corpus + qir:runs/corpus".

What the paper leaves open, and what is done here:

- *Is the source image's own entry retrieved?* Its training images are in its gallery. Found again, the own image gives
  QIR its full lambda(1) = 1 whatever else is said, so it is left out (all entries of the same `image_id`) unless
  `own=1`. That takes the column `image_id`; without it nothing can be left out, which is said once.
- *Several captions of one image.* In the paper's gallery an image has one text. Where it has five, five entries may be
  one image, and GRC = 1 for any caption. So K different images are retrieved, each by its best entry, which is the same
  where an image has one text; `distinct=0` takes entries literally.
- *The weights of equation (2)* sum to 1.94 for K = 5, so that beta = 1 weighs QIR about twice. The figure is kept as
  the paper has it; for equal weights write "grc:... + 0.516*qir:...".
- *A caption without words* retrieves nothing: A(c) is empty and both are 0. (An encoder has a vector for the empty text
  too, which would retrieve something.)
- *The encoders* are the corpus'. The paper's are all-mpnet-base-v2 and OpenCLIP ViT-H/14; Table 4 has others.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.data.columns import Chosen
from captune.errors import ScorerError, SpecError
from captune.scorers import Scorer
from captune.scorers._support.encoders import as_scorer_error

if TYPE_CHECKING:
    from captune.corpus import Corpus
    from captune.models.encoders.features import ImageFeatureCache

logger = logging.getLogger(__name__)
_KEPT_IMAGES = 20_000
_BATCH = 32
_SAME = 1 - 1e-5  # cosine from which two images are one


class _Retrieval(Scorer):
    """What GRC and QIR share: the corpus, the settings and the support set A(c)."""

    source = "Jia et al., arXiv:2603.01696"
    optional_columns = ("image_id",)
    cached = True
    positional = ("corpus",)
    usage = "grc:runs/corpus?k=5"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        corpus: Annotated[str, Field(description="the folder that `captune corpus build` made")] = ""
        k: Annotated[int, Field(ge=1, description="entries of the support set")] = 5
        own: Annotated[bool, Field(description="whether the own image may be retrieved")] = False
        distinct: Annotated[bool, Field(description="whether K different images are retrieved, not K entries")] = True
        index: Annotated[str, Field(description="flat, ivf or hnsw, where the corpus has it")] = "flat"
        effort: Annotated[
            int, Field(ge=0, description="lists or candidates visited per query; 0: the index's default")
        ] = 0

    def __init__(self, argument: str | None = None, *, corpus: Corpus | None = None, device: str | None = None) -> None:
        settings = self.read(argument)
        if not settings.corpus and corpus is None:
            raise SpecError(
                f"scorer {self.name!r} needs the folder of a corpus: {self.name}:runs/corpus. To make one: "
                "captune corpus build --captions SOURCE --output runs/corpus"
            )
        self.k, self.own, self.distinct, self.index = settings.k, settings.own, settings.distinct, settings.index
        self.folder, self._effort, self._device = settings.corpus, settings.effort or None, device
        self._gallery = corpus
        self._said = set[str]()

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if self._gallery is not None:
            return
        from captune.corpus import files

        if importlib.util.find_spec("faiss") is None:
            raise ScorerError(f"scorer {self.name!r} needs faiss; run: pip install 'captune[scorers]'")
        with as_scorer_error(self.name):
            files.complete_config(Path(self.folder))

    @property
    def gallery(self) -> Corpus:
        """The corpus, opened at first use; scorers of one folder share it, its encoders and what was searched."""
        if self._gallery is None:
            self.check()
            config = Path(self.folder, "config.json").resolve()
            with as_scorer_error(self.name):
                self._gallery = _open(config.parent, config.stat().st_mtime_ns, self.index, self._effort, self._device)
        return self._gallery

    def forget(self) -> None:
        """What was said of own images is said again."""
        self._said.clear()

    def rows(
        self, captions: Sequence[str], *, image: Sequence[Any] | None = None, image_id: Sequence[str] | None = None,
        **columns: Any,
    ) -> np.ndarray:  # fmt: skip
        """Return (N, 1)."""
        gallery = self.gallery
        spoken = [i for i, caption in enumerate(captions) if caption.strip()]
        scores = np.zeros((len(captions), 1))
        if not spoken:
            return scores
        exclude = None
        if not self.own and image_id is not None:
            exclude = [image_id[i] for i in spoken]
        elif not self.own:
            self._say("without image_id a caption may retrieve the very image it describes")
        with as_scorer_error(self.name):
            texts = [captions[i] for i in spoken]
            _, found = gallery.search(texts, self.k, exclude=exclude, unique_images=self.distinct)
            retrieved = np.asarray(gallery.image_vectors[gallery.owners[found]], dtype=np.float64)
            own = None if image is None else self._image_vectors(Chosen(image, spoken))
        if exclude is not None and "found" not in self._said:
            self._say_own(exclude, retrieved, own)
        scores[spoken, 0] = self._scores(retrieved, own)
        return scores

    def _say_own(self, exclude: Sequence[str | None], retrieved: np.ndarray, own: np.ndarray | None) -> None:
        """Say where a caption may retrieve, or did retrieve, its own image under another id; arrays as of `_scores`."""
        ids = {str(image_id) for image_id in exclude if image_id is not None}
        lacking = sum(not self.gallery.has(image_id) for image_id in ids)
        absent = bool(ids) and lacking == len(ids)
        found = 0
        if own is not None:
            found = int((np.einsum("qkd,qd->qk", retrieved, own) >= _SAME).any(axis=1).sum())
        if absent:
            did = f", and {found} of {len(exclude)} captions did" if found else ""
            self._say(
                f"none of the {len(ids)} images is in the corpus by its id; where it is under another id a caption "
                f"retrieves its own image{did}",
                logging.WARNING if found else logging.INFO,
                "found" if found else "absent",
            )
        elif lacking and own is None:
            self._say(
                f"{lacking} of {len(ids)} images of a batch are not in the corpus by their ids; where they are under "
                "others a caption retrieves its own image",
                key="some absent",
            )
        elif found:
            self._say(
                f"{found} of {len(exclude)} captions retrieved an image equal to their own, which is in the corpus "
                "under another id",
                key="found",
            )

    def _say(self, what: str, level: int = logging.WARNING, key: str = "") -> None:
        """Log something of a kind once."""
        if key not in self._said:
            self._said.add(key)
            logger.log(level, "scorer %r: %s", self.name, what)

    def _scores(self, retrieved: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """(Q,) from the unit vectors of the retrieved images (Q, K, D) and of the own images (Q, D)."""
        raise NotImplementedError

    def _image_vectors(self, images: Sequence[Any]) -> np.ndarray:
        raise NotImplementedError

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return (f"{self.name.partition(':')[0]}|{self.gallery.signature}|K:{self.k}|own:{'in' if self.own else 'out'}"
                f"|per:{'image' if self.distinct else 'entry'}")  # fmt: skip


class GRC(_Retrieval):
    """How alike the images are that a caption retrieves from a corpus: CIM's measure of detail.

        GRC(c) = || 1/K sum_r v~(x_{i_r}) ||_2        equation (1); in [0, 1], higher: the caption is more specific

    It does not look at the caption's own image: a detailed caption of another image scores as high. `qir` looks.

    Args:
        argument: "runs/corpus?k=5&own=0&distinct=1&index=flat&effort=0": the folder of a corpus and, where other than
            here, settings; see the module's text for own and distinct. index: "ivf" or "hnsw" where the corpus has
            it, with effort lists or candidates visited per query (0: the index' default).
    """

    name = "grc"
    primary = "grc"
    higher_is_better: ClassVar = {"grc": True}
    labels: ClassVar = {"grc": "GRC"}
    cost = "one text encoding, one search"

    def rows(self, captions: Sequence[str], *, image_id: Sequence[str] | None = None, **columns: Any) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        return super().rows(captions, image_id=image_id)

    def _scores(self, retrieved: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        return np.linalg.norm(retrieved.mean(axis=1), axis=-1)


class QIR(_Retrieval):
    """How like the caption's own image the images are that it retrieves from a corpus: CIM's measure of correctness.

        QIR(v, c) = sum_r lambda(r) cos(v~(v), v~(x_{i_r})),   lambda(r) = 1 / 2^(r-1)        equation (2)

    The highest value is the sum of the weights: 1.9375 for K = 5.

    Args:
        argument: as `grc` has it: "runs/corpus?k=5&own=0&distinct=1&index=flat&effort=0".
    """

    name = "qir"
    usage = "qir:runs/corpus?k=5"
    primary = "qir"
    higher_is_better: ClassVar = {"qir": True}
    labels: ClassVar = {"qir": "QIR"}
    required_columns = ("image",)
    cost = "one text and one image encoding, one search"

    def _scores(self, retrieved: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        assert own is not None
        weights = 0.5 ** np.arange(self.k)
        return np.einsum("qkd,qd->qk", retrieved, own) @ weights

    @cached_property
    def _images(self) -> ImageFeatureCache:
        from captune.models.encoders.features import ImageFeatureCache

        return ImageFeatureCache(self.gallery.image_encoder)

    def _image_vectors(self, images: Sequence[Any]) -> np.ndarray:
        """Return (Q, D)."""
        from captune.models.encoders import unit_vectors

        _, vectors = self._images(images)
        return unit_vectors(vectors, ["an image"] * len(images)).astype(np.float64)


@lru_cache(maxsize=1)
def _open(folder: Path, changed: int, index: str, effort: int | None, device: str | None) -> Corpus:
    from captune.corpus import Corpus

    return Corpus.open(folder, index=index, search_effort=effort, device=device)
