"""Self-retrieval: does a caption find its own image among others? Luo et al., CVPR 2018; Liu et al., ECCV 2018."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.errors import ScorerError
from captune.models.encoders.base import described
from captune.scorers._support.encoders import EncoderScorer

if TYPE_CHECKING:
    from captune.models.encoders import EncodesBoth

_log = logging.getLogger(__name__)
DEFAULT_MODEL = "storybook-clip"
_CELLS = 2**22  # similarities held at once
_DECIMALS = 6  # of a similarity: what the encoder's rounding can change is a tie


class SelfRetrieval(EncoderScorer["EncodesBoth"]):
    """Self-retrieval: how often a caption finds its own image among distractors; vague captions do not.

        rank(c)  = 1 + |{distractors v: cos(c, v) >= cos(c, own image)}|
        recall_k = share of captions with rank <= k,   mrr = mean of 1 / rank

    by an image and text encoder. The distractors come from the images judged together, each counted once by its pixels,
    so that a copy of the own image is no distractor: all the others, or n of them. For n, the images stand in a circle,
    in an order that the seed and their pixels decide; an image's distractors are the n that follow it. Neither the
    order of the captions nor of the images matters. A tie counts against the caption.

    The figures depend on the set: compare them on the same images with the same n (n=99 is the RD100 of Dessi et al.,
    CVPR 2023). Rows made in parts have other distractors. Intervals hold the distractors fixed.

    Among k images or fewer every caption finds its own in the first k: that recall_k says nothing and is left out, with
    a warning, or refused if no k is left. An empty caption retrieves nothing: its recalls and its 1 / rank are 0.

    As a reward it is 1 / rank, not whether the rank is 1: captions of one image then differ before any of them is
    first. Liu et al. and Luo et al. train on a hinge over the hardest distractor of the batch, Dessi et al. on a
    log-softmax over the batch; all need the similarities' scale, which a rank does not. The distractors are the other
    images of the call.

    Args:
        argument: the encoder, "storybook-clip" where none is given, and settings:
            "self_retrieval:openai/clip-vit-base-patch32?k=1,5,10&n=99&seed=0"; n=all is the default.
    """

    name = "self_retrieval"
    primary = "recall_*"
    higher_is_better: ClassVar = {"recall_*": True, "mrr": True}
    labels: ClassVar = {"mrr": "mean reciprocal rank"}
    source = "Luo et al., CVPR 2018; Liu et al., ECCV 2018"
    cost = "one pass of the encoder"
    required_columns = ("image",)
    together = True
    positional = ("model",)
    usage = "self_retrieval:model?k=1,5&n=99"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str, Field(description="a CLIP's or SigLIP's folder or hub name, or an encoder pair's folder")
        ] = DEFAULT_MODEL
        k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description="ranks that count as found")] = (1, 5)
        n: Annotated[
            Annotated[int, Field(ge=1)] | Literal["all"], Field(description="distractors, or all other images")
        ] = "all"
        seed: Annotated[int, Field(ge=0, description="of the circle in which the images stand")] = 0

    def __init__(self, argument: str | None = None, *, encoder: EncodesBoth | None = None, device: str | None = None,
                 batch_size: int = 32) -> None:  # fmt: skip
        settings = self.read(argument)
        self.k, self.seed, self.batch_size = settings.k, settings.seed, batch_size
        self.n = None if settings.n == "all" else settings.n
        self._model, self._device, self._encoder = settings.model, device, encoder
        self._pool = 0
        self.truncated = 0.0

    def rows(self, captions: Sequence[str], *, image: Sequence[Any], **columns: Any) -> np.ndarray:
        """(N, len(k) + 1): whether the rank is at most each k that says something; 1 / rank."""
        if not captions:
            return np.zeros((0, len(self.k) + 1))
        rank = self._ranks(captions, image)
        rank[[i for i, caption in enumerate(captions) if not caption.strip()]] = np.inf
        return np.stack([*(rank <= k for k in self._telling()), 1 / rank], axis=1)

    def _telling(self) -> list[int]:
        """Return the k that fewer images than were judged together satisfy; all before anything was judged."""
        among = self._pool if self.n is None else self.n + 1
        return [k for k in self.k if k < among or not self._pool]

    def _ranks(self, captions: Sequence[str], images: Sequence[Any]) -> np.ndarray:
        import torch

        from captune.models.encoders.features import ImageFeatureCache

        keys, made = ImageFeatureCache(self.encoder)(images, batch_size=self.batch_size)
        features = dict(zip(keys, made, strict=True))
        circle = sorted(features, key=lambda key: hashlib.blake2b(f"{self.seed}/".encode() + key).digest())
        self._pool = len(circle)
        n = self._pool - 1 if self.n is None else self.n
        if n > self._pool - 1 or not n:
            raise ScorerError(f"scorer {self.name!r} needs {max(n, 1)} other images as distractors, and there are "
                              f"{self._pool - 1}; give more images, or a smaller n")  # fmt: skip
        if left_out := sorted(set(self.k) - set(self._telling())):
            among = f"among {n + 1} images every caption finds its own in the first {left_out[0]}"
            if not self._telling():
                raise ScorerError(f"scorer {self.name!r}: {among}; give more images, or a smaller k")
            names = ", ".join(f"recall_{k}" for k in left_out)
            _log.warning("%s: %s is left out, as %s", self.name, names, among)
        before = self.encoder.truncated
        texts = self.encoder.encode_texts(list(captions))
        self.truncated = (self.encoder.truncated - before) / len(captions)
        place = {key: i for i, key in enumerate(circle)}
        own = torch.tensor([place[key] for key in keys])
        gallery = torch.stack([features[key] for key in circle]).T
        if not (bool(gallery.isfinite().all()) and bool(texts.isfinite().all())):  # no comparison with it would count
            raise ScorerError(
                f"scorer {self.name!r}: the encoder {self.encoder.name!r} gave features that are not finite"
            )
        ranks = []
        step = max(1, _CELLS // self._pool)
        for start in range(0, len(captions), step):
            part = own[start : start + step, None]
            similarity = (texts[start : start + step] @ gallery).double().round(decimals=_DECIMALS)
            distractors = similarity.gather(1, (part + torch.arange(1, n + 1)) % self._pool)
            ranks.append(1 + (distractors >= similarity.gather(1, part)).sum(dim=1))
        return torch.cat(ranks).double().numpy()

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        return {key: totals[..., i] / n for i, key in enumerate([*(f"recall_{k}" for k in self._telling()), "mrr"])}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return rows[:, -1]

    @property
    def identity(self) -> str:
        """The signature without what the images decide that were judged last."""
        return "|".join(part for part in super().identity.split("|") if not part.startswith("images:"))

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        encoder = self.encoder
        return (
            f"self_retrieval|model:{described(encoder)}|distractors:{self.n or 'all'}|images:{self._pool}"
            f"|seed:{self.seed}|ties:against|empty:0|context:{encoder.context_length}|truncated:{self.truncated:.1%}"
        )
