"""The job of `captune detect`: one line an image, resumable after a kill to the same bytes, refusing other settings."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_images import encode, photo

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from tiny_detectors import save_onnx, save_yolox

from captune.cli.main import main
from captune.data.lines import OBJECTS
from captune.errors import CaptionFileError, DetectorError, SettingError, UsageError
from captune.inference.detect import detect_to_file

DOG = {9: (16, 0.9, 0.5, 0.5, 0.7, 0.7), 11: (0, 0.4, 0.5, 0.5, 0, 0)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(11):
        (folder / f"{number:02d}.jpg").write_bytes(encode(photo(20 + 7 * number % 40, 30, number), "JPEG"))
    (folder / "11.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Its scores depend on the image."""
    rows = np.zeros((5, 3), np.float32)
    rows[0] = 0.4, 0.1, -1
    (tmp_path / "labels.txt").write_text("dog\ncat\nbus\n")
    outputs = {"logits": rows, "pred_boxes": np.full((5, 4), 0.4)}
    return save_onnx(tmp_path / "tiny.onnx", outputs, batch="n", weights={"logits": 0.5})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def detect(*arguments: object) -> int:
    return main(["detect", *map(str, arguments)])


def test_a_line_an_image_and_the_bad_one_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = save_yolox(tmp_path / "x.onnx", DOG), tmp_path / "found.jsonl"
    flags = ("--model", model, "--images", photos, "--output", output)
    assert detect(*flags) == 1  # for the bad one
    rows = lines(output)
    assert [row["image_id"] for row in rows] == [f"{number:02d}.jpg" for number in range(11)]
    assert rows[0]["size"] == [20, 30] and [one["label"] for one in rows[0]["objects"]] == ["dog", "person"]
    assert rows[0]["objects"][0]["score"] == 0.9 and len(rows[0]["objects"][0]["box"]) == 4
    said = capsys.readouterr().err
    assert (
        "skipped 11.jpg: " in said and "11 images searched for objects into" in said and "1 bad image left out" in said
    )
    settings = json.loads(output.with_name("found.jsonl.settings.json").read_text())
    assert settings["generation"] == {"nms": 0.45, "threshold": 0.3} and settings["classes"][16] == "dog"
    before = output.read_bytes()
    assert detect(*flags) == 1 and output.read_bytes() == before
    assert "11 were there already" in capsys.readouterr().err


