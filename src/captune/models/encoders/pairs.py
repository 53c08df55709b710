"""The two slots of a corpus: what turns texts, and what turns images, into unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from captune.errors import first_line

# torch and transformers are imported where they are used: a corpus is opened, and checked, without them

#: CIM used all-mpnet-base-v2 and laion/CLIP-ViT-H-14-laion2B-s32B-b79K; these two need no download
DEFAULT_TEXT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_IMAGE_ENCODER = "storybook-clip"


class EncodesTexts(Protocol):
    """The text slot: `TextEncoder`, `Encoder`, or anything of this shape."""

    name: str

    @property
    def digest(self) -> str: ...
    def encode_texts(self, texts: Sequence[str]) -> Any: ...


class EncodesImages(Protocol):
    """The image slot: `Encoder`, `VisionEncoder`, or anything of this shape."""

    name: str

    @property
    def digest(self) -> str: ...
    def encode_images(self, images: Sequence[Any]) -> Any: ...


class VisionEncoder:
    """A vision model without a text side (DINOv2, DINOv3, ViT): its pooled output, which is the [CLS] token's, or the
    mean over its tokens where it has none."""

    def __init__(self, model: Any, processor: Any, *, name: str) -> None:
        self.model, self.processor, self.name = model.eval().requires_grad_(False), processor, name

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: str | None = None) -> VisionEncoder:
        """A folder saved with `save_pretrained` (model and image processor), or a hub name."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel

        from captune.errors import EncoderError

        name = str(name_or_path)
        try:
            processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            model = AutoModel.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            reason = first_line(error)
            fetch = "" if Path(name).is_dir() else f" Where the hub can be reached, run: hf download {name}"
            raise EncoderError(f"image encoder {name!r} cannot be loaded: {reason}{fetch}") from error
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor, name=name)

    @cached_property
    def digest(self) -> str:
        from captune.utils.hashing import weights_digest

        return weights_digest(self.model.state_dict())

    def encode_images(self, images: Sequence[Any]) -> Any:
        """(N, D) float32 unit vectors on the CPU."""
        import torch

        with torch.inference_mode():
            inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
            output = self.model(**inputs)
            pooled = getattr(output, "pooler_output", None)
            pooled = output.last_hidden_state.mean(dim=1) if pooled is None else pooled
            return torch.nn.functional.normalize(pooled.float(), dim=-1).cpu()


def load_text_encoder(name: str, device: str | None = None) -> EncodesTexts:
    """A CLIP-like model's text side where `name` is one; every other model is read by sentence-transformers."""
    from captune.models.encoders.clip import EMBEDDED, Encoder
    from captune.models.encoders.text import TextEncoder, find_model

    if name in EMBEDDED or _reads_both(find_model(name)):
        return Encoder.load(name, device=device)
    return TextEncoder.load(name, device=device)


def load_image_encoder(name: str, device: str | None = None) -> EncodesImages:
    """A CLIP-like model's image side where `name` is one; every other model is read as a plain vision model."""
    from captune.models.encoders.clip import EMBEDDED, Encoder

    if name in EMBEDDED or _reads_both(name):
        return Encoder.load(name, device=device)
    return VisionEncoder.load(name, device=device)


def _reads_both(name: str) -> bool:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError):  # no such model, or one that is not transformers': its loader says what is wrong
        return False
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def unit(vectors: Any, names: Sequence[str]) -> np.ndarray:
    """(N, D) contiguous float32 with unit rows; EncoderError names the first item that has no direction."""
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    wrong = None
    if array.ndim != 2 or len(array) != len(names):
        wrong = f"the encoder gives an array of shape {array.shape} for {len(names)} items"
    else:
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        lost = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
        if len(lost):
            wrong = f"the encoder gives {names[lost[0]]!r} a vector of length {norms[lost[0], 0]}"
    if wrong is not None:
        from captune.errors import EncoderError

        raise EncoderError(wrong)
    return array / norms
