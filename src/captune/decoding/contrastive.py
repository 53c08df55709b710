"""Contrastive decoding, image against blank image (after VCD: Leng et al., CVPR 2024).

The paper: "Mitigating object hallucinations in large vision-language models through visual contrastive decoding".

    p(x_t) = softmax((1 + alpha) logit(x_t | x_<t, I) - alpha logit(x_t | x_<t, I')),
    for x_t with p(x_t | x_<t, I) >= beta max_w p(w | x_<t, I); all others are out of the question

What the captioner would say of any image, its habits, is what it says of I', and counts against a word. alpha > 0 is
how much; beta is the adaptive plausibility constraint, which keeps words that only I' speaks against from being said.

I' is a blank image here, where VCD blurs I with diffusion noise: nothing is sampled, so that a caption
does not depend on a seed, and its prompt is evaluated once per batch instead of once per image. That makes it
classifier-free guidance (`captune.decoding.cfg`) with gamma = 1 + alpha, and the constraint besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from captune.decoding.cfg import guided

if TYPE_CHECKING:
    from captune.models.captioner import Captioner


@dataclass(frozen=True)
class Contrastive:
    """Contrastive decoding, "contrastive:0.5" or "contrastive:0.5?beta=0.2": alpha >= 0, and beta between 0 and 1."""

    alpha: Annotated[float, Field(ge=0, le=100, description="how much the blank image counts against a word")] = 1.0
    beta: Annotated[float, Field(ge=0, le=1, description="least share of the likeliest word's probability")] = 0.1

    positional: ClassVar = ("alpha",)
    example: ClassVar = "contrastive:0.5?beta=0.1"
    samples: ClassVar = False
    required_columns: ClassVar = ()

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"contrastive:{self.alpha:g}|beta:{self.beta:g}|against:blank image"

    def __call__(self, captioner: Captioner, images: Sequence[Any], **settings: Any) -> list[str]:
        """Return one caption per image."""
        return guided(captioner, images, weight=self.alpha, beta=self.beta, **settings)
