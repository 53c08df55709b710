"""The captioning job: every good image captioned, every bad one named, nothing lost, whatever kills it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_images import BAD, GOOD, encode, photo, write_all
from PIL import Image

from captune.data import load_images, read_captions, read_jsonl
from captune.data.caption_formats import write_captions
from captune.errors import CaptionFileError, SourceError
from captune.inference import job as inference_job
from captune.inference.job import CaptionReport, caption_source
from captune.inference.order import Row, split
from captune.inference.outputs import KeptOutput
from captune.inference.settings import weights_mark

PHOTOS = [f"photo {i:02d}.jpg" for i in range(12)]


class Fake:
    """Says what it sees; a caption depends on its whole batch, and on chance when asked to sample."""

    name = "fake"
    prompt = "Describe this image."

    def __init__(self, *, weight: float = 1.0, kill_after: int | None = None) -> None:
        self.model = torch.nn.Linear(3, 3)
        torch.nn.init.constant_(self.model.weight, weight)
        torch.nn.init.zeros_(self.model.bias)
        self.batches: list[int] = []
        self.kill_after = kill_after

    def generate(self, images: Sequence[Image.Image], do_sample: bool = False, **_: Any) -> list[str]:
        assert all(image.mode == "RGB" for image in images)
        if self.kill_after is not None and len(self.batches) >= self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches.append(len(images))
        together = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()[:6]
        chance = f" {torch.rand(()).item():.9f}" if do_sample else ""
        return [f"{i.width}x{i.height} in batch {together}\u2028{chance}" for i in images]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of small files on a busy disk take minutes otherwise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 photographs of different sizes among 13 odd files and 12 broken ones."""
    path = tmp_path / "photos"
    path.mkdir()
    write_all(path)
    for seed, name in enumerate(PHOTOS):
        (path / name).write_bytes(encode(photo(20 + 7 * seed % 40, 30, seed), "JPEG"))
    return path


def job(folder: Path, output: Path, fake: Fake | None = None, **options: Any) -> CaptionReport:
    options = {"batch_size": 4, "window": 2, "progress": False, **options}
    return caption_source(fake or Fake(), str(folder), output, **options)


