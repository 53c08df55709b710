"""A step of `captune sft` beside one of `trl.SFTTrainer`, and what batches by length save.

    python -m benchmarks.speed.sft_step [--repeats 12] [--output benchmarks/speed/sft_step]

Steps: both are the whole step of their trainer on a batch of new images with a caption each, from preprocessing to
AdamW, as in `latent_step.py`, whose sides these are: same model, LoRA, captions, float32, no gradient checkpointing.
They take turns, and who goes first alternates. `cpu` is the processor's time, which other work on the machine disturbs
less than the clock's (`wall`).

Batches by length: the same pairs of image and caption, 32 to a batch, in transformers' length-grouped order and in
random order; the tokens that a batch has, padding included, and the processor's seconds of a step, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import _lib
from benchmarks.speed.latent_step import Side, Supervised, smolvlm_proportions
from captune import storybook
from captune.models.captioner import Captioner
from captune.training.sft.train import ByLength, Pairs, SFTConfig, SFTTrainer
from captune.training.trainer import training_arguments


class Ours(Side):
    """The memo is emptied at every step, as new images empty it in training."""

    def __init__(self, captioner: Captioner, scratch: Path) -> None:
        super().__init__(captioner)
        config = SFTConfig(model=captioner.name, output=scratch, images="given", device="cpu")
        self.trainer = SFTTrainer(captioner, [0], training_arguments(config))
        self.ready()
        self.memo = captioner.share_vision()
        captioner.prepare = self.timed(captioner.prepare)

    def loss(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        self.memo.clear()
        rows = [{"image": e["image"], "references": [e["caption"]]} for e in examples]
        return self.trainer.training_step(self.trainer.model, self.trainer.data_collator(rows))


def loaded(folder: Path) -> Captioner:
    captioner = Captioner.load(folder, device="cpu")
    captioner.add_lora()
    captioner.model.train()
    return captioner


def summary(times: dict[str, list[dict[str, float]]], first: str, second: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for what in ("cpu", "wall"):
        ratios = [a[what] / b[what] for a, b in zip(times[first], times[second], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = {side: statistics.median(step[what] for step in steps) for side, steps in times.items()}
        result[what] = {
            "seconds": {side: round(value, 4) for side, value in medians.items()},
            "ratio_of_medians": round(medians[first] / medians[second], 3),
            "ratio_per_pair": {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]},
        }
    return result


def beside_trl(folder: Path, name: str, batches: list[list[dict[str, Any]]], scratch: Path) -> dict[str, Any]:
    sides = {"captune": Ours(loaded(folder), scratch), "trl": Supervised(loaded(folder), scratch)}
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn, batch in enumerate(batches):
        for side in list(sides) if turn % 2 else reversed(list(sides)):
            seconds = sides[side].step(batch)
            if turn >= 2:
                times[side].append(seconds)
    return {"model": name, "batch_size": len(batches[0]), **summary(times, "captune", "trl")}


def by_length(folder: Path, scratch: Path, repeats: int, size: int = 32) -> dict[str, Any]:
    ours = Ours(loaded(folder), scratch)
    pairs = Pairs(storybook.load("train", n=800), ours.captioner)
    random = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    orders = {"by length": list(ByLength(size, pairs.lengths, seed=0)), "random": random}
    tokens = {}
    for name, order in orders.items():
        widths = [max(pairs.lengths[i] for i in order[at : at + size]) for at in range(0, len(order), size)]
        tokens[name] = round(statistics.mean(widths), 2)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in orders}
    for turn in range(repeats + 2):
        for name in list(orders) if turn % 2 else reversed(list(orders)):
            # evenly over the pass: the sampler begins with the longest batch
            start = size * (turn * (len(pairs) // size - 1) // (repeats + 2))
            rows = [pairs[i] for i in orders[name][start : start + size]]
            seconds = ours.step([{"image": row["image"], "caption": row["references"][0]} for row in rows])
            if turn >= 2:
                times[name].append(seconds)
    means = {name: round(statistics.mean(step["cpu"] for step in steps), 4) for name, steps in times.items()}
    return {"longest_caption_in_a_batch": tokens, "cpu_seconds_of_a_step": means, "batch_size": size}


def table(result: dict[str, Any]) -> str:
    lines = [
        "# A step of supervised fine-tuning beside trl's",
        "",
        f"Medians of {result['repeats']} turns, {result['threads']} thread, load {result['load']}; torch "
        f"{result['torch']}, trl {result['trl']}. Made by `python -m benchmarks.speed.sft_step`; its head says what is "
        "measured.",
        "",
        "| model | images | captune, processor s | trl | ratio | ratio in pairs (quartiles) | ratio, wall |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for m in result["models"]:
        cpu, pair = m["cpu"], m["cpu"]["ratio_per_pair"]
        lines.append(
            f"| {m['model']} | {m['batch_size']} | {cpu['seconds']['captune']:.3f} | {cpu['seconds']['trl']:.3f} | "
            f"{cpu['ratio_of_medians']} | {pair['median']} ({pair['quartiles'][0]} to {pair['quartiles'][1]}) | "
            f"{m['wall']['ratio_of_medians']} |"
        )
    grouped = result["by_length"]
    longest, seconds = grouped["longest_caption_in_a_batch"], grouped["cpu_seconds_of_a_step"]
    lines += [
        "",
        f"`--group-by-length` on storybook, {grouped['batch_size']} captions to a batch: the longest caption of a "
        f"batch has {longest['by length']} tokens on average, {longest['random']} in random order; a step takes "
        f"{seconds['by length']:.3f} and {seconds['random']:.3f} processor seconds.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)

    rows = storybook.load("val", n=args.batch_size * (args.repeats + 2))
    examples = [{"image": row["image"], "caption": row["references"][0]} for row in rows]
    batches = [examples[at : at + args.batch_size] for at in range(0, len(examples), args.batch_size)]
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        shipped = storybook.model_path("storybook")
        models = [(shipped, "storybook"), (smolvlm_proportions(scratch / "b"), "SmolVLM's proportions, random weights")]
        result = {
            "bar": "ratio <= 1.05",
            "models": [beside_trl(folder, name, batches, scratch / "out") for folder, name in models],
            "by_length": by_length(shipped, scratch / "out", args.repeats),
            "repeats": args.repeats,
            **_lib.machine(),
        }
    _lib.write(result, table(result), args.output)


if __name__ == "__main__":
    main()
