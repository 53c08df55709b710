"""One step of captune's SCST beside the same step written plainly, on the same captioner, images and reward.

    python -m benchmarks.speed.scst_step [--adapter FOLDER] [--repeats 12] [--output benchmarks/speed/scst_step]

The plain step is what a reader of the paper writes with transformers: a `generate` that is greedy, a second one that
samples `num_return_sequences` captions, each with its own pass of the vision tower and its own prefill, the reward, and
a further pass over prompt, image and caption for the log-probabilities of the samples and their gradient. Images are
preprocessed once in both; loss, reward, clipping and AdamW are the same functions, and neither has dropout. They take
turns in one process, and who goes first alternates. What they sample differs, as samples do: medians.

`cpu` is the processor's time, which other work on the machine disturbs less than the clock's (`wall`). The reward's
share is its part of captune's own step: CIDEr-D with the end token, frozen document frequencies, 5 references.

Two models: the shipped storybook captioner, with an adapter if one is given (a captioner that has been fine-tuned, as
SCST presumes, writes other lengths than the base), and an Idefics3 with SmolVLM's proportions and random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import _lib
from benchmarks.speed.latent_step import smolvlm_proportions
from captune import storybook
from captune.models import inputs as batches
from captune.models.caching.prefill import PrefillCache
from captune.models.captioner import NEUTRAL, Captioner
from captune.models.loading import load_adapter
from captune.scorers import load_reward
from captune.training.losses import scst_loss
from captune.training.scst.train import SCSTConfig, SCSTTrainer
from captune.training.trainer import training_arguments


class Ours(SCSTTrainer):
    """captune's step, the reward's seconds noted."""

    reward_seconds = 0.0

    def _rewards(self, *args: Any) -> torch.Tensor:
        started = time.process_time()
        rewards = super()._rewards(*args)
        self.reward_seconds = time.process_time() - started
        return rewards


class Plain(SCSTTrainer):
    """The same step without anything shared."""

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> torch.Tensor:
        captioner, config = self.captioner, self.config
        model: Any = captioner.model
        model.eval()
        prompt = captioner.prepare(images)
        inputs, start = batches.inputs_of(prompt), prompt["input_ids"].shape[1]
        settings = {
            "max_new_tokens": config.max_new_tokens, "eos_token_id": captioner.eos_ids,
            "pad_token_id": captioner.tokenizer.pad_token_id, "min_new_tokens": MIN_TOKENS or None,
            "suppress_tokens": [captioner.core.config.image_token_id],
        }  # fmt: skip
        with torch.no_grad():
            greedy = model.generate(**inputs, **settings, do_sample=False)
            samples = model.generate(
                **inputs, **settings, **NEUTRAL, do_sample=True, num_return_sequences=config.num_generations
            )
        end = torch.tensor(captioner.eos_ids)
        rewards = []
        for ids, each in ((greedy, 1), (samples, config.num_generations)):
            ended = torch.isin(ids[:, start:], end).any(1).tolist()
            rewards.append(self._rewards(captioner.decode(ids[:, start:]), ended, examples, each))
        baseline = rewards[0].expand(-1, config.num_generations)
        ids = samples[:, start:]
        over = torch.isin(ids, end).long().cumsum(1) - torch.isin(ids, end).long()
        mask = (over == 0).long()
        rows = [i for i in range(len(images)) for _ in range(config.num_generations)]
        tokens = (prompt["input_ids"] == captioner.core.config.image_token_id).sum(-1).tolist()
        full = batches.inputs_of(batches.repeat(prompt, rows, tokens))
        full["input_ids"] = samples
        full["attention_mask"] = torch.cat([full["attention_mask"], mask], dim=1)
        logits = model(**full, use_cache=False).logits[:, start - 1 : -1].float()
        logprobs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return scst_loss(logprobs, mask, rewards[1].flatten(), baseline.flatten())[0]


MIN_TOKENS = 0  # random weights end where they like: then every caption has its full length


def trainer(kind: type[SCSTTrainer], folder: Path, adapter: Path | None, config: SCSTConfig, rows: Any) -> SCSTTrainer:
    captioner = Captioner.load(folder, device="cpu")
    if adapter:
        captioner.model = load_adapter(captioner.core, adapter, trainable=True)
    else:
        torch.manual_seed(0)
        captioner.add_lora()
    if MIN_TOKENS:
        captioner.core.generation_config.min_new_tokens = MIN_TOKENS
    reward = load_reward("cider:?eos=1")
    reward.parts[0][0].fit([row["references"] for row in rows])  # type: ignore[attr-defined]
    made = kind(captioner, [0], training_arguments(config), reward=reward, rl_config=config)
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1
    return made


def step(side: SCSTTrainer, examples: list[dict[str, Any]]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    loss = side.training_step(side.model, examples)
    torch.nn.utils.clip_grad_norm_([p for p in side.captioner.model.parameters() if p.requires_grad], 1.0)
    side.optimizer.step()
    side.optimizer.zero_grad()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if not torch.isfinite(loss):
        raise RuntimeError(f"{type(side).__name__}: the loss is {loss.item()}")
    return {"wall": wall, "cpu": cpu}


def measure(name: str, folder: Path, adapter: Path | None, config: SCSTConfig, rows: Any) -> dict[str, Any]:
    ours = trainer(Ours, folder, adapter, config, rows)
    plain = trainer(Plain, folder, adapter, config, rows)
    chunks = [list(rows)[at : at + config.batch_size] for at in range(0, len(rows), config.batch_size)]
    times: dict[str, list[dict[str, float]]] = {"captune": [], "plain": []}
    shares = []
    with ours.captioner.share_vision() as ours._memo, PrefillCache(ours.captioner.core):
        for turn, examples in enumerate(chunks):
            for side in ("captune", "plain") if turn % 2 else ("plain", "captune"):
                torch.manual_seed(turn)
                seconds = step(ours if side == "captune" else plain, examples)
                if turn >= 2:
                    times[side].append(seconds)
                    if side == "captune":
                        shares.append(ours.reward_seconds / seconds["cpu"])
    result: dict[str, Any] = {
        "model": name, "images": config.batch_size, "samples": config.num_generations,
        "prompt_tokens": int(ours.captioner.prepare([rows[0]["image"]])["input_ids"].shape[1]),
        "words_per_sample": round(statistics.mean(ours._seen["length"]), 1),
        "reward_share": round(statistics.median(shares), 4),
    }  # fmt: skip
    for what in ("cpu", "wall"):
        ratios = [b[what] / a[what] for a, b in zip(times["captune"], times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = {side: statistics.median(s[what] for s in steps) for side, steps in times.items()}
        result[what] = {
            "seconds": {side: round(value, 4) for side, value in medians.items()},
            "times_faster": round(medians["plain"] / medians["captune"], 2),
            "per_pair": {"median": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]},
        }
    return result


def table(result: dict[str, Any]) -> str:
    lines = [
        "# A step of SCST beside the same step written plainly",
        "",
        f"Medians of {result['repeats']} turns, {result['threads']} thread, load {result['load']}; torch "
        f"{result['torch']}, transformers {result['transformers']}. Made by "
        "`python -m benchmarks.speed.scst_step`; its head says what is measured.",
        "",
        "| model | images x samples | words | captune, processor s | plain | times faster, processor | wall | reward |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for m in result["models"]:
        cpu, wall = m["cpu"], m["wall"]
        lines.append(
            f"| {m['model']} | {m['images']} x {m['samples']} | {m['words_per_sample']} | "
            f"{cpu['seconds']['captune']:.3f} | {cpu['seconds']['plain']:.3f} | {cpu['times_faster']} | "
            f"{wall['times_faster']} | {m['reward_share']:.2%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    global MIN_TOKENS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="of the storybook captioner, from `captune sft`")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)

    models = []
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        shipped = storybook.model_path("storybook")
        plan = [("storybook", shipped, args.adapter, 16, n) for n in (5, 1)]
        plan.append(("SmolVLM's proportions", smolvlm_proportions(scratch / "b"), None, 8, 5))
        for name, folder, adapter, images, samples in plan:
            MIN_TOKENS = 0 if folder == shipped else 16
            config = SCSTConfig(
                model=name, output=scratch / "out", images="given", device="cpu", num_generations=samples,
                batch_size=images, max_new_tokens=MIN_TOKENS or 40,
            )  # fmt: skip
            rows = storybook.load("val", n=images * (args.repeats + 2))
            models.append(measure(name + (" + SFT" if adapter else ""), folder, adapter, config, rows))
            print(json.dumps(models[-1]), flush=True)
    result = {
        "bar": "times_faster >= 1.5, reward_share <= 0.03",
        "models": models,
        "repeats": args.repeats,
        **_lib.machine(),
    }
    _lib.write(result, table(result), args.output)


if __name__ == "__main__":
    main()
