"""Captions by Ray: every image once, whatever is killed; the same captions as in one process; parts that can be read.

What Ray itself does is tested with Ray; the rest with a stand-in that calls the workers' code in this process, which
also lets ``memory://`` be both source and output (it is no place that two processes share).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import picture

from captune.data import read_captions
from captune.data.caption_formats import write_captions
from captune.errors import CaptionerError, CaptionFileError, SettingError, SourceError
from captune.inference import ray_engine
from captune.inference.job import CaptionReport, caption_source, caption_to_file
from captune.inference.ray_engine import caption_to_parts
from captune.utils import ray_pool
from captune.utils.remote import Store

IMAGES = 72
JOB: dict[str, Any] = {"batch_size": 2, "device": "cpu", "progress": False}  # parts of 32 images
QUICK: dict[str, Any] = {"batch_size": 1, "device": "cpu", "progress": False, "max_new_tokens": 3}  # of 16


class Fake:
    """Says what it sees; a caption depends on its whole batch."""

    name = "fake"

    def __init__(self, prompt: str | None = None) -> None:
        self.prompt = prompt or "Describe this image."

    def generate(self, images: Sequence[Image.Image], **_: Any) -> list[str]:
        together = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()[:6]
        return [f"{image.width}x{image.height}, in batch {together}" for image in images]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images of several sizes, and a broken one in the second part."""
    path = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        picture(number, (24 + 8 * (number % 5), 32)).save(path / f"{number:03d}.png")
    (path / "040x.png").write_bytes(b"no image")
    return path


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The caption file of one process."""
    output = tmp_path_factory.mktemp("process") / "caps.jsonl"
    caption_source(Fake(), str(folder), output, batch_size=2, progress=False)
    return output.read_text()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instead of Ray: the workers' code, called in this process; receives the numbers of the parts made."""
    made: list[int] = []

    def answers(begin: Callable[[Any], Any], job: Any, items: Sequence[Any], **_: Any) -> Iterator[Any]:
        work = begin(job)
        for item in reversed(items):
            made.extend([] if item is None else [item[0]])
            yield work(item)

    monkeypatch.setattr(ray_engine, "answers", answers)
    monkeypatch.setattr(ray_engine, "cluster", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(ray_engine, "_load", lambda _, prompt=None, **__: Fake(prompt))
    return made


def joined(output: Path) -> str:
    return "".join(part.read_text() for part in sorted((output / "parts").glob("*.jsonl")))


def caption(folder: Path | str, output: Path | str, **options: Any) -> CaptionReport:
    return caption_to_parts("storybook", str(folder), output, **{**JOB, **options})


# ------------------------------------------------------------------- with Ray


@pytest.fixture(scope="module")
def few(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """40 images as a source, and storybook's captions of them in one process."""
    output = tmp_path_factory.mktemp("process") / "caps.jsonl"
    caption_to_file("storybook", f"{folder}?n=42", output, **QUICK)
    return f"{folder}?n=42", output.read_text()


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One small cluster for the module."""
    os.environ["RAY_TEST_MARK"] = str(os.getpid())
    handler = signal.getsignal(signal.SIGTERM)
    with ray_engine.cluster(None, 2):
        import ray

        yield ray
    assert signal.getsignal(signal.SIGTERM) is handler
    del os.environ["RAY_TEST_MARK"]


def workers() -> list[int]:
    """The processes of this cluster that hold a captioner."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = b"MapWorker" in (folder / "cmdline").read_bytes()
            if named and f"RAY_TEST_MARK={os.getpid()}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> Any:
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return value


def test_a_killed_worker_costs_no_caption(ray: Any, few: tuple[str, str], tmp_path: Path) -> None:
    source, expected = few
    output = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: list((output / "records").glob("*.json")))
        for number in wait_for(workers, 120):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
                killed.append(number)

    thread = threading.Thread(target=kill)
    thread.start()
    report = caption_to_parts("storybook", source, output, workers=1, **QUICK)
    thread.join()
    assert killed
    assert joined(output) == expected
    assert (report.done, [item for item, _ in report.bad]) == (41, ["040x.png"])
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["complete"]
    assert (manifest["images"], manifest["captions"], manifest["bad"]) == (42, 41, 1)
    assert read_captions(output) == {row["image_id"]: row["caption"] for row in map(json.loads, expected.splitlines())}


def test_a_killed_driver_is_resumed(ray: Any, few: tuple[str, str], tmp_path: Path) -> None:
    source, expected = few
    output = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "captune", "caption", "--model", "storybook", "--images", source),
        *("--output", str(output), "--engine", "ray", "--ray-workers", "1", "--batch-size", "1", "--device", "cpu"),
        *("--max-new-tokens", "3"),
    ]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list((output / "records").glob("*.json")) or driver.poll() is not None)
    driver.kill()
    out, err = driver.communicate()
    assert out == "", err
    before = {path.name: path.stat().st_mtime_ns for path in (output / "parts").glob("*.jsonl")}
    assert before, err
    report = caption_to_parts("storybook", source, output, workers=1, num_beams=1, **QUICK)  # as the command says
    assert joined(output) == expected
    assert report.skipped >= 16
    kept = {path.name: path.stat().st_mtime_ns for path in (output / "parts").glob("*.jsonl")}
    assert before.items() <= kept.items()
    assert not list(output.rglob(".*"))


