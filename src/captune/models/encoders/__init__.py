"""Frozen encoders of images and texts: unit vectors.

`clip` encodes both into one space, `sentence` texts, `token` the tokens of texts, `vision` images; `pair` is two of
them with trained heads, in place of a CLIP. The functions below choose by what the model is, and import it when they
are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captune.errors import EncoderError
from captune.models.encoders.base import (
    DEFAULT_IMAGE_ENCODER,
    DEFAULT_TEXT_ENCODER,
    PAIR,
    EncodesBoth,
    EncodesImages,
    EncodesTexts,
    described,
    unit_vectors,
)
from captune.models.hub import resolve_encoder, resolve_text_encoder
from captune.utils.files import read_json

__all__ = [
    "DEFAULT_IMAGE_ENCODER",
    "DEFAULT_TEXT_ENCODER",
    "EncodesBoth",
    "EncodesImages",
    "EncodesTexts",
    "check_frozen",
    "described",
    "load_encoder",
    "load_image_encoder",
    "load_text_encoder",
    "unit_vectors",
]


def load_encoder(name: str | Path, device: Any = None) -> EncodesBoth:
    """Load an encoder of images and texts: a CLIP-like model, or a pair of `captune encoder train`.

    Raises:
        EncoderError: says what is missing and how to get it.
    """
    source = resolve_encoder(name)
    if _is_pair(source):
        from captune.models.encoders.pair import PairEncoder, read_config

        config = read_config(Path(source))
        parts = config.image_encoder.name, config.text_encoder.name
        check_frozen(*parts)
        return PairEncoder.load(name, load_image_encoder(parts[0], device), load_text_encoder(parts[1], device))
    from captune.models.encoders.clip import Encoder

    return Encoder.load(name, device=device)


def check_frozen(*names: str) -> None:
    """Raise EncoderError for an encoder that no pair can stand on: another pair, or itself."""
    for name in names:
        if _is_pair(resolve_text_encoder(name)):
            raise EncoderError(f"{name} is itself an encoder pair; a pair stands on plain encoders")


def load_text_encoder(name: str, device: str | None = None) -> EncodesTexts:
    """Load the text side of a CLIP-like model, or any other text model through sentence-transformers.

    Raises:
        EncoderError: says what is missing and how to get it.
    """
    if name != DEFAULT_TEXT_ENCODER and _reads_both(resolve_text_encoder(name)):  # which may ask the hub
        return load_encoder(name, device)
    from captune.models.encoders.sentence import TextEncoder

    return TextEncoder.load(name, device=device)


def load_image_encoder(name: str, device: str | None = None) -> EncodesImages:
    """Load the image side of a CLIP-like model, or any other vision model.

    Raises:
        EncoderError: says what is missing and how to get it.
    """
    if _reads_both(resolve_encoder(name)):
        return load_encoder(name, device)
    from captune.models.encoders.vision import VisionEncoder

    return VisionEncoder.load(name, device=device)


def _is_pair(source: str) -> bool:
    try:
        config = read_json(Path(source) / "config.json", error=EncoderError)
    except EncoderError:  # a hub name, or a folder whose loader says what is wrong
        return False
    return isinstance(config, dict) and config.get("model_type") == PAIR


def _reads_both(source: str) -> bool:
    if _is_pair(source):
        return True
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):  # no such model, or not one of transformers: its loader says what is wrong
        return False
    return hasattr(config, "text_config") and hasattr(config, "vision_config")