def test_every_good_image_is_captioned_and_every_bad_one_named(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "caps.jsonl"
    report = job(folder, output)
    captions = read_captions(output)
    assert list(captions) == sorted([*GOOD, *PHOTOS])  # in the order of the source
    assert {item for item, _ in report.bad} == set(BAD)
    assert (report.done, report.skipped) == (len(GOOD) + len(PHOTOS), 0)
    assert captions["rotated.jpg"].startswith("32x48")  # turned upright
    listed = read_jsonl(tmp_path / "caps.jsonl.bad.jsonl")
    assert [(row["image_id"], row["why"]) for row in listed] == report.bad
    assert f"{len(BAD)} bad images" in report.sentence()

    again = job(folder, output)
    assert (again.done, again.skipped) == (0, len(captions))
    assert again.bad == report.bad


def test_batches_are_no_larger_than_said_and_nothing_is_done_twice(folder: Path, tmp_path: Path) -> None:
    fake = Fake()
    job(folder, tmp_path / "caps.jsonl", fake, batch_size=5)
    assert max(fake.batches) <= 5
    assert sum(fake.batches) == len(GOOD) + len(PHOTOS)


def test_workers_change_no_byte(folder: Path, tmp_path: Path) -> None:
    alone, several = tmp_path / "alone.jsonl", tmp_path / "several.jsonl"
    one, many = job(folder, alone, do_sample=True), job(folder, several, do_sample=True, workers=5)
    assert several.read_bytes() == alone.read_bytes()
    assert many.bad == one.bad and {item for item, _ in many.bad} == set(BAD)
    for end in ("bad.jsonl", "images.jsonl", "settings.json"):
        assert (tmp_path / f"several.jsonl.{end}").read_bytes() == (tmp_path / f"alone.jsonl.{end}").read_bytes()
    for end, source in (("shard", f"{folder}?shard=2/2"), ("stream", f"{tmp_path}/photos.tar")):
        if end == "stream":
            photos = {name: folder / name for name in PHOTOS}
            write_captions(dict.fromkeys(photos, "x"), tmp_path / "photos.tar", images=photos)
        for workers in (1, 5):
            options: dict[str, Any] = {"batch_size": 3, "workers": workers, "progress": False}
            caption_source(Fake(), source, tmp_path / f"{end}-{workers}.jsonl", **options)
        made = (tmp_path / f"{end}-5.jsonl").read_bytes()
        assert made.count(b"\n") >= len(PHOTOS) and made == (tmp_path / f"{end}-1.jsonl").read_bytes()


def test_workers_open_several_images_at_a_time_and_one_batch_ahead(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, together = Fake(), threading.Barrier(3)
    met = opening = most = ahead = 0
    real = inference_job.open_image

    def watched(*args: Any) -> Image.Image:
        nonlocal met, opening, most, ahead
        opening += 1
        most, ahead = max(most, opening), max(ahead, met - sum(fake.batches))
        met += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(20)
        try:
            return real(*args)
        finally:
            opening -= 1

    monkeypatch.setattr(inference_job, "open_image", watched)
    photos = [folder / name for name in PHOTOS]
    source = tmp_path / "twelve"
    source.mkdir()
    for path in photos:
        (source / path.name).write_bytes(path.read_bytes())
    job(source, tmp_path / "caps.jsonl", fake, batch_size=3, workers=3)
    assert fake.batches == [3] * 4 and not together.broken and most == 3
    assert ahead < 2 * 3  # the batch that is captioned and the next one
    monkeypatch.setattr(inference_job, "LARGE_PIXELS", 0)
    together.abort()
    most = 0
    job(source, tmp_path / "large.jsonl", batch_size=3, workers=3)
    assert most == 1  # what takes much memory until it is reduced
    assert (tmp_path / "large.jsonl").read_bytes() == (tmp_path / "caps.jsonl").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_twice_and_resumed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "caps.jsonl"
    job(folder, whole, do_sample=True, seed=3)
    for batches, captions in ((1, 3), (2, 9)):  # killed in its second batch, then two batches further on
        command = (
            "import sys; sys.path[:0] = ['tests', 'tests/inference', 'src']\n"
            "from test_job import Fake, job\n"
            f"job({str(folder)!r}, {str(output)!r}, Fake(kill_after={batches}), do_sample=True, seed=3, workers=3)"
        )
        done = subprocess.run([sys.executable, "-c", command], cwd=Path(__file__).parents[2], check=False)
        assert done.returncode == -signal.SIGKILL
        so_far = read_captions(output)
        assert len(so_far) >= captions
        assert so_far.items() < read_captions(whole).items()
    report = job(folder, output, do_sample=True, seed=3)
    assert report.skipped == len(so_far)
    assert {item for item, _ in report.bad} == set(BAD)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("sample", [False, True])
def test_cut_at_any_byte_and_resumed_gives_the_same_bytes(folder: Path, tmp_path: Path, sample: bool) -> None:
    """A process that dies while it writes leaves any prefix of what it would have written."""

    class Watched(Fake):
        content = b""

        def generate(self, images: Any, **options: Any) -> list[str]:
            Watched.content = output.read_bytes()
            return super().generate(images, **options)

    output = tmp_path / "caps.jsonl"
    job(folder, output, Watched(), do_sample=sample)
    whole, settings = output.read_bytes(), (tmp_path / "caps.jsonl.settings.json").read_text()
    assert 10 < Watched.content.count(b"\n") < whole.count(b"\n")
    for cut in range(0, len(Watched.content), 61):
        output.write_bytes(Watched.content[:cut])
        assert (tmp_path / "caps.jsonl.settings.json").read_text() == settings
        report = job(folder, output, do_sample=sample)
        assert output.read_bytes() == whole
        assert {item for item, _ in report.bad} == set(BAD)


def test_a_mended_image_is_captioned_by_the_next_run(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "caps.jsonl"
    job(folder, output)
    (folder / "empty.png").write_bytes(encode(photo(), "PNG"))
    report = job(folder, output)
    assert report.done == 1
    assert "empty.png" in read_captions(output)
    assert "empty.png" not in (tmp_path / "caps.jsonl.bad.jsonl").read_text()
    for name in BAD:
        (folder / name).unlink()
    assert job(folder, output).bad == []
    assert not (tmp_path / "caps.jsonl.bad.jsonl").exists()


def test_a_run_can_be_extended_and_change_its_batch_size(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "caps.jsonl"
    job(folder, output, limit=5)
    fake = Fake()
    report = job(folder, output, fake, batch_size=3)
    assert report.skipped > 0
    assert sum(fake.batches) < len(GOOD) + len(PHOTOS)
    assert list(read_captions(output)) == sorted([*GOOD, *PHOTOS])


def test_captions_of_images_that_are_gone_are_counted(tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "caps.jsonl"
    images.mkdir()
    for number in range(5):
        photo(16 + number).save(images / f"{number}.png")
    assert job(images, output).others == 0
    (images / "1.png").unlink()
    photo(32).save(images / "3.png")
    photo(40).save(images / "9.png")
    report = job(images, output)
    assert (report.done, report.skipped, report.replaced, report.others) == (2, 3, 1, 1)
    assert "in the file, too: 1 caption of other images" in report.sentence()
    assert [row["image_id"] for row in read_jsonl(output)] == ["0.png", "2.png", "3.png", "4.png", "9.png", "1.png"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fake": Fake(weight=2.0)}, "weights"),
        ({"max_new_tokens": 9}, "[(]max_new_tokens: none then, 9 now[)]"),
        ({"do_sample": True}, "seed"),
    ],
)
def test_captions_made_otherwise_are_not_mixed_in(
    folder: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    output = tmp_path / "caps.jsonl"
    job(folder, output, limit=4)
    before = output.read_bytes()
    with pytest.raises(CaptionFileError, match=f"other settings .*{said}.*--overwrite"):
        job(folder, output, **change)
    assert output.read_bytes() == before
    job(folder, output, resume=False, limit=4, **change)
    job(folder, output, limit=4, **change)


def test_another_prompt_or_source_is_refused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "caps.jsonl"
    job(folder, output)
    fake = Fake()
    fake.prompt = "What is this?"
    with pytest.raises(CaptionFileError, match="prompt: 'Describe this image.' then, 'What is this.' now"):
        job(folder, output, fake)
    other = tmp_path / "others"
    other.mkdir()
    (other / PHOTOS[0]).write_bytes(encode(photo(), "JPEG"))
    with pytest.raises(CaptionFileError, match="source"):
        job(other, output)


def test_captions_of_unknown_origin_are_not_continued(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "caps.jsonl"
    output.write_text('{"image_id": "plain.jpg", "caption": "by hand"}\n')
    with pytest.raises(CaptionFileError, match="settings.json that says how they were made is missing"):
        job(folder, output)
    assert read_captions(output) == {"plain.jpg": "by hand"}


class Picky(Fake):
    """As processors do, it raises a ValueError for an image that it cannot take, and so for its whole batch."""

    def generate(self, images: Sequence[Image.Image], **options: Any) -> list[str]:
        if any(image.size == (1, 1) for image in images):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return super().generate(images, **options)


def test_an_image_that_the_model_refuses_harms_no_other(folder: Path, tmp_path: Path) -> None:
    report = job(folder, tmp_path / "caps.jsonl", Picky())
    assert {item for item, _ in report.bad} == {*BAD, "one_pixel.png"}
    assert dict(report.bad)["one_pixel.png"].startswith("the model refuses it: absolute aspect ratio")
    assert len(read_captions(tmp_path / "caps.jsonl")) == len(GOOD) + len(PHOTOS) - 1


def test_wrong_settings_are_not_taken_for_bad_images(folder: Path, tmp_path: Path) -> None:
    class Wrong(Fake):
        def generate(self, images: Sequence[Image.Image], **options: Any) -> list[str]:
            raise ValueError("unknown generation setting")

    with pytest.raises(ValueError, match="unknown generation setting"):
        job(folder, tmp_path / "caps.jsonl", Wrong())
    with pytest.raises(ValueError, match="unknown generation setting"):
        job(folder, tmp_path / "caps.jsonl", Wrong(), batch_size=1)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one caption per image"):
        job(folder, tmp_path / "caps.jsonl", num_return_sequences=2)
    with pytest.raises(SourceError):
        job(tmp_path / "nowhere", tmp_path / "caps.jsonl")
    with pytest.raises(ValueError, match="at least 1"):
        job(folder, tmp_path / "caps.jsonl", batch_size=0)
    with pytest.raises(ValueError, match="at least 1"):
        job(folder, tmp_path / "caps.jsonl", workers=0)
    assert not (tmp_path / "caps.jsonl").exists()


def test_out_of_memory_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    class Big(Fake):
        def generate(self, images: Sequence[Image.Image], **options: Any) -> list[str]:
            if self.batches:
                raise torch.OutOfMemoryError("out of memory")
            return super().generate(images, **options)

    with pytest.raises(torch.OutOfMemoryError) as caught:
        job(folder, tmp_path / "caps.jsonl", Big())
    assert "smaller batch size" in caught.value.__notes__[0]
    assert len(read_captions(tmp_path / "caps.jsonl")) >= 3


def test_dataset_objects_and_drawn_images(tmp_path: Path, folder: Path) -> None:
    report = job(folder, tmp_path / "a.jsonl", limit=6)
    by_object = caption_source(Fake(), load_images(str(folder)), tmp_path / "b.jsonl", limit=6, batch_size=4, window=2)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert by_object.bad == report.bad
    drawn = caption_source(Fake(), "storybook:test?n=5&seed=1", tmp_path / "c.jsonl", progress=False)
    assert (drawn.done, drawn.bad) == (5, [])
    assert list(read_captions(tmp_path / "c.jsonl"))[4] == "test-1-000004"


def test_weights_mark_sees_every_parameter() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 2).to(torch.bfloat16))
    mark = weights_mark(model)
    assert mark == weights_mark(model)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter += 0.125
        assert weights_mark(model) != mark
        mark = weights_mark(model)


def test_settings_are_readable(folder: Path, tmp_path: Path) -> None:
    job(folder, tmp_path / "caps.jsonl", limit=3, max_new_tokens=5)
    settings = json.loads((tmp_path / "caps.jsonl.settings.json").read_text())
    assert settings["model"] == "fake"
    assert settings["generation"] == {"max_new_tokens": 5}
    assert settings["source"] == str(folder)


def test_c4_a_batch_of_large_images_is_taken_in_several() -> None:
    rows = [Row(place, str(place), None, pixels=pixels) for place, pixels in enumerate([90, 90, 30, 20, 10, 10])]
    assert [[row.place for row in batch] for batch in split(rows, 4, 100)] == [[0], [1], [2, 3], [4, 5]]
    assert [len(batch) for batch in split(rows, 4, 1000)] == [4, 2]


def test_b10_a_replaced_image_is_captioned_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "caps.jsonl"
    job(folder, output)
    before = read_captions(output)
    known = read_jsonl(tmp_path / "caps.jsonl.images.jsonl")
    assert [row["image_id"] for row in known] == list(before)
    for name, seed in (("photo 03.jpg", 90), ("photo 07.jpg", 91)):
        (folder / name).write_bytes(encode(photo(77, 55, seed), "JPEG"))
    os.utime(folder / "photo 05.jpg")  # only touched
    lines = output.read_bytes().split(b"\n")
    output.write_bytes(b"\n".join(lines[:-3]) + b"\n")  # and the job had not finished
    report = job(folder, output)
    after = read_captions(output)
    assert list(after) == list(before)
    assert (report.done, report.replaced) == (4, 2) and "2 images captioned again, replaced since" in report.sentence()
    assert "2 images were replaced since they were captioned (the first: photo 03.jpg)" in caplog.text
    for name in before:
        assert after[name].startswith("77x55") == (name in ("photo 03.jpg", "photo 07.jpg"))
    again = job(folder, output)
    assert (again.done, again.replaced) == (0, 0) and read_captions(output) == after


def test_b10_images_inside_a_table_count_by_their_bytes(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(seed: int) -> None:
        images = [{"bytes": encode(photo(30 + i, 20, seed if i == 2 else i), "JPEG"), "path": None} for i in range(4)]
        pq.write_table(pa.table({"image": images, "image_id": [f"{i}" for i in range(4)]}), tmp_path / "t.parquet")

    output = tmp_path / "caps.jsonl"
    table(2)
    caption_source(Fake(), str(tmp_path / "t.parquet"), output, progress=False)
    before = read_captions(output)
    table(9)
    report = caption_source(Fake(), str(tmp_path / "t.parquet"), output, progress=False)
    after = read_captions(output)
    assert (report.done, report.replaced) == (1, 1)
    assert [name for name in before if before[name] != after[name]] == ["2"]


def test_drawn_images_are_what_they_were(tmp_path: Path, caplog: Any) -> None:
    for _ in range(2):
        job("storybook:test?n=3", tmp_path / "caps.jsonl")
    assert "it is not known what they were" not in caplog.text


def test_b10_captions_from_before_are_kept_and_that_is_said(folder: Path, tmp_path: Path, caplog: Any) -> None:
    output = tmp_path / "caps.jsonl"
    job(folder, output)
    whole = output.read_bytes()
    (tmp_path / "caps.jsonl.images.jsonl").unlink()
    report = job(folder, output)
    assert (report.done, report.replaced) == (0, 0) and output.read_bytes() == whole
    assert "it is not known what they were" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_b10_killed_while_it_captions_replaced_images(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "caps.jsonl"
    job(folder, output)
    for i in range(12):
        (folder / PHOTOS[i]).write_bytes(encode(photo(60 + i, 55, 200 + i), "JPEG"))
    command = (
        "import sys; sys.path[:0] = ['tests', 'tests/inference', 'src']\n"
        "from test_job import Fake, job\n"
        f"job({str(folder)!r}, {str(output)!r}, Fake(kill_after=2))"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    job(folder, output)
    captions = read_captions(output)
    assert all(captions[PHOTOS[i]].startswith(f"{60 + i}x55") for i in range(12))


def test_b12_no_tokens_are_refused_before_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        job(folder, tmp_path / "caps.jsonl", max_new_tokens=0)
    assert not (tmp_path / "caps.jsonl").exists()


def test_b9_a_source_without_images_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "zeros.tar").write_bytes(bytes(10_240))
    with pytest.raises(SourceError, match=r"zeros\.tar holds no images"):
        job(tmp_path / "zeros.tar", tmp_path / "o.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["zeros.tar"]


def test_a_shard_of_fewer_images_than_shards_is_an_empty_file(folder: Path, tmp_path: Path) -> None:
    for name, content in (("o.jsonl", ""), ("o.csv", "image_id,caption\n")):
        for _ in range(2):
            report = caption_source(Fake(), f"{folder}?shard=99/100", tmp_path / name, progress=False)
            assert (tmp_path / name).read_text() == content
            assert "0 images captioned" in report.sentence() and "this shard has none" in report.sentence()
    with pytest.raises(SourceError, match="holds no images"):  # what is measured on it would be of nothing
        caption_source(Fake(), f"{folder}?shard=99/100", KeptOutput(), progress=False)
