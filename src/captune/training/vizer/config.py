"""Settings of `captune vizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from captune.errors import SettingError
from captune.models.vizer_mapper_config import MapperConfig
from captune.training.config import Count, Rate, RLConfig, Several, Weight, at_least, defaults, setting, with_presets
from captune.training.method import Method

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


@with_presets(PRESETS)
@dataclass(kw_only=True)
@defaults(
    {
        "max_steps": "optimiser steps of each round",
        "warmup_steps": "steps until the peak, in each round",
        "beta": "weight of KL to the captioner at the start of the round",
        "num_generations": "captions sampled per image (reward)",
        "temperature": "temperature of every sampled caption",
    },
    pool="quarters",
    caption_pool="tokens",
    blind=True,
    centred=True,
    whitened=64,
    max_steps=80,
    warmup_steps=5,
    learning_rate=2e-3,
    beta=0.05,
    num_generations=8,
)
class ViZerConfig(MapperConfig, RLConfig):
    """Settings of `captune vizer`; the defaults are the preset `captune`."""

    preset: Literal["captune", "paper"] = setting("where other defaults come from", "captune")
    objective: Literal["reward", "latent", "straight_through"] = setting(
        "how the mapper moves the captioner", "reward", group="reward"
    )
    rounds: Several | None = setting(
        "times a mapper is fitted and --max-steps are trained; default: 4 (reward) or 1", None
    )
    repetition_weight: Weight = setting("cost of the share of repeated 3-grams (reward)", 0.5, group="reward")
    mapper_captions: str = setting(
        "sampled | generated (greedy): the model's own; or a source with references (ViZer_GT)",
        "sampled",
        group="mapper",
    )
    mapper_size: Count | None = setting("images to fit the mapper on; default: all", None, group="mapper")
    mapper_samples: Several = setting("captions per image to fit the mapper on", 3, group="mapper")
    guidance: Weight = setting(
        "in the first round, one of an image's captions is sampled under this scale (0: none)", 2.0, group="mapper"
    )
    mapper_epochs: Several = setting("epochs of the mapper's fit", 6, group="mapper")
    mapper_learning_rate: Rate = setting("learning rate of the mapper's fit", 1e-3, group="mapper")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "straight_through" and not self.blind:
            raise SettingError("--objective straight_through reads the caption alone: add --blind")
        if self.rounds is None:
            self.rounds = 4 if self.objective == "reward" else 1
        if self.guidance and self.guidance <= 1:
            raise SettingError(f"--guidance is a scale above 1, or 0 for none, not {self.guidance:g}")
        at_least(self, 2, "num_generations")

    @property
    def zero_label(self) -> bool:
        """Whether the mapper is fitted on the model's own captions (ViZer_G), not on a source's (ViZer_GT)."""
        return self.mapper_captions in ("sampled", "generated")

    def trainer_settings(self) -> dict[str, Any]:
        """Return the settings of `ViZerTrainer` besides the mapper, for the objectives that are losses."""
        return {
            "objective": self.objective,
            "do_sample": self.mapper_captions == "sampled",
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "beta": self.beta,
        }

    def mapper_config(self) -> MapperConfig:
        """Return the mapper's part of the settings."""
        return MapperConfig(**{name: getattr(self, name) for name in MapperConfig.__dataclass_fields__})


METHOD = Method(
    name="vizer",
    summary="improve a captioner with unlabelled images (ViZer)",
    description="Fits a mapper from captions to visual features, then trains the captioner (LoRA) so that its own "
    "captions agree with the images: no label needed. --preset paper is the literal reading of the paper, --preset "
    "captune the settings that measured best.",
    example="captune vizer --model storybook --images storybook:unlabelled --seed 7 --output runs/g",
    config=ViZerConfig,
    run="captune.training.vizer.train:run",
    presets=PRESETS,
)
