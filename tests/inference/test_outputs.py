"""Where captions go: files of any format that resume, sidecars that are kept, streams that are only written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny

from captune.data import read_captions, write_captions
from captune.data.sidecars import LINE_BREAKS
from captune.errors import CaptionFileError, SettingError, SourceError
from captune.inference.convert import convert
from captune.inference.job import caption_source
from captune.utils.skipped import counting


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


def test_standard_output(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    caps = tmp_path / "caps.jsonl"
    caps.write_text('{"image_id": "1", "caption": "A dog.\\nIt runs."}\n{"image_id": "2", "caption": "A cat."}\n')
    out.text = ""
    with counting() as changed:
        convert(caps, "-", format="text")
    assert out.text == "A dog. It runs.\nA cat.\n" and sum(changed[LINE_BREAKS].values()) == 1


@pytest.mark.parametrize(("format", "mark"), [("csv", ","), ("tsv", "\t")])
def test_tables_are_streamed_as_they_stand_in_files(tmp_path: Path, capsys: Any, format: str, mark: str) -> None:
    captions = {"a.png": f'one{mark} "two"', "b.png": "a line\nand a second\r", "c.png": ""}
    write_captions(captions, whole := tmp_path / f"whole.{format}")
    write_captions(captions, source := tmp_path / "caps.jsonl")
    assert convert(source, "-", format=format) == "3 captions written to standard output"
    assert capsys.readouterr().out.encode() == whole.read_bytes()
    write_captions({"a": "\udc80"}, source)
    with pytest.raises(CaptionFileError, match="standard output: .* image 'a' holds half a character"):
        convert(source, "-", format=format)


def test_a_fifo_is_written_and_stays(tmp_path: Path, photos: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.extend(pipe.read_text().splitlines()))
    reader.start()
    caption_source(Namer(), str(photos), pipe, progress=False)
    reader.join(20)
    assert len(got) == 7 and pipe.is_fifo()
    reader = threading.Thread(target=lambda: got.extend(pipe.read_text().splitlines()))
    reader.start()
    write_captions({"a": "x"}, caps := tmp_path / "caps.jsonl")
    assert convert(caps, pipe, format="csv") == f"1 caption written to {pipe}"
    reader.join(20)
    assert got[7:] == ["image_id,caption", "a,x"]
    caps.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "pipe"]


def test_captioning_reads_no_sidecar(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.data import folders

    for image in list(photos.rglob("*.jpg")) + list(photos.rglob("*.png")):
        image.with_suffix(".txt").write_text("a reference\n")
    monkeypatch.setattr(folders, "read_sidecar", lambda *_: pytest.fail("a sidecar was read"))
    assert caption_source(Namer(), str(photos), tmp_path / "caps.jsonl", progress=False).done


@pytest.mark.parametrize("name", ["caps.csv", "caps.parquet", "caps.json", "metadata.jsonl", "caps.tar"])
def test_a_file_that_somebody_corrected_is_not_written_over_by_its_journal(
    tmp_path: Path, photos: Path, name: str
) -> None:
    file = tmp_path / name
    run = partial(caption_source, Namer(), str(photos), file, progress=False)
    run(limit=3)
    assert run(limit=5).done == 2  # as captune left it, it is written again
    corrected = read_captions(file)
    first = next(iter(corrected))
    corrected[first] = "corrected by hand"
    pictures = {Path(key).stem if name == "caps.tar" else key: {"path": str(photos / key), "bytes": None}
                for key in os.listdir(photos)}  # fmt: skip
    write_captions(corrected, file, images=pictures)
    before = file.read_bytes()
    with pytest.raises(CaptionFileError, match=f"{name} was changed since captune wrote it.*corrected by hand"):
        run()
    assert file.read_bytes() == before
    for text in ("", None):  # emptied; taken out
        corrected.pop(first)
        write_captions(corrected if text is None else {first: text} | corrected, file, images=pictures)
        corrected[first] = ""
        with pytest.raises(CaptionFileError, match=f"{name} was changed since captune wrote it"):
            run()
    assert run(resume=False).done == 7


def test_a_run_that_was_killed_before_it_wrote_the_digest_resumes(tmp_path: Path, photos: Path) -> None:
    file, settings = tmp_path / "caps.csv", tmp_path / "caps.csv.settings.json"
    caption_source(Namer(), str(photos), file, limit=3, progress=False)
    old = settings.read_text()
    caption_source(Namer(), str(photos), file, limit=5, progress=False)
    settings.write_text(old)
    assert caption_source(Namer(), str(photos), file, progress=False).done == 2
    assert len(read_captions(file)) == 7


def test_a_part_of_the_images_gets_sidecars_in_the_tree_of_all(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/y.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        tiny.picture(1, (16, 16)).save(tmp_path / "photos" / name)
    texts = tmp_path / "texts"
    for source in (f"{tmp_path}/photos?n=1", f"{tmp_path}/photos?shard=2/2"):
        caption_source(Namer(), source, None, sidecar=".txt", output_folder=texts, progress=False)
    assert sorted(str(path.relative_to(texts)) for path in texts.rglob("*.txt")) == ["a/x.txt", "b/y.txt"]


@pytest.mark.parametrize("query", ["?shard=1/2", "?shard=2/2", "?n=1", "?skip=1&n=1"])
def test_two_images_of_one_stem_are_refused_in_whatever_part_they_are(tmp_path: Path, query: str) -> None:
    for name in ("a.jpg", "a.png"):
        tiny.picture(1, (16, 16)).save(tmp_path / name)
    with pytest.raises(SourceError, match="'a.jpg' and 'a.png' would share the sidecar a.txt"):
        caption_source(Namer(), f"{tmp_path}{query}", None, sidecar=".txt", progress=False)
    (captions := tmp_path / "caps.jsonl").write_text('{"image_id": "a.jpg", "caption": "x"}\n')
    with pytest.raises(SourceError, match="would share the sidecar a.txt"):
        convert(captions, tmp_path, format="sidecars", images=f"{tmp_path}{query}")
    assert not (tmp_path / "a.txt").exists()


def test_what_a_killed_run_left_beside_the_images_is_removed_and_nothing_else(tmp_path: Path, photos: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    running = os.getppid()
    stale = [f".1.txt.{gone.pid}.tmp", f".2.txt.{os.getpid()}.tmp"]
    kept = [f".3.txt.{running}.tmp", f".notes.txt.{gone.pid}.tmp", ".1.txt.tmp", f".1.caption.{gone.pid}.tmp"]
    for name in stale + kept:
        (photos / name).write_text("half a cap")
    caption_source(Namer(), str(photos), None, sidecar=".txt", progress=False)
    assert sorted(path.name for path in photos.iterdir() if path.name.startswith(".")) == sorted(kept)
    for name in ("caps.csv", "caps.csv.settings.json", "caps.csv.jsonl", "caps.csv.images.jsonl", "other.csv"):
        (tmp_path / f".{name}.{gone.pid}.tmp").write_text("half a cap")
    caption_source(Namer(), str(photos), tmp_path / "caps.csv", progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == [f".other.csv.{gone.pid}.tmp"]
