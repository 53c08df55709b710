"""Captions of one prompt: sampled together with the greedy one, and read with a gradient.

`sample` decodes the greedy caption and the samples of an image in one `generate`: their first row is held to the
likeliest token, the others are drawn. Rows that have ended leave the batch; transformers carries them on as padding
until the longest is done.

`caption_logits` reads several captions of each prompt (`captune.models.reading`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from captune.models import inputs as batches
from captune.models import reading
from captune.models.caching.prefill import copyable, select_rope
from captune.models.captioner import NEUTRAL, Captioner, check_room
from captune.training.sharing import SharedNoise
from captune.utils import processes

LEAVE = 0.75  # of the rows in the batch: when fewer have not ended, the others leave


@torch.no_grad()
def sample(
    captioner: Captioner, prompt: BatchFeature, number: int, *, greedy: bool, temperature: float, max_new_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of `number` captions of each prompt row, grouped by row, the greedy one first if asked for.

    Returns the ids, end token included, and which captions ended by themselves.
    """
    check_room(prompt["input_ids"].shape[1], max_new_tokens, captioner.positions)
    model: Any = captioner.model
    rows = number * len(prompt["input_ids"])
    noise = SharedNoise(rows, captioner.device) if processes.number() > 1 else None
    sequences = model.generate(
        **batches.inputs_of(prompt), **NEUTRAL, do_sample=True, temperature=temperature, num_return_sequences=number,
        max_new_tokens=max_new_tokens, eos_token_id=captioner.eos_ids, pad_token_id=captioner.tokenizer.pad_token_id,
        suppress_tokens=[captioner.core.config.image_token_id], custom_generate=_decode,
        greedy_rows=[greedy and row % number == 0 for row in range(rows)], noise=noise,
    )  # fmt: skip
    tails, ended = [], []
    for ids in sequences[:, prompt["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(ids) if token in captioner.eos_ids), None)
        tails.append(ids if end is None else ids[: end + 1])
        ended.append(end is not None)
    return tails, ended


def _decode(model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
            greedy_rows: list[bool], noise: SharedNoise | None, **model_kwargs: Any) -> Tensor:  # fmt: skip
    """Run transformers' sampling loop; `greedy_rows` take the likeliest token, rows that have ended leave."""
    sequences = input_ids.new_full((len(input_ids), stopping_criteria.max_length), generation_config.pad_token_id)
    sequences[:, : input_ids.shape[1]] = input_ids
    rows = torch.arange(len(input_ids), device=input_ids.device)  # of `sequences`, those that are in the batch
    greedy = torch.tensor(greedy_rows, device=input_ids.device)
    ended = torch.zeros_like(greedy)
    outputs = model._prefill(input_ids, generation_config, model_kwargs)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        scores = logits_processor(input_ids, outputs.logits[:, -1].float())
        probabilities = scores.softmax(-1)
        drawn = torch.multinomial(probabilities, 1)[:, 0] if noise is None else noise.pick(probabilities, rows)
        tokens = torch.where(greedy, scores.argmax(-1), drawn)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        sequences[rows[~ended], input_ids.shape[1] - 1] = tokens[~ended]
        ended |= stopping_criteria(input_ids, None)
        if noise is not None:
            noise.exchange(rows, ended)
        if bool(ended.all()):
            if noise is not None:
                noise.follow(scores.shape[-1], LEAVE if copyable(model_kwargs["past_key_values"]) else 0.0)
                noise.close()
            return sequences[:, : input_ids.shape[1]]
        cache = model_kwargs["past_key_values"]
        running = (~ended).float().mean() if noise is None else noise.running()
        if running < LEAVE and copyable(cache):
            if noise is not None:
                noise.leave()
            keep = (~ended).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            input_ids, rows, greedy, ended = (x[keep] for x in (input_ids, rows, greedy, ended))
            model_kwargs = {name: _rows(name, value, keep) for name, value in model_kwargs.items()}
            select_rope(model.base_model, keep)
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
        outputs = model(**inputs, return_dict=True)


def _rows(name: str, value: Any, keep: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if name == "position_ids":
        return value[..., keep, :]  # M-RoPE has several in front
    return value[keep] if name in batches.TOKEN_KEYS else value


def caption_logits(captioner: Captioner, prompt: BatchFeature, tails: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """The logits that predict each token of the captions, the tokens, and which of them are real.

    Args:
        captioner: whose language model reads them.
        prompt: from `Captioner.prepare`, N rows.
        tails: the token ids of N * G captions, grouped by prompt row; none is empty.
    :return: logits (N G, T, V) float32, ids (N G, T), mask (N G, T), right padded.
    """
    each = len(tails) // len(prompt["input_ids"])
    return reading.caption_logits(captioner, prompt, [row // each for row in range(len(tails))], tails)
