"""GRPO steps of captune beside those of stock `trl.GRPOTrainer`: same model, LoRA, images, reward, G and batch.

    python -m benchmarks.speed.grpo_vs_trl [--repeats 3] [--output benchmarks/speed/grpo_vs_trl]

Both sides run their trainer's own `train()`, in turns, two steps at a time; who goes first alternates. A step is
timed from the end of the step before it, so it holds everything: reading and preprocessing images, sampling G captions
an image, rewards, reference log-probabilities, forward, backward, AdamW. Every caption is sampled to its full length
(min_new_tokens = max_new_tokens), so that both decode the same number of tokens. `cpu` is the processor's time, which
other work on the machine disturbs less than the clock's.

Each model is measured with and without gradient checkpointing (TRL's default is with) and with and without KL (TRL's
default is beta = 0); both sides always have the same settings, float32, no dropout.

Before the timing both sides do one step on the same given captions of different lengths, from the same LoRA weights
(others than the reference's, so that KL is not 0), and the loss, the gradient and the log-probabilities are compared.
With beta = 0 the *value* of GRPO's first loss does not depend on the model (the ratio of the policy to itself is 1), so
there the gradient is what says something.

Vision evaluations are images through the tower's first linear layer per image of the batch and step (a recomputation
counts), forward and backward; preprocessings are images through the image processor. FLOPs of a step are counted with
torch's counter, and the formula of `proportions.formula` is set beside them.

The models have random weights and the proportions of SmolVLM (an Idefics3: 729 patches, 81 image tokens) and Qwen2-VL
(384 patches, 96 image tokens); their vision shares are counted, those of the real ones computed from their configs.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import _lib
from benchmarks._lib import MODELS, counted, formula, parts_of_a_forward, published_shares
from captune import storybook
from captune.models.captioner import Captioner
from captune.models.families import attribute
from captune.scorers import load_scorer
from captune.training.grpo.trainer import CaptionGRPOTrainer


class Probe(TrainerCallback):
    """The seconds of each step, and the gradients of the last one."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.gradients = torch.empty(0)
        self.keep_gradients = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.perf_counter(), time.process_time()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.keep_gradients:
            self.gradients = torch.cat([p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        self.steps.append((now[0] - self.last[0], now[1] - self.last[1]))
        self.last = now


class Side:
    """A trainer on its own copy of the model; what it evaluates is counted, where its time goes is noted."""

    def __init__(self, kind: str, build: Callable[[], Captioner], rows: datasets.Dataset, args: GRPOConfig) -> None:
        self.captioner = captioner = build()
        captioner.add_lora(r=8, alpha=16, dropout=0.0)
        self._draw_lora(seed=1)
        self.counts: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self._count(rows[0]["image"])
        reward = load_scorer("length")
        if kind == "trl":
            prompts = [[{"role": "user", "content": captioner.prompt}]] * len(rows)
            rows = rows.add_column("prompt", prompts)
            self.trainer = GRPOTrainer(
                captioner.model, [reward], args, train_dataset=rows, processing_class=captioner.processor
            )
        else:
            self.trainer = CaptionGRPOTrainer(captioner, rows, [(reward, 1.0)], args)
        self._draw_lora(seed=2)  # the reference, where there is one, is a copy of the first: KL is not 0
        self.probe = Probe()
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(self.probe)

    def _draw_lora(self, seed: int) -> None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.captioner.model.named_parameters():
                if "lora_" in name and ".default." in name:
                    parameter.normal_(0, 0.02)

    def _count(self, image: Any) -> None:
        """Hooks on the tower's first linear layer and on the image processor."""
        tower = attribute(self.captioner.core, self.captioner.family.vision)
        layer = next(module for module in tower.modules() if isinstance(module, torch.nn.Linear))
        sizes: list[int] = []
        handle = layer.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
        self.captioner.image_features([image])
        handle.remove()

        def backward(gradient: torch.Tensor) -> None:
            self.counts["vision backward"] += gradient.numel() // sizes[0]

        def forward(module: Any, args: Any, output: torch.Tensor) -> None:
            self.counts["vision forward"] += output.numel() // sizes[0]
            if output.requires_grad:
                output.register_hook(backward)

        layer.register_forward_hook(forward)
        preprocessor = self.captioner.processor.image_processor
        preprocess = self.timed("preprocess", preprocessor.preprocess)

        @functools.wraps(preprocessor.preprocess)
        def counted(images: Any, *args: Any, **kwargs: Any) -> Any:
            self.counts["preprocessed"] += how_many(images)
            return preprocess(images, *args, **kwargs)

        preprocessor.preprocess = counted

    def timed(self, part: str, function: Callable[..., Any], *, without_gradient: bool = False) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = function(*args, **kwargs)
            if not (without_gradient and torch.is_grad_enabled()):
                self.seconds[part] += time.process_time() - started
            return result

        return call

    def note_parts(self) -> None:
        trainer: Any = self.trainer
        for name, part in (("_generate_single_turn", "generate"), ("compute_loss", "forward")):
            setattr(trainer, name, self.timed(part, getattr(trainer, name)))
        trainer.accelerator.backward = self.timed("backward", trainer.accelerator.backward)
        reference = trainer._get_per_token_logps_and_entropies
        trainer._get_per_token_logps_and_entropies = self.timed("reference", reference, without_gradient=True)

    def run(self, steps: int) -> list[tuple[float, float]]:
        """(wall, cpu) seconds of each step."""
        self.probe.steps.clear()
        self.trainer.args.max_steps = steps
        self.trainer.train()
        return list(self.probe.steps)

    def first_step(self, captions: list[list[int]]) -> dict[str, Any]:
        """One step on given captions: loss, gradient, and the log-probabilities of each row of tokens."""
        trainer: Any = self.trainer
        found: dict[str, Any] = {"log_probs": {}}
        loss, log_probs = trainer.compute_loss, trainer._get_per_token_logps_and_entropies

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            found["loss"] = loss(*args, **kwargs)
            return found["loss"]

        def keep(model: Any, input_ids: torch.Tensor, mask: torch.Tensor, kept: int, *args: Any, **kwargs: Any) -> Any:
            result = log_probs(model, input_ids, mask, kept, *args, **kwargs)
            if torch.is_grad_enabled():
                for ids, seen, row in zip(input_ids, mask, result[0].detach(), strict=True):
                    found["log_probs"][tuple(ids[seen.bool()].tolist())] = row[seen[-kept:].bool()]
            return result

        trainer._generate_single_turn = lambda *args, **kwargs: (captions, None)
        trainer.compute_loss, trainer._get_per_token_logps_and_entropies = compute_loss, keep
        self.probe.keep_gradients = True
        self.run(1)
        self.probe.keep_gradients = False
        for name in ("_generate_single_turn", "compute_loss", "_get_per_token_logps_and_entropies"):
            delattr(trainer, name)
        log = next(log for log in trainer.state.log_history if "grad_norm" in log)
        found |= {"loss": found["loss"].item(), "grad_norm": log["grad_norm"], "kl": log.get("kl", 0.0)}
        return {**found, "gradients": self.probe.gradients.clone()}


def how_many(images: Any) -> int:
    """Images in nested lists."""
    return sum(how_many(part) for part in images) if isinstance(images, (list, tuple)) else 1


G = 5
SETTINGS = [(False, 0.0), (False, 0.05), (True, 0.0), (True, 0.05)]  # gradient checkpointing, beta; the first is main


def arguments(setting: tuple[bool, float], images: int, tokens: int, folder: str) -> GRPOConfig:
    checkpointing, beta = setting
    return GRPOConfig(
        output_dir=folder, per_device_train_batch_size=images * G, num_generations=G, beta=beta,
        gradient_checkpointing=checkpointing, max_completion_length=tokens,
        generation_kwargs={"min_new_tokens": tokens}, learning_rate=1e-6, bf16=False, use_cpu=True,
        shuffle_dataset=False, save_strategy="no", logging_steps=1, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip


def compare(first: dict[str, dict[str, Any]], beta: float) -> dict[str, float]:
    """How far apart the two sides' first steps are."""
    ours, theirs = first["captune"], first["trl"]
    if ours["log_probs"].keys() != theirs["log_probs"].keys():
        raise RuntimeError("the two sides did not train on the same prompts and captions")
    if abs(ours["loss"] - theirs["loss"]) > 1e-5:
        raise RuntimeError(f"the first step's loss is {theirs['loss']} with TRL and {ours['loss']} with captune")
    if beta and not theirs["kl"] > 0:
        raise RuntimeError("KL is 0: the comparison of the losses would say nothing about the reference")
    apart = [(ours["log_probs"][row] - theirs["log_probs"][row]).abs().max() for row in ours["log_probs"]]
    gradient = (ours["gradients"] - theirs["gradients"]).abs().max() / theirs["gradients"].abs().max()
    return {
        "loss": theirs["loss"],
        "loss_difference": abs(ours["loss"] - theirs["loss"]),
        "kl": theirs["kl"],
        "kl_difference": abs(ours["kl"] - theirs["kl"]),
        "gradient_norm": theirs["grad_norm"],
        "gradient_norm_difference": abs(ours["grad_norm"] - theirs["grad_norm"]),
        "gradient_difference_of_largest": gradient.item(),
        "log_prob_difference": max(apart).item(),
    }


def measure(
    build: Callable[[], Captioner], rows: datasets.Dataset, setting: tuple[bool, float], args: argparse.Namespace
) -> dict[str, Any]:
    """Both sides with one setting."""
    per_step = args.batch_size
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            kind: Side(kind, build, rows, arguments(setting, per_step, args.tokens, folder))
            for kind in ("trl", "captune")
        }
        draw = random.Random(0)
        tokenizer = sides["trl"].captioner.tokenizer
        ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        captions = [draw.choices(ordinary, k=draw.randint(args.tokens // 3, args.tokens)) for _ in range(per_step * G)]
        same = compare({kind: side.first_step(captions) for kind, side in sides.items()}, setting[1])
        result: dict[str, Any] = {"gradient_checkpointing": setting[0], "beta": setting[1], "first_step": same}
        flops = {kind: counted(lambda side=side: side.run(1)) for kind, side in sides.items()}
        for side in sides.values():
            side.note_parts()
            side.counts.clear()
            side.seconds.clear()
        steps: dict[str, list[tuple[float, float]]] = {kind: [] for kind in sides}
        for turn in range(args.repeats):
            for kind in list(sides) if turn % 2 else reversed(list(sides)):
                steps[kind] += sides[kind].run(args.steps)
    images = per_step * args.steps * args.repeats
    result["per_image_and_step"] = {
        kind: {what: side.counts[what] / images for what in ("vision forward", "vision backward", "preprocessed")}
        for kind, side in sides.items()
    }
    for place, clock in enumerate(("wall", "cpu")):
        seconds = {kind: [step[place] for step in found] for kind, found in steps.items()}
        ratios = [sum(seconds["trl"][i : i + args.steps]) / sum(seconds["captune"][i : i + args.steps])
                  for i in range(0, args.steps * args.repeats, args.steps)]  # fmt: skip
        medians = {kind: statistics.median(values) for kind, values in seconds.items()}
        result[clock] = {
            "seconds_a_step": {kind: round(value, 3) for kind, value in medians.items()},
            "images_per_second": {kind: round(per_step / value, 3) for kind, value in medians.items()},
            "ratio_of_medians": round(medians["trl"] / medians["captune"], 3),
            "ratio_per_pair": {"median": round(statistics.median(ratios), 3),
                               "least": round(min(ratios), 3), "most": round(max(ratios), 3)},
        }  # fmt: skip
    result["flops_a_step"] = flops
    result["flops_ratio"] = round(flops["trl"] / flops["captune"], 3)
    result["formula_ratio"] = round(formula(args.parts, setting, G), 3)
    result["cpu_seconds_by_part"] = {}
    for kind, side in sides.items():
        parts = {part: value / args.repeats / args.steps for part, value in side.seconds.items()}
        mean = statistics.mean(step[1] for step in steps[kind])
        result["cpu_seconds_by_part"][kind] = {
            **{part: round(value, 3) for part, value in parts.items()},
            "other": round(mean - sum(parts.values()), 3),
        }
    return result


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    lines = [
        "# GRPO: captune against stock TRL",
        "",
        f"Made by `{result['command']}`: {result['cores']} cores, {result['threads']} torch thread(s), "
        f"load {result['load']}; torch {result['torch']}, transformers {result['transformers']}, trl {result['trl']}. "
        f"{result['batch_size']} images x "
        f"{G} captions of {result['tokens']} tokens a step, LoRA r = 8 on the language model's linear layers, float32, "
        f"reward `length`; medians of {result['repeats'] * result['steps']} steps of either side, in turns. Other work "
        "ran beside it: trust the processor's ratios. What each column is, the script's own text says.",
    ]
    for model in result["models"]:
        parts = model["flops_of_a_forward"]
        lines += [
            "",
            f"## {model['model']}",
            "",
            f"{model['parameters'] / 1e6:.1f} M parameters, {parts['image_tokens']} image tokens, prompt of "
            f"{parts['prompt_tokens']} in all. FLOPs of a forward pass over prompt and caption: "
            f"tower V = {parts['V'] / 1e9:.2f} G, language model F = {parts['F'] / 1e9:.2f} G (prompt alone "
            f"{parts['Pf'] / 1e9:.2f} G), so the tower has {model['vision_share']:.1%}.",
            "",
            "| checkpointing | beta | images/s TRL | captune | ratio, clock | turns | **ratio, processor** | turns "
            "| FLOPs | formula | vision fwd | bwd | prepared |",
            "|---" * 13 + "|",
        ]
        for found in model["settings"]:
            per, speed = found["per_image_and_step"], found["wall"]["images_per_second"]
            pairs = [found[clock]["ratio_per_pair"] for clock in ("wall", "cpu")]
            spread = [f"{pair['least']}–{pair['most']}" for pair in pairs]
            both = [f"{per['trl'][what]:g} / {per['captune'][what]:g}" for what in per["trl"]]
            lines.append(
                f"| {'on' if found['gradient_checkpointing'] else 'off'} | {found['beta']:g} | {speed['trl']} | "
                f"{speed['captune']} | {found['wall']['ratio_of_medians']} | {spread[0]} | "
                f"**{found['cpu']['ratio_of_medians']}** | {spread[1]} | {found['flops_ratio']} | "
                f"{found['formula_ratio']} | " + " | ".join(both) + " |"
            )  # fmt: skip
        lines += ["", "(vision forward, backward and prepared: images per image and step, TRL / captune.)", "",
                  "Where a step's processor seconds go (TRL / captune):", ""]  # fmt: skip
        names = ["preprocess", "generate", "reference", "forward", "backward", "other"]
        lines += ["| checkpointing | beta | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
        for found in model["settings"]:
            by = found["cpu_seconds_by_part"]
            lines.append(
                f"| {'on' if found['gradient_checkpointing'] else 'off'} | {found['beta']:g} | "
                + " | ".join(f"{by['trl'].get(n, 0):.2f} / {by['captune'].get(n, 0):.2f}" for n in names) + " |"
            )  # fmt: skip
        lines += ["", "The first step on the same given captions, captune's distance from TRL's:", "",
                  "| checkpointing | beta | loss | apart | KL | apart | gradient norm | apart "
                  "| largest gradient, relative | log-probabilities |", "|---" * 10 + "|"]  # fmt: skip
        for found in model["settings"]:
            first = found["first_step"]
            lines.append(
                f"| {'on' if found['gradient_checkpointing'] else 'off'} | {found['beta']:g} | {first['loss']:.6f} | "
                f"{first['loss_difference']:.1e} | {first['kl']:.6f} | {first['kl_difference']:.1e} | "
                f"{first['gradient_norm']:.5f} | "
                f"{first['gradient_norm_difference']:.1e} | {first['gradient_difference_of_largest']:.1e} | "
                f"{first['log_prob_difference']:.1e} |"
            )
    shares = result["published_vision_share"]
    lines += ["", "## The real models", "", "The tower's share of a forward pass, from the published configs:", ""]
    lines += ["| | " + " | ".join(f"caption of {n} tokens" for n in shares) + " |", "|---" * (len(shares) + 1) + "|"]
    for name in next(iter(shares.values())):
        lines.append(f"| {name} | " + " | ".join(f"{by[name]:.1%}" for by in shares.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of a caption")
    parser.add_argument("--settings", type=int, default=4, help="how many settings of each model; 1 is TRL's beta = 0")
    parser.add_argument("--output", type=Path, help="writes this name with .json and .md")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    drawn = storybook.load("val", n=args.batch_size * (args.steps + 1))  # one batch is read ahead
    rows = datasets.Dataset.from_list([{"image": row["image"].resize((640, 480))} for row in drawn])
    models = []
    for name, build in MODELS.items():
        captioner = build()
        args.parts = parts_of_a_forward(captioner, rows[0]["image"], args.tokens)
        parts = args.parts
        models.append({"model": name, "parameters": captioner.core.num_parameters(), "flops_of_a_forward": parts,
                       "vision_share": round(parts["V"] / (parts["V"] + parts["F"]), 3), "settings": []})  # fmt: skip
        for setting in SETTINGS[: args.settings]:
            print(f"{name}, gradient checkpointing {setting[0]}, beta {setting[1]:g} ...", file=sys.stderr)
            models[-1]["settings"].append(measure(build, rows, setting, args))
    result = {
        "bar": "at least 2 times TRL's images per second, losses within 1e-5, one vision evaluation an image and step",
        "command": "python -m benchmarks.speed.grpo_vs_trl",
        **{name: getattr(args, name) for name in ("repeats", "steps", "batch_size", "tokens")},
        "models": models,
        "published_vision_share": {str(tokens): published_shares(tokens) for tokens in (24, 60)},
        **_lib.machine(),
    }
    _lib.write(result, markdown(result), args.output)
    for model in models:
        for found in model["settings"]:
            wall, cpu = found["wall"], found["cpu"]
            print(f"{model['model']}, checkpointing {'on' if found['gradient_checkpointing'] else 'off'}, "
                  f"beta {found['beta']:g}: {wall['ratio_of_medians']} times TRL's images per second, "
                  f"{cpu['ratio_of_medians']} times a processor second")  # fmt: skip


if __name__ == "__main__":
    main()
