"""An encoder pair: two frozen encoders and a small trained head on each, whose vectors share a space like a CLIP's.

    v = unit(W_v (E_I(image) - m_v) / s_v + b_v),   t = unit(W_t (E_T(text) - m_t) / s_t + b_t)

E_I is any image encoder, E_T any text encoder of captune; m and s are the mean and the spread of their vectors over the
training data. `captune encoder train` trains W and b (`captune.training.encoder`) and writes

    config.json         the two encoders by name and digest, sizes, settings, and recall on images that were not seen
    model.safetensors   the heads; the encoders themselves are not copied

The folder loads wherever a CLIP does. An encoder with another digest than the one the heads were trained on is refused.
A pair trained on few images is weak: its `note` says how well it retrieves, and stands in every signature.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from captune.data.images import opened
from captune.errors import SettingError
from captune.models.encoders.base import PAIR, EncodesImages, EncodesTexts
from captune.models.heads import Frozen, HeadConfig, read_weights
from captune.models.heads import read_config as read_head
from captune.models.hub import resolve_encoder
from captune.utils.hashing import identity
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)
_SILENT_BATCHES = 100  # as in `captune.models.encoders.clip`


class Recall(BaseModel):
    """Recall at 1, 5 and 10 on images that neither trained nor chose anything, in shares of 1.

    Attributes:
        source: what they are.
        images: how many.
        captions: how many, of all of them.
        text_to_image: share of captions whose own image is among the first k; {"1": ..., "5": ..., "10": ...}.
        image_to_text: share of images with an own caption among the first k.
        random_text_to_image: what a random order would give.
        random_image_to_text: likewise.
    """

    model_config = ConfigDict(extra="forbid")

    source: str
    images: int
    captions: int
    text_to_image: dict[str, float]
    image_to_text: dict[str, float]
    random_text_to_image: dict[str, float]
    random_image_to_text: dict[str, float]

    @property
    def sentence(self) -> str:
        """R@1 in both directions, random beside."""
        return (
            f"R@1 on {self.images} unseen images with {self.captions} captions: text to image "
            f"{self.text_to_image['1']:.1%} (random {self.random_text_to_image['1']:.1%}), image to text "
            f"{self.image_to_text['1']:.1%} (random {self.random_image_to_text['1']:.1%})"
        )


class PairConfig(HeadConfig):
    """What config.json holds.

    Attributes:
        width: D, of the common space.
        whole_image: whether an image is squeezed into a square first, where the encoder's own processor would crop it.
        recall: None: it has not been measured.
    """

    noun: ClassVar[str] = "an encoder pair"
    verb: ClassVar[str] = "captune encoder train"

    model_type: str = PAIR
    image_encoder: Frozen
    text_encoder: Frozen
    width: int = Field(ge=1)
    whole_image: bool = False
    recall: Recall | None = None


class Head(nn.Module):
    """Unit vectors of one encoder (N, S) to unit vectors of the common space (N, D)."""

    mean: Tensor
    spread: Tensor

    def __init__(self, size: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(()))
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(size, width)

    def measure(self, vectors: Tensor) -> None:
        """Take mean and spread from the training vectors (N, S)."""
        self.mean.copy_(vectors.mean(dim=0))
        self.spread.copy_((vectors - self.mean).square().mean().sqrt().clamp(min=1e-6))

    def forward(self, vectors: Tensor) -> Tensor:
        """Project."""
        return nn.functional.normalize(self.linear(self.dropout((vectors - self.mean) / self.spread)), dim=-1)


class Heads(nn.Module):
    """Both heads, and the logarithm of the inverse temperature, which training reads alone."""

    def __init__(self, image_size: int, text_size: int, width: int, dropout: float = 0.0, scale: float = 10.0) -> None:
        super().__init__()
        self.image, self.text = Head(image_size, width, dropout), Head(text_size, width, dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))


class PairEncoder:
    """A trained pair of frozen encoders; see the module.

    Attributes:
        model: both encoders' modules and the heads, a torch module.

    Args:
        heads: trained.
        image_encoder: the one that they were trained on.
        text_encoder: likewise.
        config: names and digests are those of the encoders.
        name: what the user calls it.

    Raises:
        EncoderError: an encoder is another one than the config says.
    """

    def __init__(
        self, heads: Heads, image_encoder: EncodesImages, text_encoder: EncodesTexts, config: PairConfig, *, name: str
    ) -> None:
        config.check("image encoder", config.image_encoder, image_encoder, name)
        config.check("text encoder", config.text_encoder, text_encoder, name)
        self.heads = heads.eval().requires_grad_(False)
        self.image_encoder, self.text_encoder, self.config, self.name = image_encoder, text_encoder, config, name
        modules = {"heads": heads, "images": getattr(image_encoder, "model", None)}
        modules["texts"] = getattr(text_encoder, "model", None)
        self.model = nn.ModuleDict({key: module for key, module in modules.items() if isinstance(module, nn.Module)})

    @classmethod
    def load(cls, name_or_path: str | Path, image_encoder: EncodesImages, text_encoder: EncodesTexts) -> PairEncoder:
        """Load the heads of a folder of `captune encoder train`; `captune.models.encoders.load_encoder` loads it all.

        Raises:
            EncoderError: the folder is not whole, or an encoder is another one.
        """
        name = str(name_or_path)
        folder = Path(resolve_encoder(name))
        config = read_config(folder)
        heads = Heads(config.image_encoder.size, config.text_encoder.size, config.width)
        read_weights(folder, heads, PairConfig, name)
        pair = cls(heads, image_encoder, text_encoder, config, name=name)
        logger.warning("%s is an %s; read its scores beside that", name, pair.note)
        return pair

    @cached_property
    def digest(self) -> str:
        """8 hex digits of the heads, both encoders and the preparation of images."""
        return identity(
            self.heads,
            unused=(),
            images=self.image_encoder.digest,
            texts=self.text_encoder.digest,
            whole=self.config.whole_image,
        )

    @property
    def note(self) -> str:
        """How well it retrieves, for whoever reads its figures."""
        recall = self.config.recall
        return f"encoder pair, {recall.sentence if recall else 'never measured on unseen images'}"

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return self.heads.log_scale.device

    @property
    def context_length(self) -> int | None:
        """The text encoder's: the most tokens of a text."""
        return getattr(self.text_encoder, "context_length", None)

    @property
    def truncated(self) -> int:
        """How many texts have been cut."""
        return int(getattr(self.text_encoder, "truncated", 0))

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> Tensor:
        """Encode images, PIL's or anything that `open_image` reads: (N, D) float32 unit vectors on the CPU."""
        vectors = frozen_vectors(self.image_encoder, images, whole=self.config.whole_image, batch_size=batch_size)
        return self.heads.image(vectors) if len(vectors) else torch.empty(0, 0)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Encode texts: (N, D) float32 unit vectors on the CPU."""
        encoder: Any = self.text_encoder
        vectors = torch.as_tensor(encoder.encode_texts(texts, batch_size=batch_size))
        return self.heads.text(vectors) if len(vectors) else torch.empty(0, 0)


def frozen_vectors(encoder: EncodesImages, images: Sequence[Any], *, whole: bool, batch_size: int = 32) -> Tensor:
    """Return the frozen image encoder's unit vectors, (N, S) float32 on the CPU.

    Args:
        encoder: of images.
        images: whatever `open_image` takes.
        whole: squeeze each image into a square first.
        batch_size: images encoded together.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, not {batch_size}")
    made = []
    silent = len(images) < _SILENT_BATCHES * batch_size
    with Bar(total=len(images), desc="encoding images", unit="image", show=not silent, leave=False) as bar:
        for batch in opened(images, batch_size):
            part = [squeezed(image) if whole else image for image in batch]
            made.append(torch.as_tensor(encoder.encode_images(part)))
            bar.update(len(part))
    return torch.cat(made) if made else torch.empty(0, 0)


def squeezed(image: Image.Image) -> Image.Image:
    """Return the whole image as a square of its shorter side."""
    side = min(image.size)
    return image if image.width == image.height else image.resize((side, side), Image.Resampling.BICUBIC)


def read_config(folder: Path) -> PairConfig:
    """Read a pair's config.json.

    Raises:
        EncoderError: it is of another format, or not whole; says what is wrong.
    """
    return read_head(folder, PairConfig)
