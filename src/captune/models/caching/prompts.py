"""A pass with gradients evaluates each prompt once for all of its captions, as `caching.prefill` does for samples.

For G captions of T tokens and a prompt of P, image tokens included, a pass of the language model costs P + G (T + 1)
tokens instead of G (P + T). The captions' gradients flow back through the cache of their prompt. Log-probabilities
and gradients differ from those of separate passes by rounding only; dropout is sampled once for a prompt, not once for
each of its captions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from captune.models import inputs as batches
from captune.models.caching.prefill import copyable


class PromptCache:
    """The distinct prompts of a batch, evaluated up to their last token, from which the captions continue.

    Args:
        core: the model, which runs here, with a gradient where one is wanted.
        cache: of the distinct prompts.
        prompt_index: (B,), which of them is that of each caption.
    """

    def __init__(self, core: PreTrainedModel, cache: DynamicCache, prompt_index: Tensor) -> None:
        self.core, self.prompt_index = core, prompt_index
        layers = cast(list[DynamicLayer], cache.layers)
        self.states = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]
        self.rope_deltas: Any = getattr(core.base_model, "rope_deltas", None)  # M-RoPE's, of each prompt

    @classmethod
    def of_rows(cls, core: PreTrainedModel, batch: BatchFeature) -> PromptCache | None:
        """Evaluate the distinct prompts of a batch with a row for each caption.

        Args:
            core: the model.
            batch: prompts (B, P), left padded, and their images.

        Returns:
            None if all prompts differ, or if they cannot be shared.
        """
        image_token = core.config.image_token_id
        index = batches.equal_rows(batch, image_token)
        distinct = sorted(set(index))
        if len(distinct) == len(index):
            return None
        distinct_prompts = batches.repeat(batch, distinct, (batch["input_ids"] == image_token).sum(-1).tolist())
        return cls.of(core, distinct_prompts, [distinct.index(row) for row in index])

    @classmethod
    def of(cls, core: PreTrainedModel, prompts: BatchFeature, prompt_index: list[int]) -> PromptCache | None:
        """Evaluate distinct prompts.

        Args:
            core: the model.
            prompts: (N, P), left padded, and their images.
            prompt_index: (B,), which of them is that of each caption.

        Returns:
            None if a prompt ends in its image, or if the model's cache cannot be copied.
        """
        model: Any = core
        ids = prompts["input_ids"]
        if bool((ids[:, -1] == core.config.image_token_id).any()):
            return None  # the last token, read again by each caption, would need its image again
        inputs = batches.inputs_of(prompts)
        head = {name: value[:, :-1] if name in batches.TOKEN_KEYS else value for name, value in inputs.items()}
        positions = model._prepare_position_ids_for_generation(head["input_ids"], dict(head))
        cache = model.base_model(**head, position_ids=positions, use_cache=True).past_key_values
        return cls(core, cache, torch.tensor(prompt_index, device=ids.device)) if copyable(cache) else None

    def forward(self, model: Any, rows: slice, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        """Call `model` on these rows' captions, each after its prompt's last token.

        Args:
            model: the model, or a PEFT model around it.
            rows: which captions of the batch.
            input_ids: (rows, 1 + T), the prompt's last token and the caption.
            attention_mask: (rows, P + T), the prompt's included.
            kwargs: further arguments of the model.

        Returns:
            What the model returns for the caption's positions.
        """
        index, core = self.prompt_index[rows], cast(Any, self.core)
        cache = DynamicCache([(keys[index], values[index]) for keys, values in self.states])
        if self.rope_deltas is not None:
            core.base_model.rope_deltas = self.rope_deltas[index]
        context = {"attention_mask": attention_mask, "past_key_values": cache}
        positions = core._prepare_position_ids_for_generation(input_ids, context)[..., -input_ids.shape[1] :]
        return model(input_ids=input_ids, position_ids=positions, use_cache=True, **context, **kwargs)
