"""What differs between families of vision-language models: one row each, and a generic row for all others.

A row says where the language model, the vision tower and the connector sit (dotted paths below the
`...ForConditionalGeneration` object), which prompt to use, and which chat template when the processor has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from captune.errors import CaptionerError
from captune.models.requests import PROMPT

# A template for base models, which have no turns: the parts of every message in order, nothing around them.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
)

# LLaVA-1.5's published prompt format, for folders that were saved without it.
LLAVA_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['role'].upper() + ': ' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}{{ ' ' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)


@dataclass(frozen=True)
class Family:
    """One family: where the parts of its models are, and how it is prompted.

    Attributes:
        name: of the row.
        language_model: dotted path below the model.
        vision: dotted path of the vision tower.
        connector: dotted paths of what lies between tower and language model.
        prompt: the text beside the image if the template has turns.
        base_prompt: the text beside the image if it has none.
        chat_template: for processors without one.
        max_new_tokens: of a caption, if the checkpoint does not say.
        tower_features: the inner model's method for what the connector reads, if there is one.
    """

    name: str
    language_model: str
    vision: str
    connector: tuple[str, ...]
    prompt: str = PROMPT
    base_prompt: str = ""
    chat_template: str | None = None
    max_new_tokens: int = 64
    tower_features: str | None = None

    def parts(self, core: nn.Module) -> list[nn.Module | nn.Parameter]:
        """Return what lies between the pixels and the language model: tower, connector, stray parameters."""
        return [attribute(core, path) for path in (self.vision, *self.connector)]

    def shared(self, core: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
        """Return the parts, by path, whose result `VisionCache` shares, and which must be frozen: all, or the tower."""
        paths = (self.vision,) if self.tower_features else (self.vision, *self.connector)
        return {path: attribute(core, path) for path in paths}


FAMILIES: dict[str, Family] = {
    "idefics3": Family(
        "idefics3", "model.text_model", "model.vision_model", ("model.connector",), chat_template=PLAIN_TEMPLATE
    ),
    "smolvlm": Family(
        "smolvlm", "model.text_model", "model.vision_model", ("model.connector",), chat_template=PLAIN_TEMPLATE
    ),
    "qwen2_vl": Family("qwen2_vl", "model.language_model", "model.visual", ("model.visual.merger",)),
    "qwen2_5_vl": Family("qwen2_5_vl", "model.language_model", "model.visual", ("model.visual.merger",)),
    "qwen3_vl": Family(
        "qwen3_vl",
        "model.language_model",
        "model.visual",
        ("model.visual.merger", "model.visual.deepstack_merger_list"),
    ),
    "llava": Family(
        "llava",
        "model.language_model",
        "model.vision_tower",
        ("model.multi_modal_projector",),
        chat_template=LLAVA_TEMPLATE,
    ),
    "llava_next": Family(
        "llava_next",
        "model.language_model",
        "model.vision_tower",
        ("model.multi_modal_projector", "model.image_newline"),
    ),
    "internvl": Family("internvl", "model.language_model", "model.vision_tower", ("model.multi_modal_projector",)),
    "prefix_captioner": Family(  # captune.models.prefix_captioner
        "prefix_captioner",
        "model.language_model",
        "model.vision_tower",
        ("model.projector",),
        tower_features="get_tower_features",  # so that the projector can learn while the tower's output is shared
    ),
}


def attribute(root: Any, path: str) -> Any:
    """Follow a dotted path, as in `attribute(model, "model.visual")`.

    Raises:
        AttributeError: a step is missing.
    """
    for step in path.split("."):
        root = getattr(root, step)
    return root


def family_for(core: PreTrainedModel, processor: Any) -> Family:
    """Return the row of a loaded model: its own, or a generic one that is read off the model.

    Raises:
        CaptionerError: the model is not supported; the message says why.
    """
    model_type = core.config.model_type
    row = FAMILIES.get(model_type) or _generic(core)
    if getattr(processor, "chat_template", None) is None and row.chat_template is None:
        raise CaptionerError(
            f"no prompt is known for model type {model_type!r}: it has no row in families.py and its processor "
            "has no chat template. Save the processor with a chat_template that emits the image token, or add a row."
        )
    return row


def _generic(core: PreTrainedModel) -> Family:
    model_type, inner = core.config.model_type, core.base_model
    if inner is core or not hasattr(inner, "get_image_features") or core.config.is_encoder_decoder:
        raise CaptionerError(
            f"model type {model_type!r} ({type(core).__name__}) is not supported: captune needs a decoder-only model "
            "whose inner model has get_image_features(). Use a LLaVA-like model class, or add a row to families.py."
        )
    if getattr(core.config, "image_token_id", None) is None:
        raise CaptionerError(
            f"model type {model_type!r} ({type(core).__name__}) is not supported: its config has no image_token_id, "
            "so the place of the image in the prompt is unknown. Use a LLaVA-like model class."
        )
    names = {module: name for name, module in core.named_modules()}
    language_model, vision = core.get_decoder(), core.get_encoder(modality="image")
    if language_model in (core, inner) or vision in (core, inner) or names.get(vision) is None:
        raise CaptionerError(
            f"model type {model_type!r} ({type(core).__name__}) is not supported: no separate language model and "
            "vision tower were found in it. Add a row to families.py that says where they are."
        )
    prefix = names[inner] + "."
    between = [
        prefix + name
        for name, _ in [*inner.named_children(), *inner.named_parameters(recurse=False)]
        if prefix + name not in (names[language_model], names[vision])
    ]
    return Family(model_type, names[language_model], names[vision], tuple(between))


def lora_targets(core: PreTrainedModel, family: Family) -> str:
    """Return a regular expression (peft: full match) for the linear layers of the language model, and nothing else.

    Raises:
        CaptionerError: the model has no linear layer.
    """
    root = attribute(core, family.language_model)
    linear = (nn.Linear, Conv1D)  # GPT-2's linear layers are called so
    leaves = sorted({name.rsplit(".", 1)[-1] for name, module in root.named_modules() if isinstance(module, linear)})
    if not leaves:
        raise CaptionerError(f"{family.name}: no linear layers below {family.language_model}; LoRA has no target")
    return rf"{re.escape(family.language_model)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, leaves))})"
