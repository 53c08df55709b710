"""Classifier-free guidance for captioners (Kornblith et al., ICCV 2023).

"Guiding image captioning models toward more specific captions": one step further from what the model would say of no
image in particular.

    log q(x_t) = log p(x_t | x_<t) + gamma (log p(x_t | x_<t, I) - log p(x_t | x_<t))          up to a constant

gamma = 1 is the captioner as it is, gamma > 1 sharpens p(I | caption), at the price of p(caption | I).

*Without an image* means here: the same prompt with a blank (mid-grey) image in its place. Every family
takes an image; a prompt without one leaves families that were never trained so (a base model's prompt is the image and
nothing else) without a context, and zero features need `mm_encoder_outputs`, which not every family has. It is also
what image dropout can train: put `blank()` in the place of an image now and then, and the branch becomes p(x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import BatchFeature, LogitsProcessor

from captune.data.images import blank
from captune.errors import CaptionerError
from captune.models import inputs as batches

if TYPE_CHECKING:
    from captune.models.captioner import Captioner


class ImageGuidance(LogitsProcessor):
    """Moves the next token's scores away from those under another prompt, whose key/value cache it keeps.

        scores = log p(.|I) + weight (log p(.|I) - log p(.|other)),       -inf where p(.|I) < beta max p(.|I)

    Args:
        core: the captioner's model; adapters in its layers take part.
        other: the other prompt, one row as `Captioner.prepare` makes it; evaluated once and shared by all rows.
        weight: gamma - 1 of classifier-free guidance, alpha of contrastive decoding.
        beta: the plausibility constraint of contrastive decoding; 0 for none.

    One object serves one call of `generate`, greedy or sampling. Beams are refused: they change places, the cache not.
    """

    def __init__(self, core: Any, other: BatchFeature, *, weight: float, beta: float = 0.0) -> None:
        self.core, self.other, self.weight, self.beta = core, other, weight, beta
        self._cache: Any = None  # of the other prompt, repeated for the rows
        self._rope_deltas: Any = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores (B, vocabulary) of the next token, with and without guidance."""
        with_image = scores.float().log_softmax(-1)
        guided = with_image + self.weight * (with_image - self.log_probs(input_ids))
        least = with_image.amax(-1, keepdim=True) + math.log(self.beta) if self.beta else -torch.finfo().max
        guided = guided.masked_fill(with_image < least, -torch.inf)  # what is suppressed stays so, too
        return guided.to(scores.dtype)  # type: ignore[return-value]

    def log_probs(self, input_ids: Tensor) -> Tensor:
        """Return log p(x_t | x_<t, other), (B, vocabulary) float32."""
        rows = len(input_ids)
        if self._cache is None:
            logits = self._forward(**batches.inputs_of(self.other))
            assert self._cache is not None
            self._cache.batch_repeat_interleave(rows)
            return logits.log_softmax(-1).expand(rows, -1)
        # without a mask: nothing here is padding, and M-RoPE would take a mask's length for the input's
        return self._forward(input_ids=input_ids[:, -1:]).log_softmax(-1)

    def _forward(self, **inputs: Any) -> Tensor:
        inner = self.core.base_model
        theirs = getattr(inner, "rope_deltas", None)  # M-RoPE's memory of the prompt: each branch has its own
        if theirs is not None:
            inner.rope_deltas = self._rope_deltas
        output = self.core(**inputs, past_key_values=self._cache, use_cache=True)
        if theirs is not None:
            self._rope_deltas, inner.rope_deltas = inner.rope_deltas, theirs
        self._cache = output.past_key_values
        return output.logits[:, -1].float()


def guided(captioner: Captioner, images: Sequence[Any], *, weight: float, beta: float = 0.0, **settings: Any) -> Any:
    """Call `captioner.generate` with `ImageGuidance` away from the blank image; settings are those of `generate`."""
    if settings.get("num_beams", 1) > 1:
        raise CaptionerError("guided captions are greedy or sampled, never searched with beams: leave num_beams out")
    other = captioner.prepare([blank()])
    if opening := settings.get("forced_opening"):
        tails = [captioner.caption_ids(opening)]
        other = batches.append_ids(other, tails, pad_id=captioner.tokenizer.pad_token_id, right=False)
    guidance = ImageGuidance(captioner.core, other, weight=weight, beta=beta)
    return captioner.generate(images, logits_processor=[guidance], **settings)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Guidance of scale gamma, "cfg:2.0": scale gamma > 0; 1 is plain decoding, and costs no more than that."""

    scale: Annotated[float, Field(gt=0, le=100, description="gamma; 1 is plain decoding")] = 2.0

    positional: ClassVar = ("scale",)
    example: ClassVar = "cfg:2.0"
    samples: ClassVar = False
    required_columns: ClassVar = ()

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"cfg:{self.scale:g}|without the picture:blank image"

    def __call__(self, captioner: Captioner, images: Sequence[Any], **settings: Any) -> list[str]:
        """Return one caption per image."""
        if self.scale == 1:
            return captioner.generate(images, **settings)
        return guided(captioner, images, weight=self.scale - 1, **settings)
