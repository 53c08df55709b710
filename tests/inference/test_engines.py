"""The captioning job elsewhere: at a server that refuses, dies and comes back, and at a real one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from benchmarks.caption_server import MODEL, CaptionServer, Reply, image_of, serving
from captune.data import load_images, open_image, read_captions
from captune.decoding import load_decoder
from captune.errors import CaptionerError, CaptionFileError, ServerError, SettingError
from captune.inference.engines import check_engine, pick_engine
from captune.inference.job import CaptionReport, caption_source, caption_to_file
from captune.models.captioner import Captioner
from captune.models.server_captioner import ServerCaptioner

NAMES = [f"photo {number:02d}.png" for number in range(40)]
STORYBOOK = Path(__file__).parents[2] / "src" / "captune" / "storybook" / "models" / "storybook"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photographs of different widths and one that is broken."""
    path = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(NAMES):
        tiny.picture(number, (20 + number, 30)).save(path / name)
    (path / "broken.png").write_bytes(b"no image")
    return path


def job(server: CaptionServer, folder: Path, output: Path, model: str = MODEL, **options: Any) -> CaptionReport:
    captioner = ServerCaptioner(f"{server.url}#{model}", workers=4, delay=0.01, attempts=2, timeout=5)
    return caption_source(
        captioner, str(folder), output, **{"batch_size": 4, "window": 3, "progress": False, **options}
    )


