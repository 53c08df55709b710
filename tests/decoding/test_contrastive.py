"""Contrastive decoding: alpha, and the plausibility constraint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BatchFeature

from captune.decoding import load_decoder
from captune.decoding.cfg import ImageGuidance
from captune.models.captioner import Captioner


class Habit:
    """A captioner's model that says the same of any blank image: p = (.6, .3, .1)."""

    base_model = object()
    other = torch.tensor([0.6, 0.3, 0.1])

    def __call__(self, **inputs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        class Cache:
            def batch_repeat_interleave(self, rows: int) -> None: ...

        return CausalLMOutputWithPast(logits=self.other.log().expand(1, 1, 3), past_key_values=Cache())  # type: ignore


def contrasted(alpha: float, beta: float) -> torch.Tensor:
    prompt = torch.zeros(1, 1, dtype=torch.long)
    other = BatchFeature({"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
    scores = torch.tensor([[0.5, 0.46, 0.04]]).log()
    return ImageGuidance(Habit(), other, weight=alpha, beta=beta)(prompt, scores).softmax(-1)[0]


def test_alpha_takes_away_what_would_be_said_anyway() -> None:
    """p(x|I)^(1+alpha) / p(x|I')^alpha, normalised, by hand."""
    torch.testing.assert_close(contrasted(0.0, 0.0), torch.tensor([0.5, 0.46, 0.04]))
    raw = torch.tensor([0.5**2 / 0.6, 0.46**2 / 0.3, 0.04**2 / 0.1])
    torch.testing.assert_close(contrasted(1.0, 0.0), raw / raw.sum())
    assert contrasted(0.0, 0.0).argmax() == 0 and contrasted(1.0, 0.0).argmax() == 1


def test_beta_rules_out_what_is_implausible() -> None:
    assert contrasted(1.0, 0.07)[2] > 0  # .04 >= .07 * .5
    assert contrasted(1.0, 0.1)[2] == 0
    assert contrasted(1.0, 0.95).tolist() == [1, 0, 0]  # only the likeliest word is left: plain decoding


def test_beta_one_is_plain_decoding_and_alpha_changes_captions(captioner: Captioner, images: list) -> None:
    plain = captioner.generate(images, max_new_tokens=8)
    assert load_decoder("contrastive:3?beta=1")(captioner, images, max_new_tokens=8) == plain
    assert load_decoder("contrastive:0")(captioner, images, max_new_tokens=8) == plain
    assert load_decoder("contrastive:3?beta=0.001")(captioner, images, max_new_tokens=8) != plain


def test_without_the_constraint_it_is_classifier_free_guidance(captioner: Captioner, images: list) -> None:
    one, other = (load_decoder(spec)(captioner, images, max_new_tokens=8) for spec in ("contrastive:1?beta=0", "cfg:2"))
    assert one == other


@pytest.mark.parametrize("name", ["qwen2_vl", "llava", "internvl"])
def test_other_families(name: str, tiny_folder: Any, images: list) -> None:
    captioner = Captioner.load(tiny_folder(name), device="cpu")
    decoder = load_decoder("contrastive:2?beta=0.01")
    captions = decoder(captioner, images, max_new_tokens=8)
    assert captions == [decoder(captioner, [image], max_new_tokens=8)[0] for image in images]
    assert captions != captioner.generate(images, max_new_tokens=8)
