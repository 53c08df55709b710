"""Self-critical sequence training of a captioner, with any scorer as the reward (Rennie et al., CVPR 2017).

    L(theta) = - E_{w^s ~ p_theta} [ (R(w^s) - b) sum_t log p_theta(w^s_t | w^s_<t, I) ]             HAR, equation 2

The expectation is an average over `num_generations` sampled captions w^s of each image of the batch. b is the baseline:

- `greedy` (the paper's): R(w_hat), the reward of the caption that the captioner now writes greedily. What beats the
  captioner's own best guess becomes likelier, what does not, less likely.
- `mean`: the mean reward of the image's *other* samples, leave-one-out, so that the gradient stays unbiased (Kool et
  al., 2019, RLOO; as "a better variant of SCST", Luo, 2020). It needs no greedy caption and 2 samples or more.

R is an expression of scorers. HAR's reward is `cider`; its future work, CIDEr mixed with CLIP and a term against bias,
is `cider + 0.5*clip` and `cider + 0.5*bias`.

**The end of a caption** is part of the sum over t (the end token is sampled as any other) and, with `end_token`, a word
in CIDEr-D, of the references and of the document frequencies (see `captune.scorers.reference.cider`). A sample that has not ended
within `max_new_tokens` has no end token in either. Without it, policies learn captions that stop at "with a".

**What the papers leave open.** Rennie et al. and HAR use no KL; `beta` adds beta * KL(p_theta || p_start), over the
vocabulary, averaged over the tokens of the samples, and is 0. Batch sizes, learning rate and samples per image are not
in HAR; ours were chosen on storybook:val. The sum over t is not divided by the length (many implementations do). What
is sampled must be what learns, so there is no dropout in the pass that gives the gradient, and a temperature divides
its logits as well. A caption that the reward cannot judge (NaN) has no advantage.

**What is climbed is no measure.** The run is watched by scorers that are not R (`captune.training.monitor.watch`), and marked.

**Cost.** The greedy caption and the samples of an image come out of one `generate`. The image is evaluated once, the
prompt once for all of them and once more for their gradient, which flows through the cache that they share
(`captune.models.caching.vision`, `captune.models.caching.prefill`, `captune.training.sequences`).

    captune scst --model storybook --adapter runs/sft/adapter --images storybook:train --reward cider --output runs/scst
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import TrainingArguments
from trl.trainer.utils import use_adapter

from captune.models.caching.prefill import PrefillCache
from captune.models.captioner import Captioner
from captune.models.loading import load_adapter
from captune.runs.run_dir import RunDir
from captune.scorers import load_reward, scorer_class
from captune.scorers.expression import Expression, parse
from captune.scorers.reference.cider import Cider
from captune.scorers.text.health import Health
from captune.training.grpo.train import marked_only, prepare
from captune.training.lifecycle import CaptionerTrainer, TrainingConfig, conclude, load_training_images, start
from captune.training.method import Method
from captune.training.monitor.trainer import Watched, Watching
from captune.training.sequences import caption_logits, sample
from captune.training.sft import freeze_vision

REFERENCE = "start"  # the adapter as it was, for the KL


@dataclass
class SCSTConfig(TrainingConfig):
    """Settings of `captune scst`."""

    reward: str = field(default="cider", metadata={"help": "R, a scorer or a weighted sum: 'cider + 0.5*clip'"})
    adapter: Path | None = field(
        default=None, metadata={"help": "a PEFT adapter folder to go on from, with its own LoRA shape"}
    )
    baseline: Literal["greedy", "mean"] = field(
        default="greedy", metadata={"help": "b: the reward of the greedy caption, or of the other samples on average"}
    )
    num_generations: int = field(default=5, metadata={"help": "captions sampled per image"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of the sampled captions"})
    max_new_tokens: int = field(default=40, metadata={"help": "longest caption in tokens"})
    end_token: bool = field(default=True, metadata={"help": "the end of a caption is a word in CIDEr-D"})
    beta: float = field(default=0.0, metadata={"help": "weight of KL to the captioner that training starts from"})
    max_steps: int = field(default=60, metadata={"help": "optimiser steps"})
    learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate of AdamW; warm-up, then cosine"})

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 2 if self.baseline == "mean" else 1
        if self.num_generations < least:
            raise ValueError(f"--num-generations must be at least {least} with --baseline {self.baseline}, "
                             f"it is {self.num_generations}")  # fmt: skip
        if self.temperature <= 0:
            raise ValueError(f"--temperature must be positive, it is {self.temperature}")
        if self.beta < 0:
            raise ValueError(f"--beta must not be negative, it is {self.beta}")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1, it is {self.max_new_tokens}")
        for spec in parse(self.reward):
            scorer_class(spec.partition(":")[0])


# -- equation 2 --------------------------------------------------------------------------------------------------------


def leave_one_out(rewards: Tensor) -> Tensor:
    """The `mean` baseline: for each of (N, G) rewards the mean of the image's others, NaN ones left out; (N, G)."""
    known = ~rewards.isnan()
    total, count = rewards.nansum(-1, keepdim=True), known.sum(-1, keepdim=True)
    return (total - rewards.nan_to_num()) / (count - known.long())


