"""Captioning throughput: `Captioner.caption` beside the `transformers` image-text-to-text pipeline, image by image.

    python -m benchmarks.speed.captioning_throughput [--model FOLDER] \
        [--output benchmarks/speed/captioning_throughput.json]

Same process, machine, weights, images, prompt and decoding (greedy); the two take turns, after one round to warm up
that is not counted. Images are decoded before the clock starts; preprocessing, generation and text decoding count.
Without --model: the shipped storybook captioner, or where there is none an Idefics3 of its shape with random weights
(64 px, 4 image tokens, width 128, 4 layers), whose captions all run to the length limit.
The captions of both sides are compared; batching may flip a near tie between two words, so the agreement is reported.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from transformers import pipeline
from transformers.utils import logging

from benchmarks import _lib
from captune import storybook
from captune.models.captioner import Captioner


def random_model(folder: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import tiny

    return tiny.idefics3(folder, hidden=128, layers=4, chat_template=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()

    shipped = storybook.model_path("storybook")
    name = str(args.model) if args.model else "storybook" if shipped.is_dir() else "random weights"
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or (shipped if shipped.is_dir() else random_model(Path(scratch)))
        captioner = Captioner.load(folder, device=args.device)
        peer = pipeline("image-text-to-text", model=str(folder), device=args.device)
    images = [(row["image_id"], row["image"]) for row in storybook.load("test", n=args.images)]
    decoding = {"max_new_tokens": args.max_new_tokens, "do_sample": False}
    prompt = captioner.prompt_text()

    def one_by_one() -> dict[str, str]:
        found = {}
        for image_id, image in images:
            output = peer(text=prompt, images=image, return_full_text=False, generate_kwargs=decoding)
            found[image_id] = output[0]["generated_text"].strip()
        return found

    def batched() -> dict[str, str]:
        return dict(captioner.caption(images, batch_size=args.batch_size, progress=False, **decoding))

    sides = {"transformers pipeline": one_by_one, "captune": batched}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(args.repeats + 1):
        captions = {}
        for side, run in sides.items():
            start = time.perf_counter()
            captions[side] = run()
            if turn:
                times[side].append(time.perf_counter() - start)

    rate = {side: len(images) / statistics.median(seconds) for side, seconds in times.items()}
    ours, theirs = captions["captune"], captions["transformers pipeline"]
    result = {
        "model": name,
        "parameters": captioner.core.num_parameters(),
        "images": len(images),
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "mean_words": round(statistics.mean(len(c.split()) for c in ours.values()), 1),
        "images_per_second": {side: round(value, 1) for side, value in rate.items()},
        "seconds_range": {side: [round(min(s), 2), round(max(s), 2)] for side, s in times.items()},
        "speed_ratio": round(rate["captune"] / rate["transformers pipeline"], 1),
        "same_captions": sum(ours[image_id] == theirs[image_id] for image_id, _ in images) / len(images),
        "repeats": args.repeats,
        "device": args.device,
        **_lib.machine(),
    }
    _lib.write(result, None, args.output)


if __name__ == "__main__":
    main()
