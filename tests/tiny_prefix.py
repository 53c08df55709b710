"""Tiny image encoders and language models, and the prefix captioners that are made out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch

VISION = {**tiny.VISION, "patch_size": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 128}


def _clip(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    text = {**SMALL, "intermediate_size": 32, "vocab_size": 50, "num_hidden_layers": 1}
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)), images


def _siglip(folder: Path) -> tuple[Any, Any]:
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**VISION)), SiglipImageProcessorPil(size={"height": 64, "width": 64})


def _dinov2(folder: Path) -> tuple[Any, Any]:
    from transformers import BitImageProcessorPil, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    images = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    shape = {**VISION, "mlp_ratio": 2, "num_register_tokens": 3}
    shape.pop("intermediate_size")
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape)), images


def _efficientnet(folder: Path) -> tuple[Any, Any]:
    from captune.models.encoders import efficientnet_lite

    config = efficientnet_lite.EfficientNetLiteConfig(width=0.25, depth=0.3, image_size=72, hidden_size=32)
    return efficientnet_lite.EfficientNetLiteModel(config), efficientnet_lite.image_processor(72)


def _resnet(folder: Path) -> tuple[Any, Any]:
    from transformers import BitImageProcessorPil, ResNetConfig, ResNetModel

    images = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 32], depths=[1, 1], layer_type="basic")), images


ENCODERS = {"clip": _clip, "siglip": _siglip, "dinov2": _dinov2, "efficientnet": _efficientnet, "resnet": _resnet}


def encoder(kind: str, folder: Path) -> Path:
    """A folder as the hub has it: "clip" with its text side, "siglip" the image side alone, "dinov2" with registers,
    "efficientnet" (a map of 3 x 3) and "resnet" (pooled to (B, D, 1, 1)) convolutional ones."""
    torch.manual_seed(0)
    model, images = ENCODERS[kind](folder)
    _enlarge(model)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def language_model(kind: str, folder: Path) -> Path:
    """ "gpt2" (absolute positions, tied, no BOS, no spare row), "mistral" (two spare rows, BOS put in front), "opt"
    (tied embeddings narrower than the model), "phi" (a head with a bias), "gemma2" (a soft cap), "mamba" (no cache)."""
    import transformers as t

    names = (
        {"bos": "<s>", "eos": "</s>", "pad": "<pad>"} if kind == "mistral" else {"bos": None, "eos": "</s>", "pad": ""}
    )
    tokenizer = tiny.tokenizer([], **{**names, "pad": names["pad"] or "</s>"})
    if kind == "mistral":
        from tokenizers.processors import TemplateProcessing

        template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = template
    common = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id or tokenizer.eos_token_id,
              "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    rope = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
    config: Any = {
        "gpt2": lambda: t.GPT2Config(**common, **GPT2),
        "mistral": lambda: t.MistralConfig(**{**common, "vocab_size": len(tokenizer) + 2}, **rope, sliding_window=None),
        "opt": lambda: t.OPTConfig(**common, **SMALL, ffn_dim=64, word_embed_proj_dim=16),
        "phi": lambda: t.PhiConfig(**common, **rope),
        "gemma2": lambda: t.Gemma2Config(**common, **rope, head_dim=8),
        "mamba": lambda: t.MambaConfig(**common, hidden_size=32, num_hidden_layers=2, state_size=4),
    }[kind]()
    torch.manual_seed(1)
    model = t.AutoModelForCausalLM.from_config(config)
    _enlarge(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _enlarge(model: Any) -> None:
    """Random weights large enough that outputs differ from image to image."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))


def prefix_captioner(folder: Path, image_encoder: str = "clip", lm: str = "mistral", **settings: Any) -> Path:
    """A saved prefix captioner."""
    from captune.models.prefix_captioner import assemble

    parts = (encoder(image_encoder, folder / "encoder"), language_model(lm, folder / "lm"))
    torch.manual_seed(2)
    settings = {"num_prefix_tokens": 4, **settings}
    model, processor = assemble(*parts, **settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
