"""500 photos to sidecars, to metadata, into `datasets`, and back: no caption changes; hard captions in every format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny

from captune.data import read_captions, write_captions
from captune.errors import CaptionFileError
from captune.inference.convert import convert
from captune.inference.job import caption_source
from captune.utils.skipped import counting

HARD = [
    'a "stop" sign, red', "=1+1", "@cmd", "-dash", "nan", "null", "None", "N/A", "", "0", "a\ttab", "ünï 猫 🐈‍⬛",
    "a\u2028b\u0085c\x0bd", "'", '"', '""', "a;b|c", "{\"a\": 1}", "# comment", "\\n", "word " * 2000 + "end", "1.50",
    "TRUE", "﻿bom", "a\u00a0b", "</script>",
]  # fmt: skip
BREAKS = ["two\nlines", "a\r\nb", "\r"]
SPACES = [" leading", "trailing ", "  "]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def photos(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    for number in range(count):
        place = folder / f"{number // 100}"
        place.mkdir(exist_ok=True)
        tiny.picture(number, (8 + number % 3, 8)).save(place / f"{number:03d}.png")
    return [f"{number // 100}/{number:03d}.png" for number in range(count)]


class Says:
    """Says the captions of a list, in the order in which it is asked."""

    name = prompt = "says"

    def __init__(self, captions: list[str]) -> None:
        self.captions = captions

    def generate(self, images: list[object]) -> list[str]:
        made, self.captions = self.captions[: len(images)], self.captions[len(images) :]
        return made


def test_500_photos_to_sidecars_to_datasets_and_back(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "photos"
    names = photos(folder, 500)
    texts = [HARD[number] if number < len(HARD) else f"{HARD[number % len(HARD)]} {number}" for number in range(500)]
    caption_source(Says(texts), str(folder), None, sidecar=".txt", progress=False)
    captions = read_captions(folder)
    assert list(captions) == names and sorted(captions.values()) == sorted(texts)

    convert(folder, folder / "metadata.jsonl", images=str(folder))
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(loaded["text"]) == sorted(texts)
    assert read_captions(folder / "metadata.jsonl") == captions

    back = tmp_path / "back"
    convert(folder / "metadata.jsonl", back, images=str(folder), format="sidecars")
    for name, text in captions.items():
        assert (back / name).with_suffix(".txt").read_bytes().removeprefix(b"\xef\xbb\xbf") == f"{text}\n".encode()


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.csv", "c.tsv", "c.parquet", "metadata.jsonl", "metadata.csv"])
def test_hard_captions_in_one_file(tmp_path: Path, name: str) -> None:
    captions = {f"{number}.png": text for number, text in enumerate(HARD + BREAKS + SPACES)}
    write_captions(captions, tmp_path / name)
    assert read_captions(tmp_path / name) == captions


def test_hard_captions_in_shards(tmp_path: Path) -> None:
    names = photos(tmp_path / "photos", len(HARD + BREAKS + SPACES))
    captions = dict(zip(names, HARD + BREAKS + SPACES, strict=True))
    write_captions(captions, tmp_path / "c.jsonl")
    convert(tmp_path / "c.jsonl", tmp_path / "c.tar", images=str(tmp_path / "photos"))
    assert read_captions(tmp_path / "c.tar") == {name.removesuffix(".png"): text for name, text in captions.items()}


def test_hard_captions_in_sidecars(tmp_path: Path) -> None:
    names = photos(tmp_path / "photos", len(HARD + SPACES))
    captions = dict(zip(names, HARD + SPACES, strict=True))
    write_captions(captions, tmp_path / "c.jsonl")
    convert(tmp_path / "c.jsonl", tmp_path / "photos", images=str(tmp_path / "photos"), format="sidecars")
    assert read_captions(tmp_path / "photos") == captions


def test_line_breaks_in_sidecars_are_counted(tmp_path: Path) -> None:
    names = photos(tmp_path / "photos", len(BREAKS))
    write_captions(dict(zip(names, BREAKS, strict=True)), tmp_path / "c.jsonl")
    with counting() as skipped:
        convert(tmp_path / "c.jsonl", tmp_path / "photos", images=str(tmp_path / "photos"), format="sidecars")
    assert any("line breaks" in reason for reason in skipped)
    assert all("\n" not in text for text in read_captions(tmp_path / "photos").values())


@pytest.mark.parametrize("name", ["c.csv", "c.parquet", "metadata.csv"])
def test_what_a_format_cannot_hold_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CaptionFileError, match="half a character"):
        write_captions({"a.png": "\ud83d"}, tmp_path / name)
    assert not (tmp_path / name).exists()
