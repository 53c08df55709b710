"""Caption files: nothing lost, nothing cut at odd characters, torn lines noticed and mended."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
from pathlib import Path

import pytest

from captune.data import CaptionWriter, read_captions, write_captions
from captune.errors import CaptionFileError

ODD = {
    "plain": "a dog",
    "empty": "",
    "lines": "one\u2028two\u2029three\vfour\ffive\x85six\rseven\neight",
    "emoji": "a 🐕 on the 🏖️",
    "quotes": 'she says "hi" \\ {"a": 1}',
    "brackets": "(a) [b] {c} <PERSON>",
    "ünï/çödé.jpg": "ein schöner Tag 日本語",
    "surrogate": "\udc80",
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of small files on a busy disk take minutes otherwise


def rows(captions: dict[str, str]) -> list[dict[str, str]]:
    return [{"image_id": key, "caption": text} for key, text in captions.items()]


def test_a_single_line_without_an_image_id_is_no_table_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"image": "b.png", "caption": "a dog"}\n')
    with pytest.raises(CaptionFileError, match="image_id"):
        read_captions(path)


def test_odd_captions_survive(tmp_path: Path) -> None:
    path = tmp_path / "new" / "caps.jsonl"
    with CaptionWriter(path) as writer:
        writer.write(rows(ODD))
    assert read_captions(path) == ODD
    assert path.read_bytes().count(b"\n") == len(ODD)
    assert "日本語".encode() in path.read_bytes()  # readable for people


def test_rows_that_are_on_their_way_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the file at once; a disk that fails is told by the next write, or at the end."""
    path, disk = tmp_path / "caps.jsonl", threading.Event()
    synced: list[int] = []

    def slow(_: int) -> None:
        assert disk.wait(20)
        synced.append(path.read_bytes().count(b"\n"))

    monkeypatch.setattr(os, "fsync", slow)
    with CaptionWriter(path) as writer:
        writer.write(rows({"a": "one"}), wait=False)
        assert read_captions(path) == {"a": "one"} and "a" in writer.done and not synced
        disk.set()
        writer.write(rows({"b": "two"}), wait=False)
        assert synced[0] == 1
    assert synced == [1, 2]

    def full(_: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "fsync", full)
    writer = CaptionWriter(path)
    writer.write(rows({"c": "three"}), wait=False)
    with pytest.raises(OSError, match="the disk is gone"):
        writer.write(rows({"d": "four"}), wait=False)
    writer.close()
    writer = CaptionWriter(path)  # it is no longer held
    writer.write(rows({"d": "four"}), wait=False)
    with pytest.raises(OSError, match="the disk is gone"):
        writer.close()
    CaptionWriter(path).close()
    assert list(read_captions(path)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("write", ["results", "dict", "one line"])
def test_json_forms(tmp_path: Path, write: str) -> None:
    path = tmp_path / "caps.json"
    captions = {"12": "a dog", "b.jpg": ""}
    if write == "results":
        write_captions(captions, path)
        assert json.loads(path.read_text())[0] == {"image_id": 12, "caption": "a dog"}
    elif write == "dict":
        path.write_text(json.dumps(captions, indent=1))
    else:
        captions = {"12": "a dog"}
        path.write_text('{"image_id": 12, "caption": "a dog", "score": 0.5}')
    assert read_captions(path) == captions


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"image_id": 1, "caption": "a"}\n{"image_id": 1, "caption": "b"}\n', "line 2: a second, different caption"),
        ('{"image_id": 1, "caption": "a"}\nnot json\n{"image_id": 2, "caption": "b"}\n', "line 2"),
        ('{"image_id": 1, "caption": "a"}\n[1]\n{"image_id": 2, "caption": "b"}\n', "line 2: expected a JSON object"),
        ('{"image_id": 1, "caption": ["a", "b"]}\n', "needs one caption"),
        ('{"image_id": 1, "caption": null}\n', "needs one caption"),
        ('{"image_id": null, "caption": "a"}\n', "needs an image_id"),
        ('[{"caption": "a"}]', "entry 1: needs an image_id"),
        ("[[1, 2]]", "entry 1: expected an object"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "caps.jsonl"
    path.write_text(content)
    with pytest.raises(CaptionFileError, match=reason) as caught:
        read_captions(path)
    assert "caps.jsonl" in str(caught.value)


def test_a_space_behind_the_commas_is_no_part_of_captions(tmp_path: Path) -> None:
    path = tmp_path / "caps.csv"
    path.write_text('image_id, caption\na.jpg, "a dog, a cat"\nb.jpg, a bird\n')
    assert read_captions(path) == {"a.jpg": "a dog, a cat", "b.jpg": "a bird"}
    path.write_text('image_id,caption\na.jpg," ""a dog"" "\n')  # as captune writes one with spaces and marks
    assert read_captions(path) == {"a.jpg": ' "a dog" '}


def test_the_same_caption_twice_is_no_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "caps.jsonl"
    path.write_text('{"image_id": 1, "caption": "a"}\n' * 2)
    assert read_captions(path) == {"1": "a"}


def test_every_cut_leaves_whole_rows_and_is_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file cut after any byte reads as its whole lines; a writer that goes on restores the same bytes."""
    whole = tmp_path / "whole.jsonl"
    with CaptionWriter(whole) as writer:
        writer.write(rows(ODD))
    content = whole.read_bytes()
    path = tmp_path / "cut.jsonl"
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        caplog.clear()
        lines = content[:cut].count(b"\n") + (content[cut : cut + 1] == b"\n")  # a line end alone may be missing
        with caplog.at_level(logging.WARNING):
            assert read_captions(path) == dict(list(ODD.items())[:lines])
        torn = cut > 0 and content[cut - 1 : cut] != b"\n" and content[cut : cut + 1] != b"\n"
        assert ("cut off" in caplog.text) == torn
        with CaptionWriter(path) as writer:
            assert len(writer.done) == lines and all(one in writer.done for one in list(ODD)[:lines])
            assert writer.last == (list(ODD)[lines - 1] if lines else None)
            writer.write(row for row in rows(ODD) if row["image_id"] not in writer.done)
        assert path.read_bytes() == content


def test_writer_starts_afresh_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "caps.jsonl"
    with CaptionWriter(path) as writer:
        writer.write(rows({"a": "1"}))
    with CaptionWriter(path) as writer:
        with pytest.raises(CaptionFileError, match="has a caption already"):
            writer.write(rows({"a": "2"}))
        writer.write(rows({"b": "2"}))
    assert read_captions(path) == {"a": "1", "b": "2"}
    with CaptionWriter(path, resume=False) as writer:
        writer.write(rows({"c": "3"}))
    assert read_captions(path) == {"c": "3"}


def test_bad_rows_are_refused_before_any_is_written(tmp_path: Path) -> None:
    with CaptionWriter(tmp_path / "caps.jsonl") as writer, pytest.raises(CaptionFileError, match="both strings"):
        writer.write([{"image_id": "a", "caption": "fine"}, {"image_id": "b", "caption": None}])
    assert read_captions(tmp_path / "caps.jsonl") == {}


def test_a_file_that_is_no_caption_file_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("first line\nsecond line\n", "first line\nsecond line", "one line"):
        path.write_text(text)
        with pytest.raises(CaptionFileError):
            CaptionWriter(path)
        assert path.read_text() == text


@pytest.mark.skipif(sys.platform == "win32", reason="no advisory locks")
def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "caps.jsonl"
    with CaptionWriter(path) as writer:
        writer.write(rows({"a": "1"}))
        with pytest.raises(CaptionFileError, match="another process is writing"):
            CaptionWriter(path, resume=False)
    assert read_captions(path) == {"a": "1"}


def test_a_file_that_lacks_its_last_corrections_says_so_when_it_is_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "caps.jsonl"
    file.write_text('{"image_id": "a", "caption": "dog"}\n')
    (tmp_path / "caps.jsonl.edits.jsonl").write_text('{"image_id": "a", "action": "correct", "after": "a dog"}\n')
    with CaptionWriter(file) as writer:
        writer.write([{"image_id": "b", "caption": "cat"}])
    assert "corrections of 1 captions, such as that of 'a'" in caplog.text


@pytest.mark.parametrize("wait", [True, False])
def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CaptionWriter(tmp_path / "caps.jsonl")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        writer.write([{"image_id": "a", "caption": "a dog"}], wait=wait)
        writer.close()
    assert error.value.filename == str(tmp_path / "caps.jsonl")
