"""Settings of `captune har`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from captune.training.config import Count, Rate, RunConfig, Several, Tokens, defaults, like, setting
from captune.training.method import Method
from captune.training.scst.config import SCSTConfig
from captune.training.sft.config import SFTConfig


@dataclass(kw_only=True)
@defaults(
    {
        "output": "the folder to write",
        "images": "images with references: a file, a dataset, storybook:train",
        "train_all_weights": "stage 1 trains all of the language model instead of LoRA",
    },
)
class HARConfig(RunConfig):
    """Settings of `captune har`; those of a stage that are not here are the defaults of `captune sft` and `scst`."""

    image_encoder: str = setting(
        "a folder or hub name (CLIP, SigLIP, DINOv2, ConvNeXt, ...), efficientnet-lite2, or storybook-clip",
        group="model",
    )
    language_model: str = setting(
        "a causal language model's folder or hub name, smollm2-135m, or storybook-lm", group="model"
    )
    num_prefix_tokens: Several = setting("k, tokens of the soft prefix", 16, group="model")
    image_feature: Literal["pooled", "patches", "both"] = setting(
        "v: the encoder's one embedding, its patches averaged over a grid, or both", "pooled", group="model"
    )
    whole_image: bool = setting(
        "squeeze the whole image into the encoder's square, where its own processor crops the center",
        False,
        group="model",
    )
    begin_token: bool = setting(
        "begin each text with the language model's BOS token: steadier gradients with pretrained ones",
        False,
        group="model",
    )
    mle_steps: Count = setting("optimiser steps of stage 1", 600, group="stage 1")
    mle_batch_size: Several = setting("images per step of stage 1", 32, group="stage 1")
    mle_learning_rate: Rate = setting("peak learning rate of stage 1", 1e-3, group="stage 1")
    image_views: Several = like(SFTConfig, "image_views", group="stage 1")
    texts: str | None = like(SFTConfig, "texts", group="stage 1")
    text_steps: Annotated[int, Field(ge=0, le=10**9)] = like(SFTConfig, "text_steps", group="stage 1")
    scst_steps: Count = setting("optimiser steps of stage 2", 60, group="stage 2")
    scst_batch_size: Several = setting("images per step of stage 2", 16, group="stage 2")
    scst_learning_rate: Rate = setting("peak learning rate of stage 2", 5e-4, group="stage 2")
    reward: str = like(SCSTConfig, "reward", help="R of stage 2: 'cider', 'cider + 0.5*clip', ...", group="stage 2")
    baseline: Literal["greedy", "mean"] = like(SCSTConfig, "baseline", group="stage 2")
    num_generations: Several = like(SCSTConfig, "num_generations", group="stage 2")
    max_new_tokens: Tokens = like(SCSTConfig, "max_new_tokens", group="stage 2")
    accept_reward: bool = like(SCSTConfig, "accept_reward", group="stage 2")
    watch: str = like(SCSTConfig, "watch", group="stage 2")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stage_1(), self.stage_2()  # refuse what a stage refuses before the first one begins

    def _common(self) -> dict[str, Any]:
        shared = (field.name for field in fields(RunConfig))
        return {name: getattr(self, name) for name in shared if name not in ("output", "train_all_weights")}

    def stage_1(self) -> SFTConfig:
        """Return the settings of stage 1, maximum likelihood."""
        return SFTConfig(
            model=str(self.output / "parts"),
            output=self.output / "mle",
            train_connector=True,
            train_all_weights=self.train_all_weights,
            max_steps=self.mle_steps,
            batch_size=self.mle_batch_size,
            learning_rate=self.mle_learning_rate,
            image_views=self.image_views,
            texts=self.texts,
            text_steps=self.text_steps,
            **self._common(),
        )

    def stage_2(self) -> SCSTConfig:
        """Return the settings of stage 2, self-critical training."""
        return SCSTConfig(
            model=str(self.output / "captioner"),
            output=self.output / "scst",
            reward=self.reward,
            baseline=self.baseline,
            max_steps=self.scst_steps,
            batch_size=self.scst_batch_size,
            learning_rate=self.scst_learning_rate,
            num_generations=self.num_generations,
            max_new_tokens=self.max_new_tokens,
            accept_reward=self.accept_reward,
            watch=self.watch,
            **self._common(),
        )


METHOD = Method(
    name="har",
    summary="build a captioner of an image encoder and a language model (HAR)",
    description="Puts a frozen image encoder, a projector and a causal language model together, trains them on "
    "references by maximum likelihood, then refines them by self-critical training on a reward.",
    example="captune har --image-encoder storybook-clip --language-model storybook-lm --images storybook:train "
    "--output runs/har",
    config=HARConfig,
    run="captune.training.har.train:run",
)
