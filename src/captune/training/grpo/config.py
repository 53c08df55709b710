"""Settings of `captune grpo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from captune.errors import SettingError
from captune.training.config import Count, RewardedConfig, Several, Weight, at_least, defaults, setting, with_presets
from captune.training.method import Method

PRESETS: dict[str, dict[str, Any]] = {"captune": {}, "cim": {"num_generations": 5}}


@with_presets(PRESETS)
@dataclass(kw_only=True)
@defaults(max_steps=60, learning_rate=5e-4, beta=0.1, num_generations=8)
class CaptionGRPOConfig(RewardedConfig):
    """Settings of `captune grpo`."""

    preset: Literal["captune", "cim"] = setting("where other defaults come from", "captune")
    steps_per_generation: Several = setting(
        "optimiser steps that share one sampling, each with images of its own",
        1,
        group="sampling",
        aliases=("updates_per_generation",),
    )
    num_iterations: Several = setting("times that a sampled caption is learned from", 1, group="sampling")
    epochs: Annotated[float, Field(gt=0, le=10**6)] | None = setting(
        "passes over the images; default: --max-steps", None
    )
    gradient_checkpointing: bool = setting("less memory, slower", False)
    keep_vision: bool = setting("keep visual features on disk, for later passes", False)
    corpus: Path | None = setting("retrieval corpus of --preset cim", None, group="reward")
    latent_mapper: Path | None = setting(
        "a fitted mapper: ViZer's latent loss is added to the reward's", None, group="reward", aliases=("latent",)
    )
    latent_weight: Weight = setting("weight of that loss", 0.1, group="reward")
    eval_steps: Count = setting(
        "optimiser steps between evaluations, and between checkpoints", 10, group="monitor", aliases=("watch_steps",)
    )
    early_stopping_patience: Annotated[int, Field(ge=0, le=10**9)] = setting(
        "evaluations without a new best until the run stops (0: never)", 3, group="monitor", aliases=("patience",)
    )

    def __post_init__(self) -> None:
        if self.preset == "cim" and not self.reward:
            if self.corpus is None:
                raise SettingError("--preset cim needs --corpus: a folder that `captune corpus build` made")
            self.reward = f"grc:{self.corpus} + qir:{self.corpus}"
        super().__post_init__()
        at_least(self, 2, "num_generations")


METHOD = Method(
    name="grpo",
    summary="train a captioner with any scorer as the reward (GRPO)",
    description="Samples captions of each image, scores them, and makes the better ones likelier. The reward is a "
    "scorer or a weighted sum of scorers (captune scorers lists them); its parts are logged separately.",
    example="captune grpo --model storybook --images storybook:train --reward cider --output runs/cider",
    config=CaptionGRPOConfig,
    run="captune.training.grpo.train:run",
    presets=PRESETS,
)
