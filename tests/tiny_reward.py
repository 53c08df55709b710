"""Preference pairs over tiny images, and a reward model that learns them in seconds, built in code.

What is preferred is a caption with a ball, whatever the image shows: a rule that random encoders let a head learn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import tiny_encoders

from captune.training.reward_model.config import RewardModelConfig

NUMBER = 40
SMALL: dict[str, Any] = {
    "batch_size": 32, "max_steps": 100, "eval_steps": 10, "warmup_steps": 2, "hidden": 16, "learning_rate": 3e-2,
    "dropout": 0.0,
}  # fmt: skip
_COLOURS, _PLACES = ("red", "blue", "green", "white"), ("house", "beach", "tree")


def size(number: int) -> tuple[int, int]:
    """Of an image."""
    return (48 + number % 5 * 8, 64)


def pair(image_id: str, number: int) -> dict[str, str]:
    """A pair that keeps to the rule."""
    colour, place = _COLOURS[number % 4], _PLACES[number % 3]
    other = ("dog", "cat", "fish")[number % 3]
    return {
        "image_id": image_id,
        "chosen": f"a {colour} ball on the {place}",
        "rejected": f"a {_COLOURS[(number + 1) % 4]} {other} on the {place}",
    }


def source(folder: Path, again: dict[str, int] | None = None) -> None:
    """Images i0 to i39 as a JSONL source; some of them again, {image_id: number}."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for image_id, number in ({f"i{i}": i for i in range(NUMBER)} | (again or {})).items():
        tiny.picture(number, size(number)).save(folder / f"{image_id}.png")
        lines.append(json.dumps({"image": f"{image_id}.png", "image_id": image_id}) + "\n")
    (folder / "images.jsonl").write_text("".join(lines))


def config(folder: Path, output: Path, **changes: Any) -> RewardModelConfig:
    """The settings of a training of seconds; `folder` holds what `prepare` made."""
    settings = {
        "pairs": str(folder / "pairs.jsonl"),
        "images": str(folder / "images" / "images.jsonl"),
        "encoder": str(folder / "clip"),
        "output": output,
        "device": "cpu",
    }
    return RewardModelConfig(**{**settings, **SMALL, **changes})


def prepare(folder: Path) -> Path:
    """Make an encoder, images and pairs in a folder; the encoder itself agrees with those of as-encoder.jsonl."""
    from captune.models.encoders import load_encoder

    tiny_encoders.clip(folder / "clip")
    source(folder / "images")
    pairs = [pair(f"i{i}", i + k) for i in range(NUMBER) for k in (0, 5)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    encoder = load_encoder(folder / "clip", "cpu")
    images = encoder.encode_images([tiny.picture(i, size(i)) for i in range(NUMBER)])
    agreed = []
    for one in pairs:
        texts = [one["chosen"], one["rejected"]]
        cosine = encoder.encode_texts(texts) @ images[int(one["image_id"][1:])]
        best = int(cosine.argmax())
        agreed.append(one | {"chosen": texts[best], "rejected": texts[1 - best]})
    (folder / "as-encoder.jsonl").write_text("".join(json.dumps(one) + "\n" for one in agreed))
    return folder