def scst_loss(logprobs: Tensor, mask: Tensor, rewards: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 2 and the advantages R - b, (B,).

    Args:
        logprobs: (B, T) log p(w^s_t | w^s_<t, I), with a gradient.
        mask: (B, T), 1 on the tokens of the caption, its end token included.
        rewards, baseline: (B,), R(w^s) and b; where either is NaN the caption has no advantage.
    """
    advantages = (rewards - baseline).nan_to_num().detach()
    return -(advantages * (logprobs * mask).sum(-1)).mean(), advantages


# -- the trainer ------------------------------------------------------------------------------------------------------


class SCSTTrainer(Watched, CaptionerTrainer):
    """`transformers.Trainer` with the loss of the module; what the reward needs are columns of the dataset."""

    def __init__(
        self,
        captioner: Captioner,
        dataset: Any,
        args: TrainingArguments,
        *,
        reward: Expression,
        scst_config: SCSTConfig,
        watch: Watching | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(captioner, dataset, args, eval_dataset=dataset if watch is not None else None, **kwargs)
        self.reward, self.config, self.watch = reward, scst_config, watch
        self._rewards_seen: list[float] = []
        self._seen: defaultdict[str, list[float]] = defaultdict(list)  # figures since they were logged last

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's; meanwhile the model's vision tower and prefill are shared."""
        images = max(256, self.config.batch_size)
        with self.captioner.share_vision(max_images=images) as self._memo, PrefillCache(self.captioner.core):
            return super().train(*args, **kwargs)

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        self._memo.clear()  # so that a run which resumes encodes the same images together, to the same bits
        self.captioner.model.eval()
        config, greedy = self.config, self.config.baseline == "greedy"
        prompt = self.captioner.prepare(images)
        rows = config.num_generations + greedy
        tails, ended = sample(
            self.captioner, prompt, rows, greedy=greedy, temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        captions = self.captioner.decode(tails)
        rewards = self._rewards(captions, ended, examples, rows)
        first = int(greedy)  # of an image's samples among its captions
        baseline = rewards[:, :1].expand(-1, rows - 1) if greedy else leave_one_out(rewards)
        places = [place for place in range(len(tails)) if place % rows >= first]
        own = [tails[place] for place in places]
        logits, ids, mask = caption_logits(self.captioner, prompt, own)
        logprobs = (logits / config.temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        loss, advantages = scst_loss(logprobs, mask, rewards[:, first:].flatten(), baseline.flatten())
        self._note("reward", rewards[:, first:].nanmean())
        self._note("baseline", baseline.nanmean())
        self._note("advantage", advantages.mean())
        self._note("advantage_std", advantages.std(correction=0))
        self._note_health([captions[place] for place in places], [ended[place] for place in places])
        if config.beta:
            with torch.no_grad(), starting_captioner(self.captioner):
                base = caption_logits(self.captioner, prompt, own)[0].log_softmax(-1)
            mine = logits.log_softmax(-1)
            kl = ((mine.exp() * (mine - base)).sum(-1) * mask).sum() / mask.sum()
            self._note("kl", kl.detach())
            loss = loss + config.beta * kl
        return loss

    def _rewards(self, captions: list[str], ended: list[bool], examples: list[dict[str, Any]], rows: int) -> Tensor:
        """R of each caption, (N, rows); what each scorer gave the samples is noted, before its weight."""
        columns = {name: [e[name] for e in examples for _ in range(rows)] for name in examples[0]}
        total = torch.zeros(len(examples), rows, dtype=torch.float64)
        for part, weight in self.reward.parts:
            scores = torch.tensor(part(captions, **columns, ended=ended), dtype=torch.float64).view(-1, rows)
            self._note(f"rewards/{part.name}/mean", scores[:, -self.config.num_generations :].nanmean())
            total += weight * scores
        return total.to(self.captioner.device, torch.float32)

    def _note_health(self, captions: Sequence[str], ended: Sequence[bool]) -> None:
        """Of the samples: words per caption, the share with a bad ending, the share that did not end."""
        judge = Health()
        health = judge.corpus(judge.rows(captions))
        for name in ("length", "bad_endings"):
            self._note(name, health[name])
        self._note("cut", 1 - sum(ended) / len(ended))

    def _note(self, name: str, value: Tensor | float) -> None:
        self._seen[name].append(float(value))
        if name == "reward":
            self._rewards_seen.append(float(value))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        means = {name: sum(values) / len(values) for name, values in self._seen.items()}
        self._seen.clear()
        super().log({**logs, **means}, *args, **kwargs)


# -- the captioner that training starts from ---------------------------------------------------------------------------


@contextmanager
def starting_captioner(captioner: Captioner) -> Iterator[None]:
    """Inside, the captioner is as it was when training began: with the adapter `REFERENCE`, or with none."""
    model: Any = captioner.model
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None):
        yield
    freeze_vision(captioner)  # peft makes all of the adapter trainable again


def fit(
    trainer: type[SCSTTrainer],
    captioner: Captioner,
    images: Any,
    config: Any,
    run_dir: RunDir,
    reward: Any,
    **settings: Any,
) -> None:
    """Trains a new LoRA, or the adapter that training goes on from, and has it watched; settings are the watch's."""
    if config.adapter is None:
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
    else:
        captioner.model = load_adapter(captioner.core, config.adapter, trainable=True)
        if config.beta:
            captioner.model.load_adapter(str(config.adapter), REFERENCE)
        freeze_vision(captioner)  # a connector that the adapter brings is used as it is
    drawn = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    watched = marked_only(config, captioner, reward, run_dir, **drawn, **settings)
    watch = watched.pop("watch")
    trainer.fit(captioner, images, config, run_dir, settings=watched, reward=reward, scst_config=config, watch=watch)
    if config.adapter and config.beta:
        cast(Any, captioner.model).delete_adapter(REFERENCE)


def run(config: SCSTConfig) -> RunDir:
    """Trains, saves `adapter/`, evaluates, writes the report; see `TrainingConfig`."""
    run_dir, captioner = start(config, "scst")
    reward = load_reward(config.reward)
    images = load_training_images(config, references="references" in reward.required_columns)
    for part, _ in reward.parts:
        if isinstance(part, Cider) and part.said_eos is None:
            part.set_eos(config.end_token)
    prepare(reward, images, run_dir)
    fit(SCSTTrainer, captioner, images, config, run_dir, reward)
    begun = f", from the adapter {config.adapter}" if config.adapter else ""
    return conclude(config, run_dir, captioner, row=f"SCST: {config.reward}", method=f"SCST, {config.reward}{begun}")


METHOD = Method(
    name="scst",
    summary="self-critical training on references (SCST)",
    description="Samples captions of each image and makes those likelier that score above the captioner's own greedy "
    "caption (or above the other samples). Usually continues from `captune sft`'s adapter, with CIDEr-D as the reward.",
    example="captune scst --model storybook --adapter runs/sft/adapter --images storybook:train --reward cider "
    "--output runs/scst",
    config=SCSTConfig,
    run=run,
)
