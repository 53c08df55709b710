"""Image files and caption files for the tests of sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from broken_images import encode, photo

from captune.data import load_images

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
TRUTH = {"a.jpg": ["a dog", "one dog"], "b.jpg": ["two cats", "cats"], "c.jpg": ["a boat, far away", 'a "boat"']}


def images(folder: Path, names: list[str] = NAMES) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(photo(seed=seed), "JPEG"))
    return folder


def content(source: Any, **options: Any) -> dict[str, list[str]]:
    """{image_id: references}, with every image opened."""
    dataset = load_images(str(source), **options)
    for row in dataset:
        assert row["image"].mode == "RGB"
        assert row["image"].size == photo().size
    return {row["image_id"]: row["references"] for row in dataset}


def write(path: Path, text: str | Any) -> Path:
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path
