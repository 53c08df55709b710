"""The two sides of `grpo_vs_trl.py`: a trainer each, stepped in turns, its evaluations counted, its seconds noted."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

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
