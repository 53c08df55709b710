"""Killed at any file event, a captioning job resumes to the same bytes; also while it captions replaced images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, photo
from file_events import in_child

from captune.data import read_captions
from captune.inference.job import caption_source

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
SIZES = [(20 + 7 * number % 40, 30) for number in range(11)]
REPLACED = (1, 6, 7)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        (folder / f"{number:02d}.jpg").write_bytes(encode(photo(*size, number), "JPEG"))
    (folder / "11.jpg").write_bytes(b"no image")
    return folder


class Plain:
    """A caption depends on its image alone, so that those of replaced images are comparable."""

    name = prompt = "plain"

    def generate(self, images: Any) -> list[str]:
        return [f"{image.width}x{image.height} \u2028 {image.getpixel((3, 3))}" for image in images]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if "bad" not in path.name}


@pytest.mark.parametrize(("name", "replaced"), [("caps.jsonl", False), ("caps.jsonl", True), ("caps.csv", True)])
def test_any_file_event(photos: Path, tmp_path: Path, name: str, replaced: bool) -> None:
    start, whole = tmp_path / "start", tmp_path / "whole"

    def job(folder: Path) -> None:
        caption_source(Plain(), str(photos), folder / name, batch_size=2, window=2, progress=False)

    start.mkdir()
    if replaced:
        job(start)
        for number in REPLACED:
            (photos / f"{number:02d}.jpg").write_bytes(encode(photo(50, 41, 100 + number), "JPEG"))
    shutil.copytree(start, whole)
    ended, events = in_child(lambda: job(whole))
    assert not ended and events > 5
    expected = contents(whole)
    captions = read_captions(whole / name)
    assert list(captions) == [f"{number:02d}.jpg" for number in range(11)]
    assert all(captions[f"{number:02d}.jpg"].startswith("50x41") == replaced for number in REPLACED)
    for event in range(1, events + 1):
        folder = tmp_path / f"killed-{event}"
        shutil.copytree(start, folder)
        ended, _ = in_child(lambda folder=folder: job(folder), event)  # type: ignore[misc]
        assert ended
        if (folder / name).exists():
            read_captions(folder / name)  # whole at any time
        job(folder)
        left = {key: value for key, value in contents(folder).items() if not key.endswith(".tmp")}
        assert left == expected, event
        shutil.rmtree(folder)
