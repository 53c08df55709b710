"""What CIM's reward, GRC + QIR, costs beside the GRPO step that it serves.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.retrieval_reward --work /tmp/million \
        [--output benchmarks/speed/retrieval_reward]

- at 7B scale, 256 images x 5 captions against a corpus of a million captions: what runs on the processor (search, image
  vectors, keys of images) is measured here, on one core, through the scorers as a trainer calls them, with a corpus of
  random unit vectors whose encoders answer at once; what runs on the accelerator (the step, all-mpnet-base-v2 and
  ViT-H/14) is arithmetic, whose assumptions are in `ASSUMED`. The step is the cheapest that there is (LoRA, no KL,
  nothing recomputed, prompt and image evaluated once), so the reward's share is the highest. With `index=device` the
  accelerator searches, in float32.
- on storybook: `captune grpo --model storybook --images storybook:unlabelled --reward "grc:CORPUS + qir:CORPUS"` with
  its defaults, 16 images x 8 and x 5 captions a step, and corpora of storybook:train with two text encoders, of which
  storybook-clip is the default: the seconds of both scorers as a share of the trainer's own `step_time`. The first pass
  sees each image for the first time; in the second its vector is known.

`--work` keeps the corpora; `--entries` makes the large one smaller for a quick look.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import _lib
from benchmarks.speed.retrieval_million import DIMENSION, K, build
from captune import storybook
from captune.corpus import Corpus
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.scorers.image.retrieval import GRC, QIR
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import load_training_images

IMAGES, SAMPLES = 256, 5
ASSUMED: dict[str, float] = {
    "weights of the captioner": 7e9,
    "tokens of a prompt, the image's included": 300,
    "tokens of a caption": 60,
    "weights of the captioner's vision tower (ViT-L/14, 336 px)": 0.3e9,
    "patches of that tower": 577,
    "weights of the text encoder (all-mpnet-base-v2)": 110e6,
    "weights of the image encoder (ViT-H/14, 224 px)": 632e6,
    "patches of the image encoder": 257,
    "FLOP/s in bfloat16 (H100: 989e12, 40% of it used)": 0.4 * 989e12,
    "FLOP/s in float32 (H100: 67e12, 40% of it used)": 0.4 * 67e12,
    "FLOP/s in TF32 (H100: 494e12, 40% of it used)": 0.4 * 494e12,
    "processor cores for each accelerator (DGX H100: 112 for 8)": 14,
}


def clocked(job: Callable[[], Any]) -> float:
    """Seconds of the processor, which other work disturbs less than the clock's; they are the same on one idle core."""
    start = time.process_time()
    job()
    return time.process_time() - start


