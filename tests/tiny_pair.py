"""Captioned images, tiny frozen encoders, and a pair trained on them, built in code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import tiny_encoders
import tiny_text_encoders

from captune.training.encoder.config import EncoderConfig

SMALL: dict[str, Any] = {
    "batch_size": 8,
    "max_steps": 12,
    "eval_steps": 4,
    "warmup_steps": 2,
    "width": 8,
    "device": "cpu",
    "whole_image": True,
}
_COLOURS, _THINGS, _PLACES = ("red", "blue", "green"), ("ball", "dog", "cat", "fish"), ("house", "beach")


def caption(number: int) -> str:
    """A different caption for each of 24 numbers."""
    colour, thing = _COLOURS[number % 3], _THINGS[number // 3 % 4]
    return f"a {colour} {thing} on the {_PLACES[number // 12 % 2]}"


def source(folder: Path, first: int = 0, number: int = 24, captions: bool = True) -> str:
    """Images first to first + number with two captions each, as a JSONL source."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(first, first + number):
        tiny.picture(i, (48 + i % 5 * 8, 64)).save(folder / f"{i}.png")
        line = {"image": f"{i}.png", "image_id": f"i{i}"}
        lines.append(line | ({"references": [caption(i), f"two small {caption(i)[2:]} {i}"]} if captions else {}))
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "captions.jsonl")


def encoders(folder: Path) -> dict[str, str]:
    """A tiny CLIP's image side and a tiny sentence encoder."""
    return {
        "image_encoder": str(tiny_encoders.clip(folder / "clip")),
        "text_encoder": str(tiny_text_encoders.sentences(folder / "sentences")),
    }


def config(folder: Path, output: Path, **changes: Any) -> EncoderConfig:
    """The settings of a training of seconds; `folder` holds what `prepare` made."""
    settings = {
        "images": str(folder / "train" / "captions.jsonl"),
        "choice_images": str(folder / "choice" / "captions.jsonl"),
        "eval_images": str(folder / "unseen" / "captions.jsonl"),
        "image_encoder": str(folder / "clip"),
        "text_encoder": str(folder / "sentences"),
        "output": output,
    }
    return EncoderConfig(**{**settings, **SMALL, **changes})


def prepare(folder: Path) -> Path:
    """Make encoders and three sources in a folder."""
    encoders(folder)
    source(folder / "train")
    source(folder / "choice", 100, 6)
    source(folder / "unseen", 200, 7)
    return folder
