"""Settings of `captune sc-captioner`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from captune.data.schemes import scheme_of
from captune.errors import SettingError
from captune.training.config import RLConfig, defaults, setting
from captune.training.method import Method


@dataclass(kw_only=True)
@defaults(
    {
        "num_generations": "corrections sampled for the caption of an image",
        "temperature": "temperature of both turns",
        "beta": "weight of KL of the first turn to that before training",
    },
    num_generations=5,
    beta=0.05,
)
class SCConfig(RLConfig):
    """Settings of `captune sc-captioner`."""

    fact_source: str = setting(
        "what reads captions: grammar, factual, factual:FOLDER, or storybook (exact facts); default: storybook on "
        "storybook images, else grammar",
        "auto",
        group="reward",
        aliases=("elements",),
    )
    baseline: Literal["mean", "none"] = setting(
        "b: the mean reward of a caption's other corrections, or 0 as published", "mean", group="reward"
    )
    unchanged_reward: Annotated[float, Field(ge=-1000, le=1000)] = setting(
        "`hard` of a caption that is not changed (published: -1)", 0.0, group="reward", aliases=("unchanged",)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fact_source == "auto":
            scheme = scheme_of(self.images)
            self.fact_source = scheme.name if scheme.fact_reader() is not None else "grammar"
        if self.baseline == "mean" and self.num_generations < 2:
            raise SettingError("--num-generations must be at least 2 (1 with --baseline none)")


METHOD = Method(
    name="sc-captioner",
    summary="train a captioner to correct its own captions (SC-Captioner)",
    description="The captioner writes a caption, is asked to correct it, and is rewarded for each object, attribute "
    "and relation that the correction rightly adds or removes. `--decoder self-correct` captions in two turns.",
    example="captune sc-captioner --model storybook --adapter runs/sft/adapter --images storybook:train "
    "--output runs/sc",
    config=SCConfig,
    run="captune.training.sc_captioner.train:run",
)
