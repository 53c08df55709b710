"""Tiny CLIP and SigLIP models with random weights, built in code and saved as a user's folder would be."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from tokenizers import processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

CONTEXT = 24


def _tokenizer(start: str | None, end: str):
    tokenizer = tiny.tokenizer([], bos=start, eos=end, pad="<pad>")
    tokenizer.model_max_length = CONTEXT
    template = f"{start or ''} $A {end}".strip()
    special = [(t, tokenizer.convert_tokens_to_ids(t)) for t in (start, end) if t]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


def _text(tokenizer, **more) -> dict:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
           "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    return {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **shape, **ids, **more}


def clip(folder: Path) -> Path:
    tokenizer = _tokenizer("<start>", "<end>")
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=_text(tokenizer), vision_config=tiny.VISION, projection_dim=16))
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    tokenizer = _tokenizer(None, "</s>")
    tokenizer.model_input_names = ["input_ids"]
    torch.manual_seed(7)  # cosines of both signs
    model = SiglipModel(SiglipConfig(text_config=_text(tokenizer, projection_size=32), vision_config=tiny.VISION))
    model.save_pretrained(folder)
    images = SiglipImageProcessorPil(size={"height": 64, "width": 64})
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder
