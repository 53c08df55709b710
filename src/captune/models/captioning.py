"""How captions are produced: `generate` for a batch, `caption` for a stream of images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import BatchFeature

from captune.errors import CaptionerError
from captune.models import inputs as batches

if TYPE_CHECKING:
    from captune.models.captioner import Captioner

# Decoding is what the caller says; a checkpoint's generation_config.json (Qwen2-VL ships top_k=1) does not meddle.
NEUTRAL = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


@torch.no_grad()
def generate(
    captioner: Captioner,
    images: Sequence[Image.Image] | BatchFeature,
    *,
    do_sample: bool = False,
    temperature: float = 1.0,
    num_return_sequences: int = 1,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    forced_opening: str | None = None,
    return_logprob: bool = False,
    **kwargs: Any,
) -> list[str] | tuple[list[str], torch.Tensor, torch.Tensor]:
    """Captions of a batch (images, or a prompt batch from `prepare`), grouped by image.

    :param temperature: of sampling; 0 is refused, use do_sample=False.
    :param num_return_sequences: captions per image; the image is encoded once for all of them.
    :param max_new_tokens: default: the checkpoint's generation config, else the family's.
    :param forced_opening: the caption starts with this text, which is part of what is returned.
    :param return_logprob: also return the mean per token and the sum of log p(generated tokens, EOS included) under
        the model itself (temperature 1, no truncation), float32 tensors (B * num_return_sequences,). A forced opening
        is given, not generated, and does not count.
    :param kwargs: further generation settings of transformers (top_p, repetition_penalty, ...).
    """
    batch = images if isinstance(images, BatchFeature) else captioner.prepare(images)
    if "caption_mask" in batch:
        raise CaptionerError("generate() needs a batch without captions: use prepare(images)")
    opening: list[int] = []
    if forced_opening:
        opening = captioner.caption_ids(forced_opening)
        tails = [opening] * len(batch["input_ids"])
        batch = batches.append_ids(batch, tails, pad_id=captioner.tokenizer.pad_token_id, right=False)
    inputs = batches.inputs_of(batch)
    settings: dict[str, Any] = {**NEUTRAL, **kwargs, "do_sample": do_sample, "num_beams": num_beams}
    if do_sample:
        settings["temperature"] = temperature
    else:
        settings = {key: value for key, value in settings.items() if key not in ("top_k", "top_p") or key in kwargs}
    own = captioner.core.generation_config.max_new_tokens
    settings.update(
        num_return_sequences=num_return_sequences,
        max_new_tokens=max_new_tokens or own or captioner.family.max_new_tokens,
        eos_token_id=captioner.eos_ids,
        pad_token_id=captioner.tokenizer.pad_token_id,
        suppress_tokens=[captioner.core.config.image_token_id],  # a caption holds no image
        return_dict_in_generate=True,
        output_logits=return_logprob,
    )
    training = captioner.model.training
    captioner.model.eval()
    try:
        model: Any = captioner.model
        output = model.generate(**inputs, **settings)
    finally:
        captioner.model.train(training)
    fresh = output.sequences[:, batch["input_ids"].shape[1] :]
    ids = [[*opening, *row] for row in fresh.tolist()]
    captions = captioner.decode(ids)
    if not return_logprob:
        return captions
    mean, total = _logprob(output, fresh, captioner.eos_ids)
    return captions, mean, total


def _logprob(output: Any, fresh: torch.Tensor, eos_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    beams = getattr(output, "beam_indices", None)
    ended = torch.isin(fresh, torch.tensor(eos_ids, device=fresh.device)).long().cumsum(-1)
    counted = (ended - torch.isin(fresh, torch.tensor(eos_ids, device=fresh.device)).long()) == 0
    steps = []
    for t in range(fresh.shape[1]):
        logits = output.logits[t]
        if beams is not None:
            logits = logits[beams[:, t].clamp(min=0)]
        steps.append(logits.float().log_softmax(-1).gather(1, fresh[:, t : t + 1]))
    total = (torch.cat(steps, 1) * counted).sum(-1)
    return total / counted.sum(-1), total


def caption(
    captioner: Captioner,
    images: Iterable[tuple[str, Image.Image]],
    *,
    batch_size: int = 16,
    window: int = 16,
    progress: bool = True,
    total: int | None = None,
    **settings: Any,
) -> Iterator[tuple[str, str]]:
    """Stream (image_id, caption) for (image_id, image) pairs; every input appears exactly once, in processing order.

    Batches are formed within a window of `window * batch_size` images, sorted by their number of pixels (which sets
    the number of image tokens and of padded ones), the costliest first.
    """
    if settings.get("num_return_sequences", 1) != 1 or settings.get("return_logprob"):
        raise CaptionerError(
            "caption() gives one caption per image; use generate() for several or for log-probabilities"
        )
    if total is None and hasattr(images, "__len__"):
        total = len(cast(Sized, images))
    stream = iter(images)
    with tqdm(total=total, desc="captions", unit="image", disable=not progress) as bar:
        while pending := list(itertools.islice(stream, window * batch_size)):
            pending.sort(key=lambda item: -(item[1].width * item[1].height))
            for start in range(0, len(pending), batch_size):
                chunk = pending[start : start + batch_size]
                captions = cast(list[str], generate(captioner, [image for _, image in chunk], **settings))
                for (image_id, _), text in zip(chunk, captions, strict=True):
                    yield image_id, text
                bar.update(len(chunk))
