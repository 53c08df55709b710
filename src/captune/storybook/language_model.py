"""Build storybook-lm, a language model that has read storybook's captions and never seen a image.

An ordinary `GPT2LMHeadModel` of 0.9 M parameters with the tokenizer of the storybook captioner. It is what a method
needs that brings its own eyes: ZeroCap guides it with an image encoder, HAR gives it a prefix. Only texts of
storybook:train are read, in the words of `captune.storybook.grammar`: <bos> caption <eos>, one to a row.
"""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captune.storybook.captioner_model import build_tokenizer
from captune.storybook.grammar import reference
from captune.storybook.tower import optimise, schedule
from captune.storybook.world import Scene, random_for, sample_scene

logger = logging.getLogger(__name__)

SPLIT = "train"
MAX_TOKENS = 128


@dataclass
class LanguageModelConfig:
    """Every setting of the build; the defaults made the shipped model."""

    seed: int = field(default=0, metadata={"help": "seed of the weights and of the scenes written about"})
    num_scenes: int = field(default=20_000, metadata={"help": "scenes of storybook:train, described again each step"})
    steps: int = field(default=900, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=128, metadata={"help": "captions per step"})
    lr: float = field(default=2e-3, metadata={"help": "peak learning rate"})
    width: int = field(default=128, metadata={"help": "width of the transformer"})
    layers: int = field(default=4, metadata={"help": "its layers"})
    bf16: bool = field(default=True, metadata={"help": "matrix products in bfloat16: faster where the CPU has it"})
    validation: int = field(default=500, metadata={"help": "captions of storybook:val to measure on"})


def build_model(tokenizer: Any, config: LanguageModelConfig) -> Any:
    """An untrained GPT2LMHeadModel."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=MAX_TOKENS,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.width // 32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **ids,
    )
    model = GPT2LMHeadModel._from_config(gpt2, attn_implementation="eager")  # sdpa's backward is slow on a CPU
    for module in model.modules():  # the usual initial values are too small at this width
        if hasattr(module, "nf"):  # GPT-2's linear layers: weight (in, out)
            nn.init.normal_(module.weight, std=module.weight.shape[0] ** -0.5)
    model.generation_config.max_new_tokens = 40
    return model


def encode(tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    """Model inputs (N, T): <bos> text <eos>, padded on the right; the labels are -100 on padding and on <bos>."""
    rows = [
        [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        for ids in tokenizer(texts, add_special_tokens=False).input_ids
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[tokenizer.pad_token_id] * (longest - len(row))] for row in rows])
    labels = torch.tensor([[-100, *row[1:], *[-100] * (longest - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long(), "labels": labels}


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Return exp of the mean negative log-likelihood per token, the end of the caption included."""
    return float(model(**encode(tokenizer, texts)).loss.exp())


def build(config: LanguageModelConfig, output: Path) -> dict[str, Any]:
    """Train the model; save it, its tokenizer and `build.json` (settings, seconds, figures) in `output`."""
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, config)
    scenes: list[Scene] = [sample_scene(SPLIT, config.seed, index) for index in range(config.num_scenes)]
    rng = random.Random(f"{config.seed}/language model")

    def loss_of(step: int) -> Tensor:
        texts = [reference(rng.choice(scenes), rng) for _ in range(config.batch_size)]
        return model(**encode(tokenizer, texts)).loss

    model.train()
    losses = optimise(
        list(model.parameters()),
        loss_of,
        steps=config.steps,
        lr=config.lr,
        factor=partial(schedule, steps=config.steps),
        name="language model",
        bf16=config.bf16,
    )
    model.eval()
    unseen = [
        reference(sample_scene("val", 91, i), random_for("val", 91, i, "references")) for i in range(config.validation)
    ]
    log = {
        "config": vars(config),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": round(float(np.mean(losses[-50:])), 4),
        "perplexity on storybook:val": round(perplexity(model, tokenizer, unseen), 4),
    }
    logger.info("%s", log)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "build.json").write_text(json.dumps(log, indent=1) + "\n")
    return log
