"""What the tests of the methods share."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

WORDS = ["a red ball", "two green fish and a small yellow bird", "a blue house on the beach", "my house in 2011"]


@pytest.fixture
def dataset(images: list) -> datasets.Dataset:
    """Four images with two references each."""
    return datasets.Dataset.from_list(
        [
            {"image": image, "image_id": str(i), "references": [text, f"{text} again"]}
            for i, (image, text) in enumerate(zip(images, WORDS, strict=True))
        ]
    )


@pytest.fixture
def source(dataset: datasets.Dataset, tmp_path: Path) -> str:
    """The same as a JSON lines file with its images beside it."""
    lines = []
    for row in dataset:
        name = f"{row['image_id']}.png"
        row["image"].save(tmp_path / name)
        lines.append({"image": name, "image_id": row["image_id"], "references": row["references"]})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "captions.jsonl")
