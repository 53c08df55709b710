"""How likely given captions are to a captioner: logits and log-probabilities of their tokens, by teacher forcing.

A plain forward pass evaluates the prompt, image tokens included, once for each caption. Here it is evaluated once for
all captions of an image (`captune.models.caching.prompts`), and logits are made at the captions' tokens only. Models
whose cache cannot be copied go the plain way; the logits differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from captune.models import inputs as batches
from captune.models.caching.prompts import PromptCache
from captune.models.captioner import Captioner


def caption_logits(
    captioner: Captioner, prompt: BatchFeature, rows: Sequence[int], tails: Sequence[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits that predict each token of the captions, the tokens, and which of them are real.

    Args:
        captioner: whose language model reads them.
        prompt: N prompts, left padded: from `Captioner.prepare`, or `text_prompt`.
        rows: of which prompt each of the B captions is.
        tails: the captions' token ids; none is empty.

    Returns:
        logits (B, T, V) float32, ids (B, T), mask (B, T), right padded.
    """
    rows, tails = list(rows), list(tails)
    width = max(map(len, tails))
    pad = captioner.tokenizer.pad_token_id
    ids = torch.tensor([tail + [pad] * (width - len(tail)) for tail in tails], device=captioner.device)
    mask = torch.tensor([[1] * len(tail) + [0] * (width - len(tail)) for tail in tails], device=captioner.device)
    logits = _shared(captioner, prompt, rows, ids, mask)
    if logits is None:
        logits = _plain(captioner, prompt, rows, tails, width)
    return logits.float(), ids, mask


def caption_log_probs(
    captioner: Captioner, prompt: BatchFeature, rows: Sequence[int], tails: Sequence[list[int]]
) -> Tensor:
    """Return log p(caption | prompt), the sum over the caption's tokens, (B,) float64; the arguments are the same."""
    logits, ids, mask = caption_logits(captioner, prompt, rows, tails)
    tokens = logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)
    return tokens.double().masked_fill(mask == 0, 0.0).sum(-1)


def text_prompt(captioner: Captioner) -> BatchFeature:
    """Return the prompt without an image, one row; see `Captioner.blind_prompt_ids`."""
    ids = torch.tensor([captioner.blind_prompt_ids()], device=captioner.device)
    return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _shared(captioner: Captioner, prompt: BatchFeature, rows: list[int], ids: Tensor, mask: Tensor) -> Tensor | None:
    prompts = PromptCache.of(captioner.core, prompt, rows) if prompt["input_ids"].shape[1] > 1 else None
    if prompts is None:
        return None
    own = prompts.prompt_index
    tail = torch.cat([prompt["input_ids"][own, -1:], ids[:, :-1]], dim=1)
    attention_mask = torch.cat([prompt["attention_mask"][own], mask[:, :-1]], dim=1)
    return prompts.forward(captioner.model, slice(None), tail, attention_mask).logits


def _plain(captioner: Captioner, prompt: BatchFeature, rows: list[int], tails: list[list[int]], width: int) -> Tensor:
    model: Any = captioner.model
    if batches.images_of(prompt):
        tokens = (prompt["input_ids"] == captioner.core.config.image_token_id).sum(-1).tolist()
        prompts = batches.repeat(prompt, rows, tokens)
    else:
        prompts = BatchFeature({name: value[rows] for name, value in prompt.items()})
    batch = batches.append_ids(prompts, tails, pad_id=captioner.tokenizer.pad_token_id, right=True)
    starts = batch["caption_mask"].argmax(-1)
    logits = model(**batches.inputs_of(batch), use_cache=False).logits
    places = starts[:, None] - 1 + torch.arange(width, device=logits.device)
    return logits.gather(1, places.clamp(max=logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[-1]))
