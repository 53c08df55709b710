"""The configuration of a prefix captioner."""

from __future__ import annotations

import math
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from captune.errors import SettingError


class PrefixConfig(PreTrainedConfig):
    """Settings of a prefix captioner.

    Args:
        vision_config: of the image encoder, as in its own folder.
        text_config: of the language model, as in its own folder.
        image_token_id: the placeholder; an image takes `num_prefix_tokens` of them.
        num_prefix_tokens: k.
        image_feature: "pooled": v is the encoder's one embedding of the image, which the MLP maps to k tokens;
            "patches": the patches are averaged over a grid of k cells (k a square), and the MLP maps each; "both": the
            MLP maps the embedding, then each of k - 1 cells.
        projector_width: hidden width of the MLP; default: the encoder's.
        projector_depth: its linear layers.
        head_bias: whether the language model's head has a bias.
        tie_word_embeddings: whether the head shares the embeddings' weights.

    Raises:
        SettingError: a number out of range.
    """

    model_type = "prefix_captioner"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="mistral"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    num_prefix_tokens: int = 16
    image_feature: Literal["pooled", "patches", "both"] = "pooled"
    projector_width: int | None = None
    projector_depth: int = 2
    head_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        k = self.num_prefix_tokens
        if self.projector_depth < 1 or k < 1:
            raise SettingError(f"projector_depth and num_prefix_tokens must be at least 1: {self.projector_depth}, {k}")
        if self.image_feature == "patches" and math.isqrt(k) ** 2 != k:
            raise SettingError(f'image_feature="patches" needs a square num_prefix_tokens (a grid), not {k}')
        if self.image_feature == "both" and (k < 2 or math.isqrt(k - 1) ** 2 != k - 1):
            raise SettingError(f'image_feature="both" needs num_prefix_tokens one above a square (a grid), not {k}')
