"""Settings of `captune reward-model train`."""

from __future__ import annotations

from dataclasses import dataclass

from captune.models.encoders.base import DEFAULT_IMAGE_ENCODER
from captune.training.config import Count, HeadsConfig, Several, defaults, setting


@dataclass(kw_only=True)
@defaults(
    {
        "output": "the folder to write, which reward_model:FOLDER scores with",
        "batch_size": "pairs per step",
        "eval_steps": "steps between two looks at the pairs that choose the step, each with a checkpoint",
        "patience": "looks without a better accuracy after which training stops",
    },
    dropout=0.2,
    max_steps=500,
    eval_steps=25,
    patience=10,
)
class RewardModelConfig(HeadsConfig):
    """Settings of `captune reward-model train`."""

    pairs: str = setting("preferences: a file of captune pairs, a table of battles, an arena's .sqlite", group="data")
    images: str | None = setting(
        "the source of the images, by image_id; default: those that the file of pairs holds or names",
        None,
        group="data",
        metavar="SOURCE",
    )
    eval_pairs: str | None = setting(
        "preferences, of no other use, on which accuracy is stated; default: those of a tenth of the images of "
        "--pairs, 500 at most; another tenth chooses the step",
        None,
        group="data",
    )
    limit: Count | None = setting("use only the first N of --pairs", None, group="data")
    encoder: str = setting(
        "frozen: a CLIP's or SigLIP's folder or hub name, or an encoder pair's folder", DEFAULT_IMAGE_ENCODER,
        group="model",
    )  # fmt: skip
    hidden: Several = setting("units of the hidden layer", 128, group="model")