def test_what_goes_wrong_in_a_worker_is_told_as_it_is(ray: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="no-such-model"):
        caption_to_parts(str(tmp_path / "no-such-model"), str(folder), tmp_path / "out", workers=1, **JOB)


# ---------------------------------------------------------------- without Ray


def test_only_missing_parts_are_made(here: list[int], folder: Path, expected: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = caption(folder, output)
    assert (here, joined(output)) == ([2, 1, 0], expected)
    assert first.sentence().startswith(f"{IMAGES} images captioned into {output} (3 parts)")
    del here[:]
    second = caption(folder, output)
    assert (here, second.done, second.skipped, len(second.bad)) == ([], 0, IMAGES, 1)
    (output / "parts" / "000001.jsonl").write_text("torn")
    (output / "records" / "000002.json").write_text("{")
    with pytest.raises(CaptionFileError, match=r"000001.jsonl is not as manifest.json says"):
        read_captions(output)
    third = caption(folder, output)
    assert (sorted(here), third.done, joined(output)) == ([1, 2], IMAGES - 32, expected)


def test_a_finished_folder_is_looked_at_without_ray(
    here: list[int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    caption(folder, output)

    def no_ray(*_: Any, **__: Any) -> Any:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_engine, "answers", no_ray)
    monkeypatch.setattr(ray_engine, "cluster", no_ray)
    report = caption(folder, output)
    assert (report.done, report.skipped, len(report.bad)) == (0, IMAGES, 1)
    with pytest.raises(CaptionFileError, match="made with other settings .prompt"):
        caption(folder, output, prompt="Say it.")
    for options in ({"address": "10.0.0.1:6379"}, {"limit": 40}):  # the model may be there alone; a part is another
        with pytest.raises(AssertionError, match="Ray was started"):
            caption(folder, output, **options)


def test_other_settings_are_refused(here: list[int], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    caption(folder, output, limit=5)
    for other, message in (
        ({"prompt": "Say it."}, "made with other settings .prompt"),
        ({"max_new_tokens": 9}, "made with other settings .max_new_tokens: none then, 9 now"),
        ({"part_size": 64}, "has parts of 32 images, not of 64"),
        ({"format": "parquet"}, "has parts in jsonl, not in parquet"),
    ):
        with pytest.raises(CaptionFileError, match=message):
            caption(folder, output, limit=5, **other)
    report = caption(folder, output, limit=5, format="parquet", overwrite=True)
    assert report.done == 5
    assert [path.name for path in (output / "parts").iterdir()] == ["000000.parquet"]
    assert len(read_captions(output)) == 5


def test_a_refused_run_leaves_a_finished_folder_finished(here: list[int], folder: Path, tmp_path: Path) -> None:
    caption(folder, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(CaptionFileError, match="made with other settings"):
        caption(folder, tmp_path / "out", max_new_tokens=9)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert len(read_captions(tmp_path / "out")) == IMAGES


def test_images_that_changed_are_captioned_again(here: list[int], tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(34):
        picture(number, (24, 24)).save(images / f"{number:03d}.png")
    caption(images, output)
    picture(99, (32, 40)).save(images / "033.png")
    del here[:]
    assert caption(images, output).done == 2
    assert here == [1]
    picture(98, (24, 24)).save(images / "999.png")
    assert caption(images, output).done == 3
    assert len(read_captions(output)) == 35


def test_a_store_of_objects(here: list[int], folder: Path, expected: str) -> None:
    """`memory://` as the images' folder and as the output: single puts, nothing renamed, no bytes of the disk."""
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/pictures/sub/{path.name}", path.read_bytes())
    memory.pipe_file("/pictures/notes.md", b"# no image")
    report = caption("memory://pictures", "memory://captions/run")
    assert (report.done, [item for item, _ in report.bad]) == (IMAGES, ["sub/040x.png"])
    store = Store("memory://captions/run")
    assert sorted(store.sizes("parts")) == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    text = b"".join(store.read(f"parts/00000{number}.jsonl") or b"" for number in range(3)).decode()
    assert text.replace('"sub/', '"') == expected
    del here[:]
    assert caption("memory://pictures", "memory://captions/run").skipped == IMAGES
    assert here == []


def test_tables_and_shards_give_the_same_captions(here: list[int], folder: Path, expected: str, tmp_path: Path) -> None:
    """Parquet files whose rows do not end where parts do; shards, each of which is a part."""
    rows = [{"image": {"bytes": path.read_bytes(), "path": None}, "image_id": path.name} for path in _good(folder)]
    (tmp_path / "tables").mkdir()
    for number, start in enumerate(range(0, IMAGES, 20)):
        table = pa.Table.from_pylist(rows[start : start + 20])
        pq.write_table(table, tmp_path / "tables" / f"{number}.parquet", row_group_size=7)
    plain = tmp_path / "plain.jsonl"
    caption_source(Fake(), str(tmp_path / "tables"), plain, batch_size=2, progress=False)
    caption(tmp_path / "tables", tmp_path / "out")
    assert joined(tmp_path / "out") == plain.read_text()
    caption(f"local://{tmp_path}/tables/*.parquet", tmp_path / "remote")
    assert joined(tmp_path / "remote") == plain.read_text()

    said = read_captions(plain)
    for number, start in enumerate(range(0, IMAGES, 30)):
        part = {path.name: path for path in _good(folder)[start : start + 30]}
        write_captions(dict.fromkeys(part, "x"), tmp_path / f"{number}.tar", images=part)
    report = caption(f"{tmp_path}/*.tar", tmp_path / "shards", format="webdataset")
    assert report.done == IMAGES
    shards = {key: text.partition(",")[0] for key, text in read_captions(tmp_path / "shards").items()}
    assert shards == {key.removesuffix(".png"): text.partition(",")[0] for key, text in said.items()}


def _good(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name != "040x.png"]


def test_an_id_in_two_parts_is_refused(here: list[int], folder: Path, tmp_path: Path) -> None:
    """Keys of shards are known when they are read; ids of tables as well."""
    part = {path.name: path for path in _good(folder)[:3]}
    for number in range(2):
        write_captions(dict.fromkeys(part, "x"), tmp_path / f"{number}.tar", images=part)
    with pytest.raises(CaptionFileError, match=r"3 image_ids stand in two parts .*such as '00[0-2]'"):
        caption(f"{tmp_path}/*.tar", tmp_path / "out")
    with pytest.raises(CaptionFileError, match="not finished"):
        read_captions(tmp_path / "out")


def test_addresses_inside_a_table_are_not_fetched(here: list[int], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    pq.write_table(pa.table({"image": ["http://example.com/a.jpg"]}), tmp_path / "a.parquet")
    memory.pipe_file("/urls/a.parquet", (tmp_path / "a.parquet").read_bytes())
    with pytest.raises(SourceError, match="only images inside of it are read"):
        caption("memory://urls/a.parquet", tmp_path / "out")
    with pytest.raises(SourceError, match="holds addresses of images"):
        caption(tmp_path / "a.parquet", tmp_path / "out2")


@pytest.mark.parametrize(
    ("images", "output", "options", "message"),
    [
        ("storybook:test?n=4", "taken", {}, "is no folder of caption parts, and holds mine.txt"),
        ("https://example.com/x", "out", {}, "fetches no web addresses"),
        ("nosuch://bucket/x", "out", {}, "nosuch:// cannot be opened"),
        ("storybook:test?n=4", "out", {"format": "coco"}, "parts are written as jsonl, parquet"),
        ("storybook:test?n=4", "out", {"part_size": 33}, "take a multiple of 32, as 32"),
        ("memory://nothing/here", "out", {}, "no image files in memory://nothing/here"),
    ],
)
def test_what_cannot_be_done_is_refused(
    here: list[int], tmp_path: Path, images: str, output: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises((SettingError, SourceError, CaptionFileError), match=message):
        caption(images, tmp_path / output, **options)


def test_a_part_that_kills_its_workers_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "RETRIES", 2)
    worker = ray_pool._Worker(b"what is never looked at", None)

    counts = iter([1, 2, 3, 4])
    worker._begun = lambda number: next(counts)  # type: ignore[method-assign]
    for _ in range(3):
        worker._count(0)
    with pytest.raises(CaptionerError, match="3 workers were lost over the same part"):
        worker._count(0)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingError, match=r"pip install 'captune\[ray\]'"):
        caption("storybook:test?n=4", tmp_path / "out")
