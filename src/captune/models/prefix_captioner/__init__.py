"""HAR's captioner as an ordinary transformers model: frozen image encoder, MLP projector, causal language model.

    v = E(I)                    the encoder's visual embedding of an image           (B, D_v), or (B, k, D_v)
    p = W_proj(v)               the soft visual prefix, k tokens as wide as the LM's (B, k, D_h)
    P(y_t | y_<t, p)            the language model continues  p, prompt

HAR's section III-A, with CLIP ViT-L/14 and Mistral-7B; here E is the image side of any CLIP, SigLIP, DINOv2 or similar
folder, or a convolutional encoder, and the LM whatever `AutoModelForCausalLM` loads:

    model, processor = assemble("storybook-clip", "path/of/an/lm")
    model.save_pretrained("captioner"); processor.save_pretrained("captioner")

Importing this package registers the model with AutoConfig, AutoModel, AutoModelForImageTextToText and AutoProcessor.
"""

from __future__ import annotations

import warnings
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

import captune.models.encoders.efficientnet_lite  # noqa: F401  registers an image encoder with the Auto classes
from captune.models.prefix_captioner.assembly import assemble
from captune.models.prefix_captioner.configuration import PrefixConfig
from captune.models.prefix_captioner.modeling import PrefixForConditionalGeneration, PrefixModel
from captune.models.prefix_captioner.processing import PrefixProcessor

__all__ = ["PrefixConfig", "PrefixForConditionalGeneration", "PrefixModel", "PrefixProcessor", "assemble"]

AutoConfig.register(PrefixConfig.model_type, PrefixConfig, exist_ok=True)
AutoModel.register(PrefixConfig, PrefixModel, exist_ok=True)
AutoModelForImageTextToText.register(PrefixConfig, PrefixForConditionalGeneration, exist_ok=True)
AutoProcessor.register(PrefixConfig, PrefixProcessor, exist_ok=True)


def _from_pretrained_parts(*parts: Any, **settings: Any) -> tuple[PrefixForConditionalGeneration, PrefixProcessor]:
    warnings.warn(
        "PrefixForConditionalGeneration.from_pretrained_parts is now captune.models.prefix_captioner.assemble",
        FutureWarning,
        stacklevel=2,
    )
    return assemble(*parts, **settings)


setattr(PrefixForConditionalGeneration, "from_pretrained_parts", staticmethod(_from_pretrained_parts))  # noqa: B010
