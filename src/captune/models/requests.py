"""What captioners have in common whose model runs elsewhere: a caption is one request, with a seed of its own."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from PIL import Image

from captune.errors import SettingError

PROMPT = "Describe this image in the shortest form."  # beside the image, as of families that name no other
MAX_NEW_TOKENS = 64  # as of families that name no number
#: what a request may set beside temperature, length and seed
SETTINGS = ("top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "stop")


class Completion(NamedTuple):
    """One caption, with the log-probabilities of its tokens where they were asked for."""

    text: str
    logprobs: tuple[float, ...] = ()


def request_settings(
    where: str,
    *,
    do_sample: bool = False,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    num_return_sequences: int = 1,
    return_logprob: bool = False,
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Return generation settings as an engine that gives samples and log-probabilities takes them.

    Args:
        where: the engine, for messages.
        do_sample: sample, instead of taking the likeliest token.
        temperature: of sampling.
        max_new_tokens: default: 64.
        num_beams: refused if it is not 1.
        num_return_sequences: captions per image.
        return_logprob: also give log-probabilities.
        seed: of sampling.
        more: those of `SETTINGS`.

    Raises:
        SettingError: for a setting that such an engine does not have, or a value out of range.
    """
    if num_beams != 1:
        raise SettingError(f"{where} has no beam search: leave num_beams out, or caption in this process")
    if num_return_sequences < 1:
        raise SettingError(f"num_return_sequences must be at least 1, not {num_return_sequences}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise SettingError(f"max_new_tokens must be at least 1, not {max_new_tokens}; leave it out for the default")
    if do_sample and not temperature > 0:
        raise SettingError(f"sampling needs a temperature over 0, not {temperature}; for greedy captions leave it out")
    if unknown := [name for name in more if name not in SETTINGS]:
        raise SettingError(f"{where} takes no {', '.join(unknown)}; it takes {', '.join(SETTINGS)}")
    return {"temperature": temperature if do_sample else 0.0, "max_tokens": max_new_tokens or MAX_NEW_TOKENS, **more}


def sample_seed(image: Image.Image, seed: int, number: int) -> int:
    """Return the seed of an image's n-th sample, 0 to 2**31 - 1: of the pixels, so that it is the same in any batch."""
    mark = hashlib.sha256(f"{seed} {number} {image.size} ".encode() + image.tobytes()).digest()
    return int.from_bytes(mark[:4], "big") >> 1
