"""The same captions by different engines, side by side: images a second, medians of several repeats.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.engines --output benchmarks/speed/engines

Everything runs with one thread of torch for each copy of the model, so that on two cores one copy leaves a core free
(which decodes the next images). Of Ray the rate is that of the parts after the first one of every worker: starting a
cluster and its workers takes seconds to a minute once, whatever the number of images, and is told beside it.

- transformers: `AutoModelForImageTextToText.generate` on batches in the order of the files, nothing else.
- process: `captune caption`.
- ray 1, ray 2: `captune caption --engine ray` with so many workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks import _lib
from captune import storybook
from captune.data import load_images, open_image, read_captions
from captune.inference.job import caption_source
from captune.inference.ray_engine import caption_to_parts
from captune.models.captioner import Captioner
from captune.utils.ray_pool import cluster

BATCH = 8


def draw(folder: Path, number: int) -> None:
    folder.mkdir()
    for index, row in enumerate(load_images(f"storybook:test?n={number}&seed=78", decode=False, stream=True)):
        open_image(row["image"]).save(folder / f"{index:05d}.png")


def plain(images: Path, work: Path, captions: dict[str, str]) -> float:
    """The loop that one would write."""
    path = storybook.model_path("storybook")
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    processor.tokenizer.padding_side = "left"
    prompt = Captioner.load("storybook", device="cpu").prompt_text()
    files = sorted(images.iterdir())
    started = time.perf_counter()
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        opened = [[Image.open(file).convert("RGB")] for file in part]
        inputs = processor(text=[prompt] * len(part), images=opened, return_tensors="pt", padding=True)
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        captions.update((file.name, text.strip()) for file, text in zip(part, texts, strict=True))
    return len(files) / (time.perf_counter() - started)


def process(images: Path, work: Path, captions: dict[str, str]) -> float:
    output = work / "caps.jsonl"
    captioner = Captioner.load("storybook", device="cpu")
    report = caption_source(captioner, str(images), output, batch_size=BATCH, resume=False, progress=False)
    captions.update(read_captions(output))
    return report.images_per_second


class Ray:
    """The rate of the parts that come after each worker's first."""

    def __init__(self, workers: int) -> None:
        self.workers, self.starts = workers, list[float]()

    def __call__(self, images: Path, work: Path, captions: dict[str, str]) -> float:
        output = work / f"ray{self.workers}"
        started = time.time()
        caption_to_parts(
            "storybook", str(images), output, workers=self.workers, batch_size=BATCH, device="cpu",
            overwrite=output.exists(), progress=False,
        )  # fmt: skip
        captions.update(read_captions(output))
        records = sorted(
            (file.stat().st_mtime, json.loads(file.read_text())["images"]) for file in (output / "records").iterdir()
        )
        first = records[self.workers - 1][0]
        self.starts.append(records[0][0] - started)
        return sum(count for _, count in records[self.workers :]) / (records[-1][0] - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rays = {f"ray {count}": Ray(count) for count in (1, 2)}
    engines: dict[str, Callable[[Path, Path, dict[str, str]], float]] = {"transformers": plain, "process": process}
    engines |= rays
    rates: dict[str, list[float]] = {name: [] for name in engines}
    loads, said = [], {name: dict[str, str]() for name in engines}
    with tempfile.TemporaryDirectory() as scratch, cluster(None, 2):
        work = Path(scratch)
        draw(work / "images", args.images)
        for _ in range(args.repeats):
            for name, engine in engines.items():
                loads.append(round(os.getloadavg()[0], 1))
                rates[name].append(engine(work / "images", work, said[name]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pairs = [two / one for one, two in zip(rates["ray 1"], rates["ray 2"], strict=True)]
    result: dict[str, Any] = {
        "images": args.images, "batch_size": BATCH, "repeats": args.repeats, "machine": _lib.machine(), "loads": loads,
        "images_per_second": {name: [round(value, 2) for value in values] for name, values in rates.items()},
        "median": {name: round(value, 2) for name, value in medians.items()},
        "ray 2 over ray 1": round(statistics.median(pairs), 3),
        "seconds to the first part": {name: round(statistics.median(ray.starts), 1) for name, ray in rays.items()},
        "captions equal to those of process": {
            name: sum(said[name].get(key) == text for key, text in said["process"].items()) for name in engines
        },
    }  # fmt: skip
    lines = [
        "# Engines", "",
        f"{args.images} images of storybook, batches of {BATCH}, one thread for each copy of the model, "
        f"{result['machine']['cores']} cores, load {min(loads)} to {max(loads)}; medians of {args.repeats}.", "",
        "| engine | images a second | of process | captions equal |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for name, value in medians.items():
        equal = result["captions equal to those of process"][name]
        lines.append(f"| {name} | {value:.1f} | {value / medians['process']:.2f} | {equal} of {args.images} |")
    lines += ["", f"Ray with 2 workers over 1, median of pairs: {result['ray 2 over ray 1']:.2f}. Until the first part "
              f"is there: {result['seconds to the first part']['ray 2']} s."]  # fmt: skip
    _lib.write(result, "\n".join(lines) + "\n", args.output)


if __name__ == "__main__":
    main()
