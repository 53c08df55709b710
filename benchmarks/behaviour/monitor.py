"""Which runs the reward-hacking watch marks: a control that must be marked early, and healthy runs that must not be.

    python -m benchmarks.behaviour.monitor [--seeds 1 2 3] \
        [--runs length mapper clip cider storybook] [--work runs/watch]

Control: the words of the caption as the reward, which has no use for the image. It must be marked within the first
quarter of its steps. Healthy: the reward of `captune vizer` (one round: a mapper fitted on the base's own samples), and
CLIPScore, CIDEr-D and the exact facts as rewards. None of them may ever be marked. Each is trained on the shipped
captioner with its command's own settings; the watch is the default one (what the reward leaves free of clip and cider,
on storybook:val), with an evaluation every ten steps, as in `captune grpo`. A run ends at its first mark, or else with
its last step.

A finished run in --work is not done again. The rule's thresholds were chosen with seed 1 (see
`captune.training.monitor.alert_rules`).
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from transformers import TrainerCallback

from captune.runs.run_dir import RunDir
from captune.scorers import load_reward
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import load_training_images, start_run
from captune.training.monitor.held_out import FILE, HeldOutMonitor, default_scorers
from captune.training.monitor.setup import LastStep
from captune.training.reward import prepare_reward
from captune.training.vizer.train import ViZerConfig, build_mapper
from captune.utils.files import read_jsonl

SOURCE = "storybook:val?n=64"
RUNS = {"length": True, "mapper": False, "clip": False, "cider": False, "storybook": False}  # True: must be marked
VIZER = ("max_steps", "warmup_steps", "learning_rate", "beta")


class UntilMarked(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if metrics["eval_alerts"]:
            control.should_training_stop = True


def mapper_reward(model: str, seed: int, work: Path) -> tuple[str, dict[str, Any]]:
    """The reward of `captune vizer`'s first round as an expression, and the settings it is trained with."""
    config = ViZerConfig(model=model, output=work / f"fitted-{seed}", images="storybook:unlabelled", seed=seed)
    folder = RunDir(config.output)
    if not (folder.mapper / "config.json").is_file():
        run_dir, captioner = start_run(config, "vizer")
        build_mapper(captioner, config, run_dir, load_training_images(config))
    reward = f"vizer:{folder.mapper} - {config.repetition_weight}*repetition"
    return reward, {name: getattr(config, name) for name in VIZER}


def train(kind: str, model: str, seed: int, work: Path, steps: int) -> Path:
    """Trains a run under the watch; returns its folder."""
    output = work / f"{kind}-{seed}"
    if (output / "adapter").is_dir():
        return output
    reward, settings = mapper_reward(model, seed, work) if kind == "mapper" else (kind, {})
    images = "storybook:train" if kind == "cider" else "storybook:unlabelled"
    config = CaptionGRPOConfig(
        model=model, output=output, images=images, seed=seed, reward=reward, overwrite=True, **settings
    )
    run_dir, captioner = start_run(config, "grpo")
    (output / FILE).unlink(missing_ok=True)
    expression, dataset = load_reward(config.reward, captioner=captioner), load_training_images(config)
    prepare_reward(expression, dataset, run_dir, captioner)
    captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
    monitor = HeldOutMonitor(captioner, SOURCE, default_scorers(expression, SOURCE), run_dir, reward=expression)
    train_with_reward(
        captioner,
        dataset,
        expression.parts,
        config,
        run_dir,
        beta=config.beta,
        num_generations=config.num_generations,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        monitor=monitor,
        callbacks=[LastStep(), UntilMarked()],
        eval_strategy="steps",
        eval_steps=steps,
        eval_on_start=True,
        save_strategy="no",
    )
    captioner.save_adapter(run_dir.adapter)
    return output


def summary(kind: str, seed: int, folder: Path) -> dict[str, Any]:
    rows = read_jsonl(folder / FILE)
    last, steps = rows[-1], RunDir(folder).config["max_steps"]
    marked = [row["step"] for row in rows if row["alerts"]]
    figures = {name: [row["sampled"][name] for row in rows] for name in last["sampled"]}
    kept = ("length", "repetition", "cut", "hallucinated")
    return {
        "run": kind,
        "seed": seed,
        "steps": steps,
        "must be marked": RUNS[kind],
        "first mark": marked[0] if marked else None,
        "evaluated at": [row["step"] for row in rows],
        "as it should be": bool(marked) and marked[0] <= steps / 4 if RUNS[kind] else not marked,
        "sentence": next((row["sentence"] for row in rows if row["alerts"]), None),
        "reward": [row["reward"] for row in rows],
        "sampled": figures,
        "health at the end": {name: last["health"][name] for name in kept if name in last["health"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--watch-steps", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path("runs/watch"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    results = []
    for seed in options.seeds:
        for kind in options.runs:
            folder = train(kind, options.model, seed, options.work, options.watch_steps)
            results.append(result := summary(kind, seed, folder))
            first = result["first mark"]
            said = "never marked" if first is None else f"marked at step {first}"
            doubt = "" if result["as it should be"] else ", which it should not"
            print(f"{kind}, seed {seed}: {said} of {result['steps']}{doubt}", flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    about = {"model": options.model, "source": SOURCE, "versions": versions, "machine": platform.machine()}
    options.output.write_text(json.dumps({**about, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
