"""Each prompt is evaluated once: `generate` on several copies of an image and its prompt shares one prefill.

transformers repeats its inputs before the prefill, so G samples of one image cost G evaluations of the image's tokens.
Here `generate` is replaced on the instance. It finds the rows that are equal in tokens and pixels, runs the prompt of
each distinct one (a `generate` of one token, so that the model itself sets the positions), copies the cache for the
others and lets the original continue from there. TRL's `GRPOTrainer`, which passes every image G times, and
`num_return_sequences` both profit without a change.

Shared and unshared logits differ by rounding only. Beam search, and models whose cache cannot be cut and copied
(sliding windows, recurrent layers, a static cache), use the original `generate`.
"""

from __future__ import annotations

import functools
from typing import Any, TypeGuard, cast

import torch
from transformers import BatchFeature, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from captune.models import inputs as batches


class PrefillCache:
    """Shares one prefill among equal rows of a `generate` call; a context manager, `remove()` restores the model.

    Attributes:
        prompts: prompt rows evaluated.
        rows: prompt rows asked for.

    Args:
        core: the model whose `generate` is replaced.
    """

    def __init__(self, core: PreTrainedModel) -> None:
        self.core = core
        self.prompts = self.rows = 0
        self._original: Any = core.generate

        @functools.wraps(cast(Any, self._original))
        def generate(*args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        core.generate = generate  # type: ignore[assignment]

    def remove(self) -> None:
        """Restore the model's own `generate`."""
        vars(self.core).pop("generate", None)

    def __enter__(self) -> PrefillCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `generate`, with one prefill for equal prompts."""
        settings = kwargs.get("generation_config") or self.core.generation_config
        beams = kwargs.get("num_beams") or settings.num_beams or 1
        configured = settings.num_return_sequences or 1
        cached = {"past_key_values", "cache_implementation"} & kwargs.keys() or settings.cache_implementation
        captions = {"input_ids", "attention_mask", "pixel_values"} <= kwargs.keys()
        if args or not captions or cached or max(beams, configured) > 1:
            return self._original(*args, **kwargs)
        samples = kwargs.get("num_return_sequences") or 1
        names = [name for name in kwargs if name in batches.TOKEN_KEYS or name.startswith(batches.IMAGE_ARGUMENTS)]
        batch = BatchFeature({name: kwargs.pop(name) for name in names})
        if bool((batch["input_ids"][:, -1] == self.core.config.image_token_id).any()):
            return self._original(**batch, **kwargs)  # the last token cannot be read again without its image
        index = [row for row in batches.equal_rows(batch, self.core.config.image_token_id) for _ in range(samples)]
        distinct = sorted(set(index))
        cache = self._prefill(batch, distinct) if len(distinct) < len(index) else None
        if cache is None:
            return self._original(**batch, **kwargs)
        self.prompts, self.rows = self.prompts + len(distinct), self.rows + len(index)
        prompt_index = torch.tensor([distinct.index(row) for row in index], device=batch["input_ids"].device)
        cache.batch_select_indices(prompt_index)
        select_rope(self.core.base_model, prompt_index)
        tokens = {name: batch[name][index] for name in batches.TOKEN_KEYS if name in batch}
        kwargs.pop("num_return_sequences", None)
        return self._original(**tokens, past_key_values=cache, **kwargs)

    def _prefill(self, batch: BatchFeature, rows: list[int]) -> DynamicCache | None:
        """Return the cache of these rows' prompts without the last token, whose logits the samples begin with."""
        tokens = (batch["input_ids"] == self.core.config.image_token_id).sum(-1).tolist()
        prompts = batches.repeat(batch, rows, tokens) if len(rows) < len(tokens) else batch
        cache: Cache = self._original(
            **prompts, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, use_cache=True
        ).past_key_values
        if not copyable(cache):
            return None
        cache.crop(-1)  # one generated token leaves the prompt
        return cache


def copyable(cache: Any) -> TypeGuard[DynamicCache]:
    """Return whether rows of the cache can be cut, chosen and repeated: no sliding window, nothing recurrent."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def select_rope(inner: Any, rows: torch.Tensor) -> None:
    """Keep, or repeat, the M-RoPE offsets of the prompts of these rows, if the model has any."""
    if getattr(inner, "rope_deltas", None) is not None:
        inner.rope_deltas = inner.rope_deltas[rows]
