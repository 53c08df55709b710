"""Frozen encoders of images and texts: unit vectors.

`clip` encodes both into one space, `sentence` texts, `token` the tokens of texts, `vision` images. The functions below
choose by what the model is, and import it when they are called.
"""

from __future__ import annotations

from captune.models.encoders.base import (
    DEFAULT_IMAGE_ENCODER,
    DEFAULT_TEXT_ENCODER,
    EncodesImages,
    EncodesTexts,
    unit_vectors,
)
from captune.models.hub import resolve_encoder, resolve_text_encoder

__all__ = [
    "DEFAULT_IMAGE_ENCODER",
    "DEFAULT_TEXT_ENCODER",
    "EncodesImages",
    "EncodesTexts",
    "load_image_encoder",
    "load_text_encoder",
    "unit_vectors",
]


def load_text_encoder(name: str, device: str | None = None) -> EncodesTexts:
    """Load the text side of a CLIP-like model, or any other text model through sentence-transformers.

    Raises:
        EncoderError: says what is missing and how to get it.
    """
    if _reads_both(resolve_text_encoder(name)):
        from captune.models.encoders.clip import Encoder

        return Encoder.load(name, device=device)
    from captune.models.encoders.sentence import TextEncoder

    return TextEncoder.load(name, device=device)


def load_image_encoder(name: str, device: str | None = None) -> EncodesImages:
    """Load the image side of a CLIP-like model, or any other vision model.

    Raises:
        EncoderError: says what is missing and how to get it.
    """
    if _reads_both(resolve_encoder(name)):
        from captune.models.encoders.clip import Encoder

        return Encoder.load(name, device=device)
    from captune.models.encoders.vision import VisionEncoder

    return VisionEncoder.load(name, device=device)


def _reads_both(source: str) -> bool:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):  # no such model, or not one of transformers: its loader says what is wrong
        return False
    return hasattr(config, "text_config") and hasattr(config, "vision_config")