def on_the_processor(work: Path, entries: int, repeats: int) -> dict[str, float]:
    """Medians of one core's seconds for a batch of 256 x 5, through the scorers."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    corpus, _ = build(work / "random", "random", entries, max(1, entries // 100))
    corpus.search(np.ones((1, DIMENSION), dtype=np.float32), K)  # the vectors are in the page cache from here on
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)) for _ in range(IMAGES)]
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        rewards = GRC(corpus=corpus), QIR(corpus=corpus)
        numbers = range(repeat * IMAGES * SAMPLES, (repeat + 1) * IMAGES * SAMPLES)
        given = {
            "completions": [str(i) for i in numbers],  # what the corpus' text encoder here can read
            "image": [picture for picture in pictures for _ in range(SAMPLES)],
            "image_id": [str(i) for i in range(IMAGES) for _ in range(SAMPLES)],
        }
        rows = rng.integers(0, entries, (IMAGES * SAMPLES, K))
        prepare = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
        jobs = {
            "GRC: search, and vectors of what is found": functools.partial(rewards[0], **given),
            "QIR, the same captions, images never seen": functools.partial(rewards[1], **given),
            "QIR, the same captions, images known": functools.partial(rewards[1], **given),
            "of which reading 1,280 x 5 vectors of 768": functools.partial(np.take, corpus.text_vectors, rows, axis=0),
            "preparing 256 images for ViT-H/14": functools.partial(prepare, images=pictures, return_tensors="pt"),
        }
        for name, job in jobs.items():
            seconds.setdefault(name, []).append(clocked(job))
    return {name: round(statistics.median(values), 3) for name, values in seconds.items()}


def arithmetic(entries: int, core: dict[str, float]) -> dict[str, Any]:
    """FLOPs and seconds of a step and of its reward."""
    weights, prompt, caption, tower, patches, text, image, tiles, fast, slow, tf32, cores = ASSUMED.values()
    captions = IMAGES * SAMPLES
    step = {
        "vision, once an image": 2 * tower * patches * IMAGES,
        "prefill, once an image": 2 * weights * prompt * IMAGES,
        "decoding": 2 * weights * caption * captions,
        "training, forward, a prompt once an image": 2 * weights * (prompt * IMAGES + caption * captions),
        "training, backward to activations": 2 * weights * (prompt * IMAGES + caption * captions),
    }
    reward = {
        "text encoder": 2 * text * caption * captions,
        "image encoder, once an image": 2 * image * tiles * IMAGES,
        "search": 2.0 * captions * entries * DIMENSION,
    }
    whole = sum(step.values())
    search, new, known, _, prepared = core.values()
    kinds = {}
    searches = {f"search on {cores:g} cores": search / cores, "index=device": reward["search"] / slow}
    for name, speed in (("encoders in float32", slow), ("encoders in TF32", tf32)):
        for where, found in searches.items():
            later = reward["text encoder"] / speed + found + known
            first = later - known + reward["image encoder, once an image"] / speed + new + prepared
            kinds[f"{name}, {where}"] = {
                "images new: seconds": first, "images new: share": first / (first + whole / fast),
                "images known: seconds": later, "images known: share": later / (later + whole / fast),
            }  # fmt: skip
    return {
        "step_flops": step,
        "reward_flops": reward,
        "share_of_flops": sum(reward.values()) / whole,
        "step_seconds_at_least": whole / fast,
        "reward_seconds": kinds,
    }


class Timed:
    """A scorer as a reward, its seconds noted."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.seconds = scorer, []
        self.__name__ = scorer.name.partition(":")[0]

    def __call__(self, *args: Any, **kwargs: Any) -> list[float]:
        start = time.perf_counter()
        scores = self.scorer(*args, **kwargs)
        self.seconds.append(time.perf_counter() - start)
        return scores


