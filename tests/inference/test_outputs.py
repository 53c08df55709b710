"""Where captions go: files of any format that resume, sidecars that are kept, streams that are only written."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny

from captune.data import read_captions
from captune.errors import CaptionFileError, SettingError
from captune.inference.job import caption_source


class Namer:
    """Captions an image by its colour, and may be stopped after some images."""

    name = "namer"

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls, self.stop_after = 0, stop_after

    def generate(self, images: list[Any], **_: Any) -> list[str]:
        if self.stop_after is not None and self.calls >= self.stop_after:
            raise KeyboardInterrupt
        self.calls += len(images)
        return [f"colour {image.getpixel((0, 0))}" for image in images]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        tiny.picture(number, (16, 16)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["caps.csv", "caps.parquet", "caps.json", "metadata.jsonl", "caps.tar", "caps.jsonl"])
def test_any_format_resumes_and_holds_the_same(tmp_path: Path, photos: Path, name: str) -> None:
    whole, killed = tmp_path / "whole" / name, tmp_path / "killed" / name
    whole.parent.mkdir()
    killed.parent.mkdir()
    caption_source(Namer(), str(photos), whole, batch_size=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        caption_source(Namer(stop_after=4), str(photos), killed, batch_size=2, progress=False)
    assert name == "caps.jsonl" or not killed.exists()
    report = caption_source(Namer(), str(photos), killed, batch_size=2, progress=False)
    assert report.done == 3 and report.skipped == 4
    assert read_captions(killed) == read_captions(whole)
    assert sorted(path.name for path in killed.parent.iterdir()) == sorted(path.name for path in whole.parent.iterdir())
    again = caption_source(captioner := Namer(), str(photos), killed, batch_size=2, progress=False)
    assert (again.done, again.skipped, captioner.calls) == (0, 7, 0)


def test_captions_of_other_settings_are_refused_in_any_format(tmp_path: Path, photos: Path) -> None:
    caption_source(Namer(), str(photos), tmp_path / "caps.csv", progress=False)
    with pytest.raises(CaptionFileError, match="made with other settings"):
        caption_source(Namer(), str(photos), tmp_path / "caps.csv", prefix="x ", progress=False)
    caption_source(Namer(), str(photos), tmp_path / "caps.csv", prefix="x ", suffix="!", resume=False, progress=False)
    assert all(text[:9] == "x colour " and text[-1] == "!" for text in read_captions(tmp_path / "caps.csv").values())


def test_sidecars_are_kept_unless_replaced(photos: Path) -> None:
    (photos / "3.txt").write_text("by hand\n")
    report = caption_source(captioner := Namer(), str(photos), None, sidecar=".txt", batch_size=2, progress=False)
    assert (report.done, report.skipped) == (6, 1)
    assert (photos / "3.txt").read_text() == "by hand\n"
    assert (photos / "0.txt").read_text().startswith("colour (")
    assert sorted(path.suffix for path in photos.iterdir()) == [".png"] * 7 + [".txt"] * 7
    report = caption_source(captioner, str(photos), None, sidecar=".txt", resume=False, progress=False)
    assert (photos / "3.txt").read_text().startswith("colour (")


def test_sidecars_or_a_file(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(SettingError, match="an output file, or sidecars"):
        caption_source(Namer(), str(photos), None, progress=False)
    with pytest.raises(SettingError, match="is for sidecars"):
        caption_source(Namer(), str(photos), tmp_path / "x.jsonl", output_folder=tmp_path, progress=False)


def test_standard_output(photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Out:
        text = ""

        def writelines(self, lines: Any) -> None:
            self.text += "".join(lines)

        def flush(self) -> None: ...

        def fileno(self) -> int:
            return 1

    monkeypatch.setattr("sys.stdout", out := Out())
    caption_source(Namer(), str(photos), "-", progress=False)
    assert [json.loads(line)["image_id"] for line in out.text.splitlines()] == [f"{i}.png" for i in range(7)]
    out.text = ""
    caption_source(Namer(), str(photos / "1.png"), "-", format="text", progress=False)
    assert out.text.startswith("colour (") and out.text.count("\n") == 1


def test_a_fifo_is_written_and_stays(tmp_path: Path, photos: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.extend(pipe.read_text().splitlines()))
    reader.start()
    caption_source(Namer(), str(photos), pipe, progress=False)
    reader.join(20)
    assert len(got) == 7 and pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "pipe"]


def test_captioning_reads_no_sidecar(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.data import folders

    for image in list(photos.rglob("*.jpg")) + list(photos.rglob("*.png")):
        image.with_suffix(".txt").write_text("a reference\n")
    monkeypatch.setattr(folders, "read_sidecar", lambda *_: pytest.fail("a sidecar was read"))
    assert caption_source(Namer(), str(photos), tmp_path / "caps.jsonl", progress=False).done
