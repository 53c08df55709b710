"""Settings of `captune scst`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from captune.errors import SettingError
from captune.training.config import RewardedConfig, defaults, setting
from captune.training.method import Method


@dataclass(kw_only=True)
@defaults(
    {"reward": "R, a scorer or a weighted sum: 'cider + 0.5*clip'"},
    reward="cider",
    num_generations=5,
    max_steps=60,
    learning_rate=5e-4,
)
class SCSTConfig(RewardedConfig):
    """Settings of `captune scst`."""

    baseline: Literal["greedy", "mean"] = setting(
        "b: the reward of the greedy caption, or of the other samples on average", "greedy", group="reward"
    )
    end_token: bool = setting("the end of a caption is a word in CIDEr-D", True, group="reward")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline == "mean" and self.num_generations < 2:
            raise SettingError(
                f"--num-generations must be at least 2 with --baseline mean, it is {self.num_generations}"
            )


METHOD = Method(
    name="scst",
    summary="self-critical training on references (SCST)",
    description="Samples captions of each image and makes those likelier that score above the captioner's own greedy "
    "caption (or above the other samples). Usually continues from `captune sft`'s adapter, with CIDEr-D as the reward.",
    example="captune scst --model storybook --adapter runs/sft/adapter --images storybook:train --reward cider "
    "--output runs/scst",
    config=SCSTConfig,
    run="captune.training.scst.train:run",
)
