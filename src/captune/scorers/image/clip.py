"""CLIPScore and RefCLIPScore (Hessel et al., EMNLP 2021) with any CLIP or SigLIP model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from captune.models.encoders.base import described
from captune.models.encoders.features import ImageFeatureCache
from captune.scorers._support.encoders import EncoderScorer

if TYPE_CHECKING:
    from captune.models.encoders import EncodesBoth

_log = logging.getLogger(__name__)
DEFAULT_MODEL = "storybook-clip"


class ClipScore(EncoderScorer["EncodesBoth"]):
    """CLIPScore: how well a caption fits its image to a CLIP model; with references, RefCLIPScore too.

        CLIPScore(c, v)       = w max(cos(c, v), 0)
        RefCLIPScore(c, R, v) = H(CLIPScore(c, v), max(max_{r in R} cos(c, r), 0)),   H the harmonic mean

    w = 2.5 and the prefix "A photo depicts" before every caption and reference are the original's. The figures of two
    models do not compare: the signature has the model's name and a digest of its weights, w, the prefix, and the share
    of the captions judged last that were cut because they were longer than the model's context.

    An empty caption scores 0 with a warning: the original would score its prefix, the same for every image, which can
    be more than a caption gets (.88 on storybook, where the base captioner's have .29).

    Args:
        argument: the model's folder or hub name, "storybook-clip" where none is given, and settings, if other than
            the original's: "clip:openai/clip-vit-base-patch32?w=1&prefix=".
    """

    name = "clip"
    primary = "clip"
    higher_is_better: ClassVar = {"clip": True, "ref_clip": True}
    labels: ClassVar = {"clip": "CLIPScore", "ref_clip": "RefCLIPScore"}
    source = "Hessel et al., EMNLP 2021"
    cost = "one pass of the encoder for the caption and each reference, one for each new image"
    required_columns = ("image",)
    optional_columns = ("references",)
    positional = ("model",)
    usage = "clip:model?w=2.5"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str, Field(description="a CLIP's or SigLIP's folder or hub name, or an encoder pair's folder")
        ] = DEFAULT_MODEL
        w: Annotated[float, Field(description="the factor of the cosine")] = 2.5
        prefix: Annotated[str, Field(description="what is put before every caption and reference")] = "A photo depicts"

    def __init__(self, argument: str | None = None, *, encoder: EncodesBoth | None = None, w: float = 2.5,
                 prefix: str = "A photo depicts", device: str | None = None, batch_size: int = 32) -> None:  # fmt: skip
        settings = self.read(argument, w=w, prefix=prefix)
        self.w, self.prefix = settings.w, settings.prefix.strip()
        self.batch_size = batch_size
        self._model, self._device, self._encoder = settings.model, device, encoder
        self.truncated, self._warned = 0.0, False

    def forget(self) -> None:
        """An empty caption is warned of again."""
        self._warned = False

    def rows(
        self, captions: Sequence[str], *, image: Sequence[Any], references: Sequence[Sequence[str]] | None = None
    ) -> np.ndarray:
        """(N, 1), or (N, 2) with RefCLIPScore, which is given only where every caption has a reference."""
        before = self.encoder.truncated
        texts = self._texts(captions)
        self.truncated = (self.encoder.truncated - before) / max(1, len(captions))
        score = self.w * (self._image_features(image) * texts).sum(-1).clamp(min=0).double()
        empty = [i for i, caption in enumerate(captions) if not caption.strip()]
        score[empty] = 0.0
        if empty and not self._warned:  # once: a reward could say so at every step
            self._warned = True
            _log.warning("CLIPScore: %d of %d captions are empty and score 0", len(empty), len(captions))
        if references is None or not any(references):
            return score.numpy().reshape(-1, 1)
        without = sum(not own for own in references)
        if without:
            _log.warning("RefCLIPScore is left out: %d of %d captions have no reference", without, len(captions))
            return score.numpy().reshape(-1, 1)
        features = self._texts([text for own in references for text in own])
        best = [
            (own @ text).max() for own, text in zip(features.split([len(o) for o in references]), texts, strict=True)
        ]
        agreement = torch.stack(best).clamp(min=0).double()
        both = 2 * score * agreement / (score + agreement).clamp(min=1e-12)
        return torch.stack([score, both], dim=1).numpy()

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        return {key: totals[..., i] / n for i, key in enumerate(("clip", "ref_clip")[: totals.shape[-1]])}

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        encoder = self.encoder
        return (
            f"clipscore|model:{described(encoder)}|w:{self.w:g}|prefix:{self.prefix or 'none'}"
            f"|empty:0|context:{encoder.context_length}|truncated:{self.truncated:.1%}"
        )

    def __call__(self, completions: Sequence[Any], *, references: Any = None, **columns: Any) -> list[float]:
        """TRL's reward: CLIPScore; references are not read."""
        return super().__call__(completions, **columns)

    def _texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.encoder.encode_texts([f"{self.prefix} {text}".strip() for text in texts])

    @cached_property
    def _images(self) -> ImageFeatureCache:
        return ImageFeatureCache(self.encoder)

    def _image_features(self, images: Sequence[Any]) -> torch.Tensor:
        """Return (N, D)."""
        return self._images(images, batch_size=self.batch_size)[1]
