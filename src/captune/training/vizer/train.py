"""ViZer: a captioner learns from images without captions (Byun et al., "Unifying Vision-Language Latents for Zero-label
Image Caption Enhancement").

Two steps. A *mapper* is fitted so that what a caption says predicts what the image
shows (`captune.models.vizer_mapper`);
then the captioner's LoRA is trained on unlabelled images so that its captions agree with their images under the frozen
mapper, L_zero = L_ViZer = 1 - cos(F_I, F_T_hat) (section 3.2).

    ViZer_GT   mapper captions: ground truth             --mapper-captions storybook:train
    ViZer_G    mapper captions: the model's own          --mapper-captions generated | sampled

Three objectives move the captioner:

- `latent`, the paper's: write a caption with the current model, take its hidden states f_psi, descend 1 - cos through
  the frozen mapper into the LoRA weights. The words themselves are not moved, only the states that go with them.
- `straight_through`: the same loss, with a gradient that reaches the words: the sampled tokens enter the reader as
  one-hot vectors whose gradient is that of the model's own distribution.
- `reward`: the mapper's cosine is the reward of GRPO (`captune.training.grpo.train`), with KL to the base. After `rounds` have
  passed, each with a mapper fitted anew on samples of the captioner as it then is (and KL to that captioner), the words
  that the first mapper could not tell apart, because the base said them so rarely or so falsely, have been learned.

Presets, reported in `studies/vizer` whatever they show:

- `paper`, the most literal reading: latent, greedy captions, the image in context, raw cosine, mean pooling, states at
  the caption's tokens (t+1:), width 256, one epoch for the mapper. The paper does not state learning rates, batch
  sizes or the pooling; ours are the defaults below.
- `captune`, what measured best on storybook:val (settings chosen there and nowhere else).

*Guidance in the first mapper's captions.* A base that names a relation in one caption of fifty leaves little to learn
it from. Under classifier-free guidance (`captune.decoding.cfg`), which trains nothing either, it names more of what it
sees and less of what it always says. Of an image's `mapper_samples` one is drawn so: were all of them, what guidance
hardly names, such as sizes, would be lost. Later rounds need none.

    captune vizer --model storybook --images storybook:unlabelled --seed 7 --output runs/g
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.scorers.image.vizer_mapper import ViZerScorer
from captune.training.lifecycle import TrainingConfig, conclude, load_training_images, start
from captune.training.method import Method
from captune.training.vizer.mapper_fit import fit_mapper, own_captions
from captune.training.vizer.objectives import ViZerTrainer

PRESETS: dict[str, dict[str, Any]] = {
    "captune": {},  # the defaults of ViZerConfig
    "paper": {
        "objective": "latent",
        "mapper_captions": "generated",
        "mapper_size": None,
        "mapper_samples": 1,
        "guidance": 0.0,
        "mapper_epochs": 1,
        "width": 256,
        "feature": "connector",
        "pool": "mean",
        "caption_pool": "mean",
        "blind": False,
        "centred": False,
        "shift": False,
        "whitened": 0,
        "rounds": 1,
        "beta": 0.0,
        "temperature": 1.0,
        "learning_rate": 5e-4,
        "warmup_steps": 10,
        "max_steps": 60,
    },
}


@dataclass
class ViZerConfig(MapperConfig, TrainingConfig):
    """Settings of `captune vizer`; the defaults are the preset `captune`."""

    preset: Literal["captune", "paper"] = field(default="captune", metadata={"help": "where other defaults come from"})
    objective: Literal["reward", "latent", "straight_through"] = field(
        default="reward", metadata={"help": "how the mapper moves the captioner"}
    )
    mapper_captions: str = field(
        default="sampled",
        metadata={"help": "sampled | generated (greedy): the model's own; or a source with references (ViZer_GT)"},
    )
    mapper_size: int | None = field(default=None, metadata={"help": "images to fit the mapper on; default: all"})
    mapper_samples: int = field(default=3, metadata={"help": "captions per image to fit the mapper on"})
    guidance: float = field(
        default=2.0,
        metadata={"help": "in the first round, one of an image's sampled captions is drawn under this scale (0: none)"},
    )
    mapper_epochs: int = field(default=6, metadata={"help": "epochs of the mapper's fit"})
    mapper_learning_rate: float = field(default=1e-3, metadata={"help": "learning rate of the mapper's fit"})
    width: int = field(default=256, metadata={"help": "hidden width of the MLP h"})
    pool: Literal["mean", "quarters"] = field(
        default="quarters",
        metadata={"help": "F_I: mean of an image's tokens, or of each quarter of it"},
    )
    caption_pool: Literal["mean", "last", "tokens"] = field(
        default="tokens", metadata={"help": "f_psi over the caption: averaged, its end, or each token mapped"}
    )
    blind: bool = field(default=True, metadata={"help": "read the caption without its image in context"})
    centred: bool = field(default=True, metadata={"help": "measure the cosine from the mean image feature"})
    whitened: int = field(
        default=64, metadata={"help": "measure it in F_I's first N principal directions, at unit variance (0: off)"}
    )
    max_steps: int = field(default=80, metadata={"help": "optimiser steps of each round"})
    warmup_steps: int = field(default=5, metadata={"help": "steps until the peak, in each round"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak learning rate of AdamW; warm-up, then cosine"})
    rounds: int | None = field(
        default=None, metadata={"help": "times a mapper is fitted and max_steps are trained; default: 4 (reward) or 1"}
    )
    beta: float = field(default=0.05, metadata={"help": "weight of KL to the captioner at the start of the round"})
    repetition_weight: float = field(
        default=0.5, metadata={"help": "what the share of repeated 3-grams costs (reward)"}
    )
    num_generations: int = field(default=8, metadata={"help": "captions sampled per image (reward)"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of every sampled caption"})
    max_new_tokens: int = field(default=40, metadata={"help": "longest caption in tokens"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "straight_through" and not self.blind:
            raise ValueError("--objective straight_through reads the caption alone: say --blind")
        if self.rounds is None:
            self.rounds = 4 if self.objective == "reward" else 1
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, it is {self.rounds}")
        if self.guidance and self.guidance <= 1:
            raise ValueError(f"--guidance is a scale above 1, or 0 for none, not {self.guidance:g}")
        if self.num_generations < 2:
            raise ValueError(f"--num-generations must be at least 2, it is {self.num_generations}")

    @property
    def zero_label(self) -> bool:
        """Whether the mapper is fitted on the model's own captions (ViZer_G), not on a source's (ViZer_GT)."""
        return self.mapper_captions in ("sampled", "generated")

    def mapper_config(self) -> MapperConfig:
        return MapperConfig(**{name: getattr(self, name) for name in MapperConfig.__dataclass_fields__})


def mapper_images(config: ViZerConfig, images: Any) -> Any:
    """The images that the mapper is fitted on: the first `mapper_size` of these or, for ViZer_GT, of its own source."""
    if not config.zero_label:
        images = load_training_images(config, references=True, source=config.mapper_captions)
    return images if config.mapper_size is None else images.select(range(min(config.mapper_size, len(images))))


def build_mapper(
    captioner: Captioner, config: ViZerConfig, run_dir: RunDir, images: Any, *, first_step: int = 0
) -> Mapper:
    """Fits the mapper on the images or, for ViZer_GT, on the captioned source, and saves it in `config.output`.

    A run that goes on takes the mapper that `config.output` has. In the run's metrics the course of the fit lies over
    the training steps that it is for, from `first_step` on.
    """
    folder = RunDir(config.output).mapper
    if (folder / "config.json").is_file():
        return Mapper.load(folder).to(captioner.device)
    images = mapper_images(config, images)
    torch.manual_seed(config.seed)  # the same samples when a run goes on with its second round
    captions = own_captions(captioner, images, config) if config.zero_label else list(images["references"])
    mapper, losses = fit_mapper(
        captioner,
        images,
        captions,
        config.mapper_config(),
        epochs=config.mapper_epochs,
        lr=config.mapper_learning_rate,
        seed=config.seed,
    )
    mapper.save(folder)
    points = min(50, len(losses))
    for i in range(points):
        step = first_step + round(config.max_steps * i / points, 2)
        run_dir.log(step=step, mapper_loss=losses[i * len(losses) // points])
    return mapper


def train_by_reward(
    captioner: Captioner,
    config: ViZerConfig,
    run_dir: RunDir,
    images: Any,
    reward_of: Callable[[ViZerScorer], Callable[..., list[float]]] = lambda scorer: scorer,
    watched: bool = False,
) -> None:
    """`rounds` times: sample, fit the mapper, train. A finished round is kept, and skipped when the run goes on.

    The cosine alone does not mind a thing that is named three times, so repetition costs `repetition_weight`.
    `reward_of` makes the reward out of the round's scorer; a control puts something else in its place. `watched` has
    the run judged by what it does not climb (`captune.training.monitor.watch`).
    """
    from captune.training.grpo.train import marked_only, train_with_reward

    for number in range(config.rounds or 1):
        output = run_dir.path / f"round-{number + 1}"
        if (output / "adapter" / "adapter_model.safetensors").is_file():
            captioner.load_adapter_weights(output / "adapter")
            continue
        guidance = 0.0 if number else config.guidance
        part = replace(config, output=output, seed=config.seed + number, guidance=guidance)
        mapper = build_mapper(captioner, part, run_dir, images, first_step=number * config.max_steps)
        mapper.save(run_dir.mapper)  # the last round's is the run's
        rewards = [(reward_of(ViZerScorer(captioner=captioner, mapper=mapper)), 1.0)]
        if config.repetition_weight:
            rewards.append((load_scorer("repetition"), -config.repetition_weight))
        steps = number * config.max_steps
        watch = {}
        if watched:
            watch = marked_only(config, captioner, [own for own, _ in rewards], run_dir, first_step=steps)
        train_with_reward(
            captioner,
            images,
            rewards,
            part,
            run_dir,
            beta=config.beta,
            num_generations=config.num_generations,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            first_step=steps,
            **watch,
        )
        captioner.save_adapter(output / "adapter")


def run(config: ViZerConfig) -> RunDir:
    """Fits the mapper, trains, saves `mapper/` and `adapter/`, evaluates, writes the report; see `TrainingConfig`."""
    run_dir, captioner = start(config, "vizer")
    images = load_training_images(config)
    if config.objective == "reward":
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        train_by_reward(captioner, config, run_dir, images, watched=True)
    else:
        mapper = build_mapper(captioner, config, run_dir, images)
        torch.manual_seed(config.seed)  # the same LoRA, whether the mapper was fitted now or taken
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        with captioner.share_vision():
            ViZerTrainer.fit(captioner, images, config, run_dir, mapper=mapper, vizer_config=config)
    row = f"ViZer {'zero-label' if config.zero_label else 'GT'}{' (paper)' if config.preset == 'paper' else ''}"
    method = f"ViZer, {config.objective} objective, mapper captions: {config.mapper_captions}"
    return conclude(config, run_dir, captioner, row=row, method=method, role="zero" if config.zero_label else "gt")


METHOD = Method(
    name="vizer",
    summary="improve a captioner with unlabelled images (ViZer)",
    description="Fits a mapper from captions to visual features, then trains the captioner (LoRA) so that its own "
    "captions agree with the images: no label needed. --preset paper is the literal reading of the paper, --preset "
    "captune the settings that measured best.",
    example="captune vizer --model storybook --images storybook:unlabelled --seed 7 --output runs/g",
    config=ViZerConfig,
    run=run,
    presets=PRESETS,
)
