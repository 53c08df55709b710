"""Throughput of captioning with a server, beside that of a plain concurrent client, which is the server's own.

    python -m benchmarks.speed.server --output benchmarks/speed/server

Both ask for the same captions of the same 1,000 image files with the same number of requests at once, in turns; images
per second, median of the repeats. The plain client reads the files' bytes, sends them as they are, and keeps nothing:
threads that each take the next image as soon as they have an answer, so that the server is never short of work but at
the very end. captune opens, checks, encodes, journals and sorts, and its clock runs from the first image to the
finished file. The servers: the stand-in of `benchmarks.caption_server` with 16 captions at once of 40 to 360 ms (as a
server with continuous batching has), with small images and with photographs' sizes, and `transformers serve` with
storybook, which makes one caption at a time. All share this machine's cores, so that what captune costs is taken from
the server.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from benchmarks import _lib
from benchmarks.behaviour.kill_captioning import Server, TransformersServe
from captune.data import load_images, open_image
from captune.inference.job import caption_source
from captune.models.server_captioner import ServerCaptioner

PROMPT = ""
TOKENS = 40


class StandIn(Server):
    """16 captions at once, 200 ms each on average."""

    def command(self) -> list[str]:
        settings = ["--slots", "16", "--seconds", "0.2"]
        return [sys.executable, "-m", "benchmarks.caption_server", "--port", str(self.port), *settings]


def plain(url: str, images: list[Path], workers: int) -> float:
    """Images per second of a concurrent client."""
    base, _, model = url.partition("#")

    def ask(file: Path) -> None:
        data = base64.b64encode(file.read_bytes()).decode()
        kind = "jpeg" if file.suffix == ".jpg" else "png"
        content = [{"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}]
        payload = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS,
                   "temperature": 0, "top_p": 1.0}  # fmt: skip
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{base}/chat/completions", json.dumps(payload).encode(), headers)
        with urllib.request.urlopen(request) as reply:
            assert json.loads(reply.read())["choices"][0]["message"]["content"]

    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(ask, images))
    return len(images) / (time.perf_counter() - started)


def captune(captioner: ServerCaptioner, folder: Path, output: Path) -> float:
    """Images per second of the job."""
    output.unlink(missing_ok=True)
    started = time.perf_counter()
    report = caption_source(captioner, str(folder), output, progress=False, resume=False, max_new_tokens=TOKENS)
    assert not report.bad
    return report.done / (time.perf_counter() - started)


def draw(folder: Path, number: int, side: int | None) -> list[Path]:
    folder.mkdir()
    files = []
    for index, row in enumerate(load_images(f"storybook:test?n={number}&seed=78", decode=False, stream=True)):
        image = open_image(row["image"])
        if side is None:
            files.append(folder / f"{index:05d}.png")
        else:
            image = image.resize((side, side * 3 // 4))
            files.append(folder / f"{index:05d}.jpg")
        image.save(files[-1])
    return files


@contextmanager
def running(kind: type[Server], folder: Path, work: Path) -> Iterator[Server]:
    server = kind(folder, work)
    try:
        yield server
    finally:
        server.stop()


def measure(
    kind: type[Server], side: int | None, number: int, repeats: int, workers: int, work: Path
) -> dict[str, Any]:
    folder = work / "images"
    shutil.rmtree(folder, ignore_errors=True)
    files = draw(folder, number, side)
    with running(kind, folder, work) as server:
        captioner = ServerCaptioner(server.model(), prompt=PROMPT, workers=workers)
        plain(server.model(), files[:32], workers)  # warm
        captioner.generate([open_image(file) for file in files[:8]])
        own, ours = [], []
        for turn in range(repeats):
            for which in ("own", "ours") if turn % 2 else ("ours", "own"):
                if which == "own":
                    own.append(plain(server.model(), files, workers))
                else:
                    ours.append(captune(captioner, folder, work / "caps.jsonl"))
    return {
        "images": number, "requests at once": workers, "plain client, images/s": round(statistics.median(own), 1),
        "captune, images/s": round(statistics.median(ours), 1),
        "ratio": round(statistics.median(ours) / statistics.median(own), 3),
        "ratio of each repeat": [round(b / a, 3) for a, b in zip(own, ours, strict=True)],
    }  # fmt: skip


def page(result: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {row['images']} | {row['requests at once']} | {row['plain client, images/s']} | "
        f"{row['captune, images/s']} | {row['ratio']:.2f} |"
        for name, row in result["servers"].items()
    ]
    head = "| server | images | requests at once | plain client, images/s | captune, images/s | ratio |"
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join(
        ["# Captioning with a server", "", f"Made by `python -m benchmarks.speed.server`; medians of "
         f"{result['repeats']} repeats in turns; {machine}.", "", head, "|---|---|---|---|---|---|", *rows, ""]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="a fifth of them for transformers serve")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--only", help="a part of a server's name")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    kinds: dict[str, tuple[type[Server], int | None]] = {
        "stand-in, 64 px": (StandIn, None),
        "stand-in, 640 x 480 photographs": (StandIn, 640),
        "transformers serve, storybook": (TransformersServe, None),
    }
    servers = {}
    for name, (kind, side) in kinds.items():
        if args.only and args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            number = args.images // 5 if kind is TransformersServe else args.images
            servers[name] = measure(kind, side, number, args.repeats, args.requests, Path(scratch))
    result = {"servers": servers, "repeats": args.repeats, "machine": _lib.machine()}
    _lib.write(result, page(result), args.output)


if __name__ == "__main__":
    main()
