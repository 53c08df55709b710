"""Self-critical sequence training of a captioner, with any scorer as the reward (Rennie et al., CVPR 2017).

    L(theta) = - E_{w^s ~ p_theta} [ (R(w^s) - b) sum_t log p_theta(w^s_t | w^s_<t, I) ]             HAR, equation 2

The expectation is an average over `num_generations` sampled captions w^s of each image. b is the baseline: `greedy`
(the paper's), R of the greedy caption; or `mean`, the mean R of the image's *other* samples (Kool et al., 2019, RLOO).
R is an expression of scorers; HAR's is `cider`. The end token is part of the sum and, with `end_token`, a word in
CIDEr-D, without which policies learn captions that stop at "with a".

Left open by the papers: batch sizes, learning rate and samples per image (ours were chosen on storybook:val). They use
no KL; `beta` adds beta * KL(p_theta || p_start), over the vocabulary, averaged over tokens. The sum over t is not
divided by the length. There is no dropout in the pass with the gradient, and the temperature divides its logits as
well: what is sampled must be what learns. See docs/methods/scst.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments

from captune.models.caching.prefill import PrefillCache
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_reward
from captune.scorers.base import Reward, weighted_sum
from captune.scorers.text.health import Health
from captune.training.config import RLConfig
from captune.training.gate import check_reward
from captune.training.lifecycle import (
    claim_run,
    drop_start,
    finish_run,
    keep_start,
    load_captioner,
    load_training_images,
    make_trainable,
    starting_captioner,
)
from captune.training.losses import leave_one_out, scst_loss, token_kl, token_logprobs
from captune.training.monitor.setup import monitor_without_stopping
from captune.training.monitor.trainer import Monitor, MonitoredTrainer
from captune.training.resume import REWARDS
from captune.training.reward import prepare_reward
from captune.training.scst.config import SCSTConfig
from captune.training.sequences import caption_logits, sample
from captune.training.sharing import SharedNoise
from captune.training.trainer import CaptionerTrainer
from captune.utils import processes


class RewardTrainer(MonitoredTrainer, CaptionerTrainer):
    """`transformers.Trainer` that learns from sampled captions and what they are worth; a subclass says how.

    Args:
        captioner: with something trainable.
        dataset: images and the columns that the reward needs.
        args: transformers'.
        reward: the reward; each part is logged.
        rl_config: how captions are sampled.
        monitor: measured in place of an evaluation, when `args.eval_strategy` says so.
        kwargs: those of `CaptionerTrainer`.
    """

    def __init__(
        self,
        captioner: Captioner,
        dataset: Any,
        args: TrainingArguments,
        *,
        reward: Reward,
        rl_config: RLConfig,
        monitor: Monitor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(captioner, dataset, args, eval_dataset=dataset if monitor is not None else None, **kwargs)
        self.reward, self.config, self.monitor = reward, rl_config, monitor
        self._rewards_seen: list[float] = []
        self._seen: defaultdict[str, list[float]] = defaultdict(list)  # figures since they were logged last

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; meanwhile each distinct image is encoded once a step, each prompt prefilled once."""
        images = max(256, self.config.batch_size)
        vision = self.captioner.share_vision(max_images=images, alone=self.config.cache_features)
        with vision as self._memo, PrefillCache(self.captioner.core):
            return super().train(*args, **kwargs)

    def _rewards(self, captions: list[str], ended: list[bool], examples: list[dict[str, Any]], rows: int) -> Tensor:
        """Return R of each caption, (N, rows); note what each scorer gave the samples, before its weight."""
        columns = {name: [e[name] for e in examples for _ in range(rows)] for name in examples[0]}
        found: list[np.ndarray] = []
        for part, _ in self.reward.parts:
            scores = torch.tensor(part(captions, **columns, ended=ended), dtype=torch.float64).view(-1, rows)
            if scores.isinf().any():  # NaN is what a scorer cannot judge
                self.stop(
                    f"the reward {part.name} is infinite for {captions[int(scores.isinf().flatten().nonzero()[0])]!r}"
                )
            self._note(f"rewards/{part.name}/mean", scores[:, -self.config.num_generations :].nanmean())
            found.append(scores.flatten().numpy())
        total = torch.from_numpy(weighted_sum(found, [weight for _, weight in self.reward.parts])).view(-1, rows)
        return total.to(self.captioner.device, torch.float32)

    def _note_health(self, captions: Sequence[str], ended: Sequence[bool]) -> None:
        """Note of the samples: words per caption, the share with a bad ending, the share that did not end."""
        judge = Health()
        health = judge.corpus(judge.rows(captions))
        for name in ("length", "bad_endings"):
            self._note(name, health[name])
        self._note("cut", 1 - sum(ended) / len(ended))

    def made_of(self) -> dict[str, Any]:
        """Return what a run that resumes must find as it was: the reward, too."""
        return super().made_of() | {REWARDS: [getattr(part, "identity", None) for part, _ in self.reward.parts]}

    def accumulated(self) -> dict[str, Any]:
        """Return what was noted since the last log entry and the last evaluation, too."""
        return super().accumulated() | {"noted": dict(self._seen), "rewards": self._rewards_seen}

    def put_back(self, values: dict[str, Any]) -> None:
        """Put back what `accumulated` returned."""
        super().put_back(values)
        self._seen.update(values["noted"])
        self._rewards_seen[:] = values["rewards"]

    def _note(self, name: str, value: Tensor | float) -> None:
        """Note a figure of a step; none of a batch in which the reward could judge nothing (NaN)."""
        if math.isfinite(value := float(value)):
            self._seen[name].append(value)
            if name == "reward":
                self._rewards_seen.append(value)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the means of what was noted since the last time, too."""
        seen: defaultdict[str, list[float]] = defaultdict(list)
        for part in processes.gather(dict(self._seen)):
            for name, values in part.items():
                seen[name] += values
        means = {name: sum(values) / len(values) for name, values in seen.items()}
        self._seen.clear()
        super().log({**logs, **means}, *args, **kwargs)


class SCSTTrainer(RewardTrainer):
    """Equation 2 on a batch of images."""

    config: SCSTConfig

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        """Return the loss of the module on a batch of images."""
        self._memo.begin_batch()
        self.captioner.model.eval()
        config, greedy = self.config, self.config.baseline == "greedy"
        prompt = self.captioner.prepare(images)
        rows = config.num_generations + greedy
        tails, ended = sample(
            self.captioner,
            prompt,
            rows,
            greedy=greedy,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )
        captions = self.captioner.decode(tails)
        rewards = self._rewards(captions, ended, examples, rows)
        first = int(greedy)  # of an image's samples among its captions
        baseline = rewards[:, :1].expand(-1, rows - 1) if greedy else leave_one_out(rewards)
        samples = [index for index in range(len(tails)) if index % rows >= first]
        sampled = [tails[index] for index in samples]
        logits, ids, mask = caption_logits(self.captioner, prompt, sampled)
        logprobs = token_logprobs(logits, ids, config.temperature)
        loss, advantages = scst_loss(logprobs, mask, rewards[:, first:].flatten(), baseline.flatten())
        loss = self.weigh(loss, len(images))
        self._note("reward", rewards[:, first:].nanmean())
        self._note("baseline", baseline.nanmean())
        self._note("advantage", advantages.mean())
        self._note("advantage_std", advantages.std(correction=0))
        self._note_health([captions[index] for index in samples], [ended[index] for index in samples])
        if config.beta:
            with torch.no_grad(), starting_captioner(self.captioner):
                start = caption_logits(self.captioner, prompt, sampled)[0]
            kl = (token_kl(logits, start) * mask).sum() / mask.sum()
            self._note("kl", kl.detach())
            loss = loss + config.beta * self.weigh(kl, int(mask.sum()))
        return loss

    def follow(self) -> None:
        """Take part in what the processes exchange in `caption_loss`, without an image."""
        SharedNoise.watch(self.captioner.device)
        for _ in range(1 + bool(self.config.beta)):
            self.weigh(torch.zeros(()), 0)


def fit(
    trainer: type[RewardTrainer],
    captioner: Captioner,
    images: Any,
    config: RLConfig,
    run_dir: RunDir,
    reward: Reward,
    first_turn: bool = False,
    **settings: Any,
) -> None:
    """Train what `make_trainable` puts in, monitored by held-out scorers.

    Args:
        trainer: the method's.
        captioner: without an adapter.
        images: the training images, a dataset.
        config: the run's settings.
        run_dir: the run.
        reward: what the trainer optimises.
        first_turn: whether the reward is of a correction of a first caption.
        settings: of the monitor.
    """
    make_trainable(captioner, config)
    if config.beta:
        keep_start(captioner, config)
    sampling = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    arguments = monitor_without_stopping(config, captioner, reward, run_dir, **sampling, **settings)
    check_reward(captioner, images, reward.parts, config, run_dir, name=reward.name, first_turn=first_turn)
    monitor = arguments.pop("monitor")
    trainer.fit(captioner, images, config, run_dir, arguments, reward=reward, rl_config=config, monitor=monitor)
    drop_start(captioner)


def run(config: SCSTConfig) -> RunDir:
    """Train, save `adapter/`, evaluate, write the report."""
    run_dir = claim_run(config, "scst")
    if run_dir.done:
        return run_dir
    captioner = load_captioner(config)
    reward = load_reward(config.reward)
    images = load_training_images(config, references="references" in reward.required_columns)
    prepare_reward(reward, images, run_dir, captioner, end_token=config.end_token)
    fit(SCSTTrainer, captioner, images, config, run_dir, reward)
    start = f", from the adapter {config.adapter}" if config.adapter else ""
    return finish_run(config, run_dir, captioner, row=f"SCST: {config.reward}", method=f"SCST, {config.reward}{start}")