def on_storybook(corpus: Path, samples: int, steps: int, images: int) -> dict[str, Any]:
    """Seconds of both scorers and of the trainer's steps; `steps` to a pass over the images, two passes."""
    with tempfile.TemporaryDirectory() as folder:
        config = CaptionGRPOConfig(
            model="storybook", output=Path(folder, "run"), images=f"storybook:unlabelled?n={steps * images}",
            reward=f"grc:{corpus} + qir:{corpus}", max_steps=2 * steps, batch_size=images, save_steps=10_000,
            device="cpu",
        )  # fmt: skip
        captioner = Captioner.load(config.model, device=config.device)
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        rewards = [Timed(load_scorer(f"{name}:{corpus}")) for name in ("grc", "qir")]
        for reward in rewards:  # the encoders are loaded before anything is timed
            reward.scorer(["a red ball"], image=[storybook.load("val", n=1)[0]["image"]], image_id=["none"])
        run_dir = RunDir(config.output).start({})
        train_with_reward(
            captioner, load_training_images(config), [(reward, 1.0) for reward in rewards], config, run_dir,
            beta=config.beta, num_generations=samples, temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        took = [row["step_time"] for row in run_dir.metrics() if "step_time" in row]
    grc, qir = (reward.seconds for reward in rewards)
    if not len(took) == len(grc) == len(qir) == 2 * steps:
        raise RuntimeError(f"{len(took)} steps were logged and {len(grc)} rewards given, not {2 * steps}")
    passes = {}
    for name, part in (("images new", slice(1, steps)), ("images known", slice(steps, None))):  # the first warms up
        middle = {what: statistics.median(values[part]) for what, values in
                  {"step": took, "grc": grc, "qir": qir}.items()}  # fmt: skip
        share = statistics.median((a + b) / c for a, b, c in zip(grc[part], qir[part], took[part], strict=True))
        passes[name] = {**{f"{what}_seconds": round(value, 4) for what, value in middle.items()},
                        "share": round(share, 4)}  # fmt: skip
    return passes


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    large, sums = result["processor"], result["arithmetic"]
    lines = [
        "# What the retrieval reward costs", "",
        f"Made by `benchmarks/speed/retrieval_reward.py`; {result['machine']}, one thread, other work beside it.", "",
        "## GRC + QIR at 7B scale", "",
        f"{IMAGES} images x {SAMPLES} captions, {result['entries']:,} x {DIMENSION} corpus, K = {K}; here:", "",
        "| measured | seconds of one core |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in large.items()), "",
        "Assumed: " + "; ".join(f"{name} {value:g}" for name, value in ASSUMED.items()) + ". Two FLOPs a weight and "
        "token, attention left out; a backward pass through frozen weights counts as a forward pass.", "",
        "| the step | PFLOP | | the reward | PFLOP |", "|---|---|---|---|---|",
    ]  # fmt: skip
    step, reward = ([*sums[part].items()] for part in ("step_flops", "reward_flops"))
    for row, (name, value) in enumerate(step):
        other = reward[row] if row < len(reward) else ("", None)
        lines.append(
            f"| {name} | {value / 1e15:.3f} | | {other[0]} | {'' if other[1] is None else f'{other[1] / 1e15:.4f}'} |"
        )
    lines += [
        "", f"The reward has **{sums['share_of_flops']:.2%}** of the step's FLOPs. In seconds, with the step at "
        f"{sums['step_seconds_at_least']:.1f} s (one accelerator, the fastest that it can be):", "",
        "| | images new: s | share | images known: s | share |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, kind in sums["reward_seconds"].items():
        seconds, share, later, then = kind.values()
        lines.append(f"| {name} | {seconds:.2f} | {share:.1%} | {later:.2f} | {then:.1%} |")
    lines += [
        "", "## On storybook, measured", "",
        f"{result['storybook_batch']} images a step, corpus of storybook:train, `captune grpo`'s defaults; medians.",
        "",
        "| text encoder | captions an image | pass | step s | GRC s | QIR s | share of the step |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for run in result["storybook"]:
        for name, part in run["passes"].items():
            took = " | ".join(str(part[f"{what}_seconds"]) for what in ("step", "grc", "qir"))
            lines.append(f"| {run['text_encoder']} | {run['samples']} | {name} | {took} | **{part['share']:.1%}** |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="steps of each of the two passes on storybook")
    parser.add_argument("--batch-size", type=int, default=16, help="images a step on storybook")
    parser.add_argument("--output", type=Path, help="writes this name with .json and .md")
    args = parser.parse_args()
    runs = []
    for encoder in ("all-MiniLM-L6-v2", "storybook-clip"):
        folder = args.work / f"storybook-{encoder}"
        Corpus.build("storybook:train", folder, text_encoder=encoder, progress=sys.stderr.isatty(), device="cpu")
        for samples in (8, 5):
            passes = on_storybook(folder, samples, args.steps, args.batch_size)
            runs.append({"text_encoder": encoder, "samples": samples, "passes": passes})
    core = on_the_processor(args.work, args.entries, args.repeats)
    result = {
        "bar": "below 5% of a step at 7B scale with a million captions, below 25% of storybook's step",
        "entries": args.entries,
        "processor": core,
        "assumed": ASSUMED,
        "arithmetic": arithmetic(args.entries, core),
        "storybook_batch": args.batch_size,
        "storybook": runs,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}",
    }
    _lib.write(result, markdown(result), args.output)


if __name__ == "__main__":
    main()
