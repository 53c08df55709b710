"""Equal prompts share one prefill, in every family, and nothing else changes."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from transformers.cache_utils import DynamicSlidingWindowLayer

from captune.models.caching import prefill
from captune.models.caching.prefill import PrefillCache
from captune.models.captioner import Captioner
from captune.models.families import FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"prefix_captioner"}))
def test_samples_are_those_without_it(tiny_folder, family: str) -> None:
    """As `num_return_sequences` and as rows that repeat, with prompts of two lengths beside each other."""
    captioner = Captioner.load(tiny_folder(family), device="cpu")
    images = [tiny.picture(0), tiny.picture(1, (96, 64))]
    settings = {"do_sample": True, "max_new_tokens": 6, "return_logprob": True}

    def sample(batch: object, **more: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        return captioner.generate(batch, **settings, **more)

    captions, means, totals = sample(images, num_return_sequences=3)
    with PrefillCache(captioner.core) as shared:
        several = sample(images, num_return_sequences=3)
        repeated = sample(captioner.prepare([image for image in images for _ in range(3)]))
    assert (shared.prompts, shared.rows) == (4, 12)
    for found in (several, repeated):
        assert found[0] == captions
        torch.testing.assert_close(found[1], means, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[2], totals, atol=1e-5, rtol=0)
    assert sample(images, num_return_sequences=3)[0] == captions and "generate" not in vars(captioner.core)


def test_unequal_rows_are_left_alone(captioner: Captioner, images: list) -> None:
    """The same pixels with another text, and the same text with other pixels, are other prompts."""
    with PrefillCache(captioner.core) as shared:
        captioner.generate(images, max_new_tokens=2)
        assert shared.rows == 0
        batch = captioner.prepare([images[0]] * 2)
        batch["input_ids"][1, 0] = captioner.caption_ids("ball")[0]
        captioner.generate(batch, max_new_tokens=2)
        assert shared.rows == 0
        captioner.generate([images[0], images[1], images[0]], max_new_tokens=2)
        assert (shared.prompts, shared.rows) == (2, 3)


def test_the_adapter_takes_part(captioner: Captioner, images: list) -> None:
    torch.manual_seed(0)
    captioner.add_lora(4, 8, 0.0)
    with torch.no_grad():
        for name, parameter in captioner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    plain = captioner.generate(images[:1] * 2, max_new_tokens=6)
    with PrefillCache(captioner.core) as shared:
        assert captioner.generate(images[:1] * 2, max_new_tokens=6) == plain
        assert shared.rows == 2
        with captioner.disable_adapter():
            assert captioner.generate(images[:1] * 2, max_new_tokens=6) != plain


def test_beams_and_other_caches_go_the_original_way(captioner: Captioner, images: list) -> None:
    pair = images[:1] * 2
    plain = captioner.generate(pair, max_new_tokens=4)
    beams = captioner.generate(pair, max_new_tokens=4, num_beams=2)
    with PrefillCache(captioner.core) as shared:
        assert captioner.generate(pair, max_new_tokens=4, num_beams=2) == beams
        assert captioner.generate(pair, max_new_tokens=4, cache_implementation="static") == plain
        assert shared.rows == 0
        config = transformers.GenerationConfig(max_new_tokens=4, num_return_sequences=2, do_sample=True)
        rows = captioner.core.generate(**captioner.prepare(pair), generation_config=config)
        assert len(rows) == 4


def test_a_cache_that_cannot_be_cut_is_not_shared(
    captioner: Captioner, images: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sliding window forgets, a recurrent layer has no places: the model generates as it does alone."""
    plain = captioner.generate(images[:1] * 2, max_new_tokens=4)
    monkeypatch.setattr(prefill, "DynamicLayer", DynamicSlidingWindowLayer)
    with PrefillCache(captioner.core) as shared:
        assert captioner.generate(images[:1] * 2, max_new_tokens=4) == plain
        assert shared.rows == 0
