"""Shared among processes, or Ray's workers: the same bytes as in one process, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from captune.curation import curate
from captune.data import load_images
from captune.utils.ray_pool import cluster

STEPS: list[dict[str, Any]] = [
    {"filter": {"by": "clip + 0.1*cider", "keep": 0.9}},
    {"dedup": {"of": "images"}},
    {"reassign": {"by": "storybook-clip", "alike": "storybook-clip"}},
    {"rewrite": {"model": "storybook", "batch_size": 1, "max_new_tokens": 2}},
    {"filter": {"by": "length", "min": 0, "column": "words"}},
]
SMALL = {"scoring.IMAGES": 12, "scoring.TEXTS": 30, "vectors.IMAGES": 10, "vectors.TEXTS": 10, "dedup._IMAGES": 16}
DRIVER = f"""
import importlib, sys
from captune.cli.main import main

for place, size in {SMALL}.items():
    module, name = place.split(".")
    setattr(importlib.import_module("captune.curation." + module), name, size)
sys.exit(main(sys.argv[1:]))
"""  # the command with small parts, too: the last bits of a score depend on what else is in its part


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place, size in SMALL.items():
            patch.setattr(f"captune.curation.{place}", size)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """36 images with two captions each; one image is there twice, and one is broken."""
    folder = tmp_path_factory.mktemp("images")
    lines = []
    for n, row in enumerate(load_images("storybook:test?caption=alt_text&n=36")):
        if n == 20:
            (folder / "20.png").write_bytes(b"no image")
        elif n == 9:
            (folder / "09.png").write_bytes((folder / "08.png").read_bytes())
        else:
            row["image"].save(folder / f"{n:02d}.png")
        texts = [row["references"][0], row["references"][-1] + " again"]
        lines.append(json.dumps({"image": f"{n:02d}.png", "references": texts}) + "\n")
    path = tmp_path_factory.mktemp("set") / "set.jsonl"
    path.write_text("".join(lines))
    return f"{path}?images={folder}"


def run(source: str, output: Path, steps: list[dict[str, Any]] = STEPS, **options: Any) -> dict[str, bytes]:
    curate(source, output, steps, device="cpu", progress=False, **options)
    return contents(output)


@pytest.fixture(scope="module")
def expected(source: str, small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    made = run(source, tmp_path_factory.mktemp("process") / "out")
    report = json.loads(made["curation.json"])
    reasons = [reason for record in report["records"] for reason in record["reasons"]]
    assert any("cannot be opened" in reason for reason in reasons)
    assert "drop: repeats an equal image" in reasons and "change: captioned again" in reasons
    assert "move: another image fits best" in reasons
    return made


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One small cluster for the module."""
    os.environ["RAY_TEST_MARK"] = str(os.getpid())
    with cluster(None, 2):
        import ray

        yield ray
    del os.environ["RAY_TEST_MARK"]


def ray_workers() -> list[int]:
    """The processes of this cluster that work."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = b"MapWorker" in (folder / "cmdline").read_bytes()
            if named and f"RAY_TEST_MARK={os.getpid()}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 600) -> Any:
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return value


def test_processes_change_nothing(
    source: str, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what tests/torchvision_shim.py adds: without the shim, which a new process has not, it cannot be imported
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not place.endswith(".torchvision")])
    assert run(source, tmp_path / "out", workers=2) == expected


def test_ray_changes_nothing_and_a_killed_worker_costs_nothing(
    source: str, small_parts: None, ray: Any, tmp_path: Path
) -> None:
    steps = [STEPS[0], STEPS[3]]  # a worker starts for each
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: list((tmp_path / "out/.work/1-filter").glob("scores-*.npy")))
        for number in wait_for(ray_workers, 120):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
                killed.append(number)

    thread = threading.Thread(target=kill)
    thread.start()
    made = run(source, tmp_path / "out", steps, engine="ray", workers=2)
    thread.join()
    assert killed
    assert made == run(source, tmp_path / "here", steps)


def test_a_killed_driver_is_resumed(source: str, expected: dict[str, bytes], tmp_path: Path) -> None:
    steps, folder = tmp_path / "steps.json", tmp_path / "out"
    steps.write_text(json.dumps(STEPS))
    command = [sys.executable, "-c", DRIVER, "curate", source, "--steps", str(steps), "--output", str(folder)]
    driver = subprocess.Popen([*command, "--device", "cpu", "--workers", "2"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list((folder / ".work/3-reassign").glob("*.npy")) or driver.poll() is not None)
    driver.kill()
    _, said = driver.communicate()
    assert list((folder / ".work/3-reassign").glob("*.npy")), said
    assert run(source, folder) == expected
