"""Model inputs as `Captioner.prepare` makes them: token tensors (B, T) and the images' tensors; how to extend them."""

from __future__ import annotations

import torch
from transformers import BatchFeature

from captune.models.image_inputs import ImageInputs, inputs_per_image

# tensors with one entry per token of the prompt; all others in a batch belong to the images
TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
# how the names of all others begin, in every family
IMAGE_ARGUMENTS = ("pixel_values", "pixel_attention_mask", "image_", "spatial_shapes")
# what captune adds; never passed to a model
CAPTION_KEYS = ("labels", "caption_mask")


def append_ids(batch: BatchFeature, tails: list[list[int]], *, pad_id: int, right: bool) -> BatchFeature:
    """Join each row's prompt and tail without the padding between them, and pad again on one side.

    Args:
        batch: prompts.
        tails: token ids for each row.
        pad_id: the padding token.
        right: pad on the right, else on the left.

    Returns:
        The batch with `caption_mask` (B, T), 1 on the tails, and `labels` (B, T), -100 elsewhere; the images' tensors
        are shared.
    """
    real = batch["attention_mask"].bool()
    lengths = real.sum(-1).tolist()
    width = max(n + len(tail) for n, tail in zip(lengths, tails, strict=True))
    new: dict[str, torch.Tensor] = {}
    for key in (*(k for k in TOKEN_KEYS if k in batch), *CAPTION_KEYS):
        padding = {"input_ids": pad_id, "labels": -100}.get(key, 0)
        rows = []
        for i, tail in enumerate(tails):
            ids = torch.tensor(tail, dtype=torch.long, device=real.device)
            ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
            last = {"input_ids": ids, "labels": ids, "attention_mask": ones, "caption_mask": ones}.get(key, zeros)
            first = ids.new_full((lengths[i],), padding) if key in CAPTION_KEYS else batch[key][i][real[i]]
            gap = ids.new_full((width - lengths[i] - len(tail),), padding)
            rows.append(torch.cat([first, last, gap] if right else [gap, first, last]))
        new[key] = torch.stack(rows)
    return BatchFeature({**batch, **new})


def images_of(batch: BatchFeature) -> dict[str, torch.Tensor]:
    """Return the arguments of `get_image_features` in a batch."""
    return {key: value for key, value in batch.items() if key not in (*TOKEN_KEYS, *CAPTION_KEYS)}


def inputs_of(batch: BatchFeature) -> dict[str, torch.Tensor]:
    """Return what the model takes of a batch: all but captune's own keys."""
    return {key: value for key, value in batch.items() if key not in CAPTION_KEYS}


def repeat(batch: BatchFeature, index: list[int], image_tokens: list[int]) -> BatchFeature:
    """Repeat rows: row i of the result is row index[i] of the batch, its image included.

    Args:
        batch: prompts.
        index: which rows.
        image_tokens: of each row of the batch.
    """
    tokens = {key: batch[key][index] for key in TOKEN_KEYS if key in batch}
    images = ImageInputs(images_of(batch))
    sizes = inputs_per_image(image_tokens, images.count)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return BatchFeature({**tokens, **images.select([starts[i] + j for i in index for j in range(sizes[i])])})


def equal_rows(batch: BatchFeature, image_token_id: int) -> list[int]:
    """Return for each row the first that equals it in tokens and pixels; the row of a distinct prompt is its own."""
    ids = batch["input_ids"]
    images = ImageInputs(images_of(batch))
    counts = inputs_per_image((ids == image_token_id).sum(-1).tolist(), images.count)
    keys, start = images.keys(), 0
    seen: dict[tuple[bytes, ...], int] = {}
    rows = []
    for row, (tokens, count) in enumerate(zip(ids.cpu(), counts, strict=True)):
        real = batch["attention_mask"][row].cpu()
        key = (tokens.numpy().tobytes(), real.numpy().tobytes(), *keys[start : start + count])
        rows.append(seen.setdefault(key, row))
        start += count
    return rows
