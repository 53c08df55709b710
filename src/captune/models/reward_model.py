"""A learned preference scorer: r(x, c), how much people would prefer a caption c of an image x (Compress & Align).

    r(x, c) = (s cos(v, t) + w . gelu(U [v; t; v * t] + b) - m) / d,      v, t: a frozen CLIP's vectors of x and c

s, w, U and b are trained on pairs (`captune reward-model train`), w from 0, so that training begins with the encoder's
own order. m and d are mean and spread of the rewards of the captions that trained it: 0 is an average caption of that
data. A caption without words gets the least of those rewards.

    config.json         the encoder by name and digest, sizes, and accuracy on pairs of images that were not seen
    model.safetensors   the head; the encoder itself is not copied
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from captune.errors import CaptuneError, ScorerError
from captune.models import hub
from captune.models.encoders import EncodesBoth, load_encoder
from captune.models.heads import Frozen, HeadConfig, read_config, read_weights
from captune.utils.hashing import identity

logger = logging.getLogger(__name__)


class Accuracy(BaseModel):
    """How often the preferred caption of a pair scores higher, on pairs that neither trained nor chose anything.

    Attributes:
        source: what the pairs are.
        images: of how many images.
        pairs: how many, ties not counted; equal scores are half.
        value: the share, of 1.
        interval: 95%, over images; None for one image.
        encoder: the share by the cosine of the frozen encoder alone, on the same pairs.
    """

    model_config = ConfigDict(extra="forbid")

    source: str
    images: int
    pairs: int
    value: float
    interval: tuple[float, float] | None
    encoder: float

    @property
    def sentence(self) -> str:
        """The figures, the encoder's beside."""
        between = f" ({self.interval[0]:.1%} to {self.interval[1]:.1%})" if self.interval else ""
        return (
            f"prefers the preferred caption in {self.value:.1%}{between} of {self.pairs} pairs of {self.images} unseen "
            f"images, its encoder's cosine in {self.encoder:.1%}"
        )


class RewardConfig(HeadConfig):
    """What config.json holds.

    Attributes:
        encoder: of images and texts.
        hidden: units of the hidden layer.
        accuracy: None: it has not been measured.
    """

    noun: ClassVar[str] = "a reward model"
    verb: ClassVar[str] = "captune reward-model train"
    error: ClassVar[type[CaptuneError]] = ScorerError

    model_type: str = "captune_reward_model"
    encoder: Frozen
    hidden: int = Field(ge=1)
    accuracy: Accuracy | None = None


class RewardHead(nn.Module):
    """r of the module.

    Args:
        size: D, of the encoder's vectors.
        hidden: units of the hidden layer.
        dropout: of the vectors.
    """

    mean: Tensor
    spread: Tensor
    least: Tensor

    def __init__(self, size: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.inner = nn.Dropout(dropout), nn.Linear(3 * size, hidden)
        self.outer = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.outer.weight)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        for name, value in (("mean", 0.0), ("spread", 1.0), ("least", 0.0)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return (N,) rewards of unit vectors (N, D) and (N, D)."""
        product = images * texts
        said = torch.cat([images, texts, product], dim=-1) * images.shape[-1] ** 0.5
        learned = self.outer(nn.functional.gelu(self.inner(self.dropout(said))))[:, 0]
        return (self.log_scale.exp() * product.sum(-1) + learned - self.mean) / self.spread

    @torch.no_grad()
    def normalise(self, images: Tensor, texts: Tensor) -> None:
        """Make mean and spread of the rewards of some captions 0 and 1, and remember the least."""
        rewards = self.eval()(images, texts)
        self.mean.copy_(rewards.mean())
        self.spread.copy_(rewards.std(correction=0).clamp(min=1e-6))
        self.least.copy_(((rewards - self.mean) / self.spread).min())


class RewardModel:
    """A trained head on its frozen encoder; see the module.

    Args:
        head: trained.
        encoder: the one that it was trained on.
        config: name and digest are those of the encoder.
        name: what the user calls it.

    Raises:
        ScorerError: the encoder is another one than the config says.
    """

    def __init__(self, head: RewardHead, encoder: EncodesBoth, config: RewardConfig, *, name: str) -> None:
        config.check("encoder", config.encoder, encoder, name)
        self.head, self.encoder, self.config, self.name = head.eval().requires_grad_(False), encoder, config, name

    @classmethod
    def load(cls, name_or_path: str | Path, device: Any = None) -> RewardModel:
        """Load a folder of `captune reward-model train`, and its encoder.

        Raises:
            ScorerError: the folder is not whole, or the encoder is another one.
            EncoderError: the encoder cannot be loaded.
        """
        name = str(name_or_path)
        folder = folder_of(name)
        config = read_config(folder, RewardConfig)
        head = RewardHead(config.encoder.size, config.hidden)
        read_weights(folder, head, RewardConfig, name)
        model = cls(head, load_encoder(config.encoder.name, device), config, name=name)
        logger.warning("%s is a reward model: it %s", name, model.note)
        return model

    @cached_property
    def digest(self) -> str:
        """8 hex digits of the head and the encoder."""
        return identity(self.head, unused=(), encoder=self.encoder.digest)

    @property
    def note(self) -> str:
        """How well it prefers, for whoever reads its figures."""
        accuracy = self.config.accuracy
        return accuracy.sentence if accuracy else "was never measured on unseen images"

    @torch.inference_mode()
    def rewards(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Return (N,) rewards of captions; `images` are the encoder's vectors of theirs, (N, D)."""
        if not len(captions):
            return torch.zeros(0)
        found = self.head(images, self.encoder.encode_texts(captions))
        found[[i for i, caption in enumerate(captions) if not caption.strip()]] = self.head.least
        return found


def folder_of(name: str) -> Path:
    """Return the folder that a reward model's name stands for.

    Raises:
        ScorerError: it does not exist, or holds no config.json.
    """
    source = hub.resolve(name, what="reward model", example="runs/reward", bare=False, error=ScorerError)
    if not Path(source).is_dir():
        raise ScorerError(f"reward model folder {name!r} does not exist; train one with {RewardConfig.verb}")
    return Path(source)