def test_other_settings_are_refused(photos: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.jsonl"
    detect_to_file(model, str(photos), output, progress=False)
    for changed, said in (({"threshold": 0.2}, "threshold: 0.3 then, 0.2"), ({"nms": 0.1}, "nms: 1.0 then, 0.1")):
        with pytest.raises(CaptionFileError, match=f"was made with other settings .*{said}.* now"):
            detect_to_file(model, str(photos), output, progress=False, **changed)
    other = save_yolox(photos.with_name("other.onnx"), DOG, metadata={"names": str(list(range(80)))})
    with pytest.raises(CaptionFileError, match="weights: "):
        detect_to_file(other, str(photos), output, progress=False)
    detect_to_file(other, str(photos), output, progress=False, overwrite=True)
    output.with_name("found.jsonl.settings.json").unlink()
    with pytest.raises(CaptionFileError, match="holds lists of objects, but found.jsonl.settings.json"):
        detect_to_file(other, str(photos), output, progress=False)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_and_resumed_gives_the_same_bytes(photos: Path, model: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "found.jsonl"
    options: dict[str, Any] = {"batch_size": 2, "threshold": 0.55, "progress": False}
    detect_to_file(model, str(photos), whole, **options)
    assert len({row["objects"][0]["score"] for row in lines(whole)}) > 5  # they differ
    for killed_at in (1, 3):
        command = (
            "import os, signal\n"
            "from captune.inference import detect\n"
            "real, count = detect._Search.generate, 0\n"
            "def generate(self, images, **options):\n"
            "    global count\n"
            f"    if count == {killed_at}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    count += 1\n"
            "    return real(self, images, **options)\n"
            "detect._Search.generate = generate\n"
            f"detect.detect_to_file({str(model)!r}, {str(photos)!r}, {str(output)!r}, **{options!r})"
        )
        done = subprocess.run(
            [sys.executable, "-c", command], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        assert done.returncode == -signal.SIGKILL
        assert 0 < len(lines(output)) < 11
    report = detect_to_file(model, str(photos), output, **options)
    assert report.skipped > 0 and report.kind is OBJECTS
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cut", range(0, 700, 97))
def test_cut_at_any_byte_and_resumed_gives_the_same_bytes(photos: Path, model: Path, tmp_path: Path, cut: int) -> None:
    whole = tmp_path / "found.jsonl"
    detect_to_file(model, str(photos), whole, batch_size=4, progress=False)
    bytes_before = whole.read_bytes()
    assert len(bytes_before) > 700
    whole.write_bytes(bytes_before[:cut])
    detect_to_file(model, str(photos), whole, batch_size=4, progress=False)
    assert whole.read_bytes() == bytes_before


def test_a_replaced_image_is_searched_again(
    photos: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "found.jsonl"
    detect_to_file(model, str(photos), output, progress=False)
    before = lines(output)
    (photos / "03.jpg").write_bytes(encode(photo(90, 50, 77), "JPEG"))
    report = detect_to_file(model, str(photos), output, progress=False)
    after = lines(output)
    assert report.replaced == 1 and after[3]["size"] == [90, 50]
    assert [row for row in after if row["image_id"] != "03.jpg"] == [r for r in before if r["image_id"] != "03.jpg"]
    assert "were searched for objects (the first: 03.jpg)" in caplog.text


def test_standard_output(
    photos: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Out(io.StringIO):
        def fileno(self) -> int:
            return 1

    monkeypatch.setattr("sys.stdout", out := Out())
    assert detect("--model", model, "--images", photos, "--output", "-", "--limit", 2) == 0
    said = capsys.readouterr()
    assert sorted(json.loads(line)["image_id"] for line in out.getvalue().splitlines()) == ["00.jpg", "01.jpg"]
    assert "2 images searched for objects into standard output" in said.err


@pytest.mark.parametrize("text", ['{"image_id": "a", "caption": "x"}\n', '{"image_id": "a", "objects": "dog"}\n'])
def test_another_kind_of_file_is_refused(photos: Path, model: Path, tmp_path: Path, text: str) -> None:
    output = tmp_path / "found.jsonl"
    detect_to_file(model, str(photos), output, progress=False)
    output.write_text(text)
    with pytest.raises(CaptionFileError, match="line 1: image 'a' needs one list of objects, under 'objects'"):
        detect_to_file(model, str(photos), output, progress=False)
    rows = '{"image_id": "a", "objects": []}\n' * 2
    output.write_text(rows)
    with pytest.raises(CaptionFileError, match="a second list of objects for image 'a'"):
        detect_to_file(model, str(photos), output, progress=False)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--threshold", "1.5"], "--threshold: '1.5' must be at most 1"),
        (["--nms", "-1"], "--nms"),
        (["--output", "found.csv"], "detections are written as .jsonl, not as .csv"),
        (["--model", "none.onnx"], "there is no detector none.onnx"),
        (["--images", "s3://bucket/photos"], "is an address"),
        (["--tresh", "1"], "did you mean '--threshold'"),
        (["--shard", "3/2"], "--shard 3/2 is not i/n"),
    ],
)  # fmt: skip
def test_wrong_flags_are_refused_in_a_sentence(
    photos: Path, model: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--model": str(model), "--images": str(photos), "--output": str(tmp_path / "o.jsonl")}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    assert detect(*[word for pair in given.items() for word in pair]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and "internal error" not in err
    assert not (tmp_path / "o.jsonl").exists()


def test_settings_are_checked_in_python_too(photos: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="threshold must be from 0 to 1, not 2"):
        detect_to_file(model, str(photos), tmp_path / "o.jsonl", threshold=2)
    with pytest.raises(UsageError, match="detections are written as .jsonl"):
        detect_to_file(model, str(photos), tmp_path / "o.txt")
    with pytest.raises(DetectorError, match="there is no detector"):
        detect_to_file(tmp_path / "no.onnx", str(photos), tmp_path / "o.jsonl")