def test_every_image_is_captioned_once_whatever_is_asked_at_once(folder: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "caps.jsonl", tmp_path / "other.jsonl"
    settings = {"do_sample": True, "temperature": 0.8, "seed": 3}
    with serving(seconds=0.005) as server:
        report = job(server, folder, output, **settings)
        assert (report.done, [item for item, _ in report.bad], server.count) == (40, ["broken.png"], 40)
        assert list(read_captions(output)) == NAMES
        assert 1 < server.most <= 4
        again = job(server, folder, output, **settings)
        assert (again.done, again.skipped, server.count) == (0, 40, 40)
        job(server, folder, other, batch_size=9, window=1, **settings)
    assert other.read_bytes() == output.read_bytes()


def test_a_server_that_dies_keeps_what_is_done_and_the_same_command_resumes(folder: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "caps.jsonl"
    with serving() as server:
        job(server, folder, whole, do_sample=True)
    dead = Reply(None)
    made = 0
    for life in (13, 9):  # answers, then nothing
        with (
            serving(fault=lambda payload, number, life=life: dead if number > life else None) as server,
            pytest.raises(ServerError, match=r"127.0.0.1.* no answer in 2 attempts.*captions are kept, and the same"),
        ):
            job(server, folder, output, do_sample=True)
        assert len(read_captions(output)) == made + life
        made = len(read_captions(output))
        assert read_captions(output).items() < read_captions(whole).items()
    with serving() as server:
        report = job(server, folder, output, do_sample=True)
        assert server.count == report.done == 40 - made  # none twice
    assert output.read_bytes() == whole.read_bytes()


def test_images_that_the_server_refuses_are_listed_and_the_others_captioned(folder: Path, tmp_path: Path) -> None:
    def fault(payload: dict[str, Any], number: int) -> Reply | None:
        return Reply(400, b"not this one") if image_of(payload).width % 10 == 3 else None

    output = tmp_path / "caps.jsonl"
    with serving(fault=fault) as server:
        report = job(server, folder, output)
        assert server.count == 40  # no other image is asked about twice
    refused = [name for number, name in enumerate(NAMES) if number % 10 == 3]
    assert report.done == 36 and sorted(item for item, _ in report.bad) == ["broken.png", *refused]
    assert "400 Bad Request: not this one" in dict(report.bad)[refused[0]]
    with serving() as server:  # which may be another server, and takes them now
        assert job(server, folder, output).done == 4
    assert list(read_captions(output)) == NAMES


def test_when_all_are_refused_it_is_the_settings(folder: Path, tmp_path: Path) -> None:
    with serving(fault=lambda payload, number: Reply(400, b"no images here")) as server:
        with pytest.raises(CaptionerError, match="no images here"):
            job(server, folder, tmp_path / "caps.jsonl")
        assert server.count < len(NAMES)  # those under way when the first batch had come back


def test_an_interrupt_ends_the_job_and_the_captioner_can_be_used_again(folder: Path, tmp_path: Path) -> None:
    with serving() as server:
        captioner = ServerCaptioner(f"{server.url}#{MODEL}", workers=2)

        class Interrupted(ServerCaptioner):
            def attempt(self, images: Any, **settings: Any) -> Any:
                raise KeyboardInterrupt

        captioner.__class__ = Interrupted
        with pytest.raises(KeyboardInterrupt):
            caption_source(captioner, str(folder), tmp_path / "caps.jsonl", progress=False)
        captioner.__class__ = ServerCaptioner
        assert caption_source(captioner, str(folder), tmp_path / "caps.jsonl", progress=False).done == 40


def test_captions_of_two_models_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    with serving() as server:
        job(server, folder, tmp_path / "caps.jsonl", limit=5)
        with pytest.raises(CaptionFileError, match="served as stand-in, .*served as other"):
            job(server, folder, tmp_path / "caps.jsonl", model="other")


def test_best_of_over_the_job(folder: Path, tmp_path: Path) -> None:
    with serving() as server:
        report = job(server, folder, tmp_path / "caps.jsonl", decoder=load_decoder("best-of:3:length"), seed=1)
        assert report.done == 40 and server.count == 120
        first = read_captions(tmp_path / "caps.jsonl")
        job(server, folder, tmp_path / "other.jsonl", decoder=load_decoder("best-of:3:length"), seed=1, batch_size=7)
    assert read_captions(tmp_path / "other.jsonl") == first


# -- what is refused before anything is asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "model", "picked"),
    [(None, "storybook", "process"), (None, "http://h/v1#m", "server"), ("process", "a/b", "process"),
     ("server", "https://h/v1#m", "server"), ("vllm", "a/b", "vllm"), (None, None, "process")],
)  # fmt: skip
def test_the_model_implies_the_engine(engine: str | None, model: str | None, picked: str) -> None:
    assert pick_engine(engine, model) == picked


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--engine", "server"], "needs an address as the model"),
        (["--engine", "vlm"], "unknown engine 'vlm' .known: process, server, vllm"),
        (["--engine", "vllm"], "pip install 'captune.vllm.'"),
        (["--requests", "4"], "the model is no server"),
        (["--engine", "ray", "--workers", "2"], "leave --workers out, and see --ray-workers"),
        (["--engine", "ray", "--output", "memory://x"], "memory that ends with this command"),
        (["--engine", "process", "--model", "http://h/v1#m"], "is an address"),
        (["--model", "http://h/v1"], "names no model"),
        (["--model", "localhost:8000/v1#m"], "looks like a server's address"),
        (["--model", "ftp://127.0.0.1:9/v1#x"], "begins with http:// or https://: write it as http"),
        (["--model", "http:/localhost:8000/v1#m"], "looks like a server's address"),
        (["--model", "http://h/v1#m", "--num-beams", "4"], "no beam search"),
        (["--model", "http://h/v1#m", "--decoder", "cfg:2"], "decoder cfg works inside the model"),
        (["--model", "http://h/v1#m", "--decoder", "contrastive:1"], "decoder contrastive works inside the model"),
        (["--model", "http://h/v1#m", "--adapter", "a"], "start the server with the adapter"),
        (["--model", "http://h/v1#m", "--dtype", "float16"], "dtype is of no use with a server"),
        (["--model", "http://h/v1#m", "--trust-remote-code"], "trust_remote_code is of no use"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(flags: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    from captune.cli.main import main

    assert main(["caption", "--model", "storybook", "--images", "storybook:test", "--output", "x.jsonl", *flags]) == 2
    assert re.search(why, capsys.readouterr().err)


def test_a_refusal_loads_no_torch() -> None:
    command = (
        "import sys; from captune.cli.main import main\n"
        "flags = '--model http://h/v1#m --images . --output x.jsonl --num-beams 3'.split()\n"
        "assert main(['caption', *flags]) == 2\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, env=environment)


def test_python_refuses_the_same(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="decoder cfg works inside"):
        caption_to_file("http://127.0.0.1:9/v1#m", str(folder), tmp_path / "x.jsonl", decoder="cfg:2")
    with pytest.raises(ServerError, match="nothing answers at"):
        caption_to_file("http://127.0.0.1:9/v1#m", str(folder), tmp_path / "x.jsonl", progress=False)
    with pytest.raises(SettingError, match="works inside the model, which is not in this process"):
        captioner = ServerCaptioner("http://127.0.0.1:9/v1#m")
        caption_source(captioner, str(folder), tmp_path / "x.jsonl", decoder=load_decoder("contrastive:1"))
    check_engine("server", "http://h/v1#m", decoder="best-of:4:clip", requests=8)
    check_engine("server", "http://h/v1#m", decoder="self-correct")
    assert not list(tmp_path.iterdir())


# -- a real server -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with storybook's captioner on this machine's loopback."""
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = "from transformers.cli.transformers import main; main()"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent), "OMP_NUM_THREADS": "1"}
    flags = ["serve", str(STORYBOOK), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-c", command, *flags], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        try:
            for _ in range(1200):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1#{STORYBOOK}"
        finally:
            server.kill()
            server.wait()


def test_transformers_serve_gives_the_captions_of_this_process(transformers_serve: str, tmp_path: Path) -> None:
    source = "storybook:ood?n=24&seed=5"
    report = caption_to_file(
        transformers_serve, source, tmp_path / "served.jsonl", prompt="", max_new_tokens=40, progress=False
    )
    caption_to_file("storybook", source, tmp_path / "local.jsonl", device="cpu", progress=False)
    assert report.done == 24
    assert (tmp_path / "served.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_transformers_serve_refuses_as_it_does(transformers_serve: str) -> None:
    images = [open_image(row["image"]) for row in load_images("storybook:test?n=2&seed=1")]
    served = ServerCaptioner(transformers_serve, prompt="")
    served.check()
    assert served.generate(images, max_new_tokens=5) == Captioner.load(STORYBOOK).generate(images, max_new_tokens=5)
    with pytest.raises(CaptionerError, match="gives no log-probabilities"):
        served.generate(images, return_logprob=True)
    other = ServerCaptioner(transformers_serve.partition("#")[0] + "#other")
    with pytest.raises(CaptionerError, match="400 .*Server is pinned to"):
        other.generate(images)
