"""The same captions by different engines, side by side: images a second, medians of several repeats.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.engines --output benchmarks/speed/engines

Everything runs with one thread of torch for each copy of the model, so that on two cores one copy leaves a core free
(which decodes the next images). Of Ray the rate is that of the parts that are made while all workers are at work:
starting a cluster and its workers takes seconds to a minute once, whatever the number of images, and is told beside it.

- transformers: `AutoModelForImageTextToText.generate` on batches in the order of the files, nothing else.
- two transformers at once: this loop in two processes, which start it together; no engine makes more of two cores.
- process: `captune caption`.
- process, photos: the same model on JPEG files of 640 x 480 and of 4000 x 3000 pixels, with `--workers` 1 and 2.
- ray 1, ray 2: `captune caption --engine ray` with so many workers. The embedded captioner is so small that one worker,
  which opens the next images beside the model, takes more than one core: two workers cannot be twice as fast.
- 140 million parameters: process and Ray with a fresh captioner of EfficientNet-Lite2 and SmolLM2-135M, batches of 2,
  8 tokens of each JPEG photo of 640 x 480. Nearly all time is the model's, so that one worker leaves a core free.

On a machine that is not quiet the column of processor time still compares what runs in one process.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks import _lib
from benchmarks.speed.opening import photos
from captune import storybook
from captune.data import load_images, open_image, read_captions
from captune.inference import ray_engine
from captune.inference.job import caption_source
from captune.models.captioner import Captioner
from captune.models.prefix_captioner import assemble
from captune.utils.ray_pool import cluster

BATCH, LARGE = 8, "140 million parameters"


def large_captioner(folder: Path) -> str:
    torch.manual_seed(0)
    model, processor = assemble("efficientnet-lite2", "smollm2-135m", num_prefix_tokens=9, image_feature="patches")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def draw(folder: Path, number: int) -> None:
    folder.mkdir()
    for index, row in enumerate(load_images(f"storybook:test?n={number}&seed=78", decode=False, stream=True)):
        open_image(row["image"]).save(folder / f"{index:05d}.png")


Measured = tuple[float, float | None]  # images a second, and milliseconds of processor time for each


def plain(images: Path, captions: dict[str, str], together: Any = None) -> Measured:
    """The loop that one would write."""
    path = storybook.model_path("storybook")
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    processor.tokenizer.padding_side = "left"
    prompt = Captioner.load("storybook", device="cpu").prompt_text()
    files = sorted(images.iterdir())
    if together is not None:
        together.wait()
    started, spent = time.perf_counter(), time.process_time()
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        opened = [[Image.open(file).convert("RGB")] for file in part]
        inputs = processor(text=[prompt] * len(part), images=opened, return_tensors="pt", padding=True)
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        captions.update((file.name, text.strip()) for file, text in zip(part, texts, strict=True))
    return len(files) / (time.perf_counter() - started), 1000 * (time.process_time() - spent) / len(files)


def _one_of_two(images: Path, together: Any, answer: Any) -> None:
    torch.set_num_threads(1)
    captions: dict[str, str] = {}
    answer.put((plain(images, captions, together), captions))


def two(images: Path, captions: dict[str, str]) -> Measured:
    """Two of these loops, each over all images."""
    spawned = multiprocessing.get_context("spawn")
    together, answer = spawned.Barrier(2), spawned.Queue()
    both = [spawned.Process(target=_one_of_two, args=(images, together, answer)) for _ in range(2)]
    for one in both:
        one.start()
    found = [answer.get() for _ in both]
    for one in both:
        one.join()
    captions.update(found[0][1])
    return sum(rate for (rate, _), _ in found), statistics.mean(spent for (_, spent), _ in found)


class Process:
    """`captune caption` in this process."""

    def __init__(self, work: Path, workers: int = 1, model: str = "storybook", **generation: Any) -> None:
        self.output, self.workers, self.model, self.generation = work / "caps.jsonl", workers, model, generation

    def __call__(self, images: Path, captions: dict[str, str]) -> Measured:
        captioner = Captioner.load(self.model, device="cpu")
        spent = time.process_time()
        report = caption_source(
            captioner, str(images), self.output, workers=self.workers, resume=False, progress=False,
            **{"batch_size": BATCH, **self.generation},
        )  # fmt: skip
        captions.update(read_captions(self.output))
        return report.images_per_second, 1000 * (time.process_time() - spent) / report.done


class Ray:
    """The rate of the parts that are made while all workers are at work."""

    def __init__(self, work: Path, workers: int, model: str = "storybook", **generation: Any) -> None:
        self.output, self.workers, self.starts = work / f"ray{workers}", workers, list[float]()
        self.model, self.generation = model, generation

    def __call__(self, images: Path, captions: dict[str, str]) -> Measured:
        found: dict[str, list[tuple[float, int]]] = defaultdict(list)  # of each worker: when, and how many images
        started, answers = time.perf_counter(), ray_engine.answers

        def watched(*args: Any, **settings: Any) -> Iterator[Any]:
            for record in answers(*args, **settings):
                found[record["worker"]].append((time.perf_counter(), record["images"]))
                yield record

        ray_engine.answers = watched
        try:
            ray_engine.caption_to_parts(
                self.model, str(images), self.output, workers=self.workers, device="cpu",
                overwrite=self.output.exists(), progress=False, **{"batch_size": BATCH, **self.generation},
            )  # fmt: skip
        finally:
            ray_engine.answers = answers
        captions.update(read_captions(self.output))
        self.starts.append(min(times[0][0] for times in found.values()) - started)
        begin, end = max(times[0][0] for times in found.values()), min(times[-1][0] for times in found.values())
        rate = 0.0
        for times in found.values():
            inside = [one for one in times if begin <= one[0] <= end]
            rate += sum(count for _, count in inside[1:]) / (inside[-1][0] - inside[0][0])
        return rate, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loads: list[float] = []
    measured: dict[str, list[Measured]] = defaultdict(list)
    said: dict[str, dict[str, str]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as scratch, cluster(None, 2):
        work = Path(scratch)
        draw(work / "images", args.images)
        photos(work / "small", (640, 480), args.images // 4)
        photos(work / "large", (4000, 3000), args.images // 32)
        rays = {f"ray {count}": Ray(work, count) for count in (1, 2)}
        engines: dict[str, tuple[str, Callable[[Path, dict[str, str]], Measured]]] = {
            "transformers": ("images", plain),
            "two transformers at once": ("images", two),
            "process": ("images", Process(work)),
            **{name: ("images", engine) for name, engine in rays.items()},
        }
        for (folder, size), count in itertools.product((("small", "640 x 480"), ("large", "4000 x 3000")), (1, 2)):
            engines[f"process, photos of {size}, workers {count}"] = (folder, Process(work, count))
        model, limits = large_captioner(work / "model"), {"max_new_tokens": 8, "batch_size": BATCH // 4}
        photos(work / "few", (640, 480), args.images // 8)
        engines[f"process, {LARGE}"] = ("few", Process(work, 1, model, **limits))
        for count in (1, 2):
            engines[f"ray {count}, {LARGE}"] = ("few", Ray(work, count, model, **limits))
        for _ in range(args.repeats):
            for name, (folder, engine) in engines.items():
                loads.append(round(os.getloadavg()[0], 1))
                measured[name].append(engine(work / folder, said[name]))
    rates = {name: [rate for rate, _ in values] for name, values in measured.items()}
    spent = {name: [one for _, one in values if one is not None] for name, values in measured.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}

    def over(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 3)

    equal = {}
    for name, (folder, _) in engines.items():
        first = next(one for one, (other, _) in engines.items() if other == folder and one.startswith("process"))
        equal[name] = f"{sum(said[name].get(key) == text for key, text in said[first].items())} of {len(said[first])}"
    result: dict[str, Any] = {
        "images": args.images, "batch_size": BATCH, "repeats": args.repeats, "machine": _lib.machine(), "loads": loads,
        "images_per_second": {name: [round(value, 2) for value in values] for name, values in rates.items()},
        "median": {name: round(value, 2) for name, value in medians.items()},
        "processor_ms_per_image": {name: [round(value, 2) for value in values] for name, values in spent.items()},
        "process over transformers": over("process", "transformers"),
        "two transformers at once over one": over("two transformers at once", "transformers"),
        "ray 2 over ray 1": over("ray 2", "ray 1"),
        f"ray 2 over ray 1, {LARGE}": over(f"ray 2, {LARGE}", f"ray 1, {LARGE}"),
        "seconds to the first part": {name: round(statistics.median(ray.starts), 1) for name, ray in rays.items()},
        "captions equal to those of process": equal,
    }  # fmt: skip
    alone = " of others, before which this had the cores" if os.sched_getscheduler(0) != os.SCHED_OTHER else ""
    lines = [
        "# Engines", "",
        f"{args.images} images of storybook, {args.images // 4} and {args.images // 32} photos, batches of {BATCH}, "
        f"one thread for each copy of the model, {result['machine']['cores']} cores, load {min(loads)} to {max(loads)}"
        f"{alone}; medians of {args.repeats}.", "",
        "| engine | images a second | processor ms an image | captions equal |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for name, value in medians.items():
        processor = f"{statistics.median(spent[name]):.2f}" if spent[name] else ""
        lines.append(f"| {name} | {value:.1f} | {processor} | {equal[name]} |")
    lines += ["", f"Medians of pairs: process over transformers {result['process over transformers']:.2f}; two "
              f"transformers at once over one, which is what two cores give, "
              f"{result['two transformers at once over one']:.2f}; Ray with 2 workers over 1 "
              f"{result['ray 2 over ray 1']:.2f}, with {LARGE} "
              f"{result[f'ray 2 over ray 1, {LARGE}']:.2f}. Until Ray's first part is there: "
              f"{result['seconds to the first part']['ray 2']} s."]  # fmt: skip
    _lib.write(result, "\n".join(lines) + "\n", args.output)


if __name__ == "__main__":
    main()
