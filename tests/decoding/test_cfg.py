"""Guidance: the formula, the branch without the picture, and plain decoding at scale 1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_prefix
import torch
from transformers import BatchFeature, DynamicCache

from captune.decoding import load_decoder
from captune.decoding.cfg import ImageGuidance, blank
from captune.errors import CaptionerError
from captune.models import inputs as batches
from captune.models.caching.prefill import PrefillCache
from captune.models.captioner import Captioner

FAMILIES = ("idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "internvl", "vipllava")


@pytest.fixture
def family(request: pytest.FixtureRequest, tiny_folder: Any) -> Captioner:
    return Captioner.load(tiny_folder(request.param), device="cpu")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Every step of every guided generation: ids, the scores that came in, those that went out, the other branch's."""
    steps: list[dict[str, torch.Tensor]] = []
    call, other = ImageGuidance.__call__, ImageGuidance.log_probs

    def log_probs(self: ImageGuidance, input_ids: torch.Tensor) -> torch.Tensor:
        steps.append({"ids": input_ids.clone(), "other": other(self, input_ids)})
        return steps[-1]["other"]

    def guide(self: ImageGuidance, input_ids: Any, scores: Any) -> Any:
        result = call(self, input_ids, scores)
        steps[-1].update(scores=scores.clone(), result=result)
        return result

    monkeypatch.setattr(ImageGuidance, "log_probs", log_probs)
    monkeypatch.setattr(ImageGuidance, "__call__", guide)
    return steps


class Table:
    """A language model of two words whose answers are written down: one (p, 1 - p) for each token it has read."""

    def __init__(self, *first_word: float) -> None:
        self.logits = torch.tensor([[p, 1 - p] for p in first_word]).log() + 3.0  # logits are known up to a constant
        self.base_model = SimpleNamespace()

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        cache = past_key_values or DynamicCache()
        cache.update(*[torch.zeros(*input_ids.shape, 1).unsqueeze(1)] * 2, 0)
        rows = self.logits[cache.get_seq_length() - 1].expand(len(input_ids), 1, 2)
        return SimpleNamespace(logits=rows, past_key_values=cache)


def test_two_steps_by_hand() -> None:
    """gamma = 2: q is p(.|I)^2 / p(.), normalised. (.8, .2) against (.5, .5), then (.6, .4) against (.9, .1)."""
    prompt = torch.zeros(1, 1, dtype=torch.long)
    other = BatchFeature({"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
    guidance = ImageGuidance(Table(0.5, 0.9), other, weight=1.0)
    ids = torch.zeros(3, 5, dtype=torch.long)  # three rows, whose own prompts are longer than the other one
    for seen, first_word in ((0.8, 1.28 / (1.28 + 0.08)), (0.6, 0.4 / (0.4 + 1.6))):
        scores = torch.tensor([[seen, 1 - seen]] * 3).log() - 7.0
        guided = guidance(ids, scores).softmax(-1)
        torch.testing.assert_close(guided, torch.tensor([[first_word, 1 - first_word]] * 3))
        ids = torch.cat([ids, ids[:, -1:]], 1)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_both_branches_are_the_models_own_in_every_family(
    family: Captioner, images: list, watched: list[dict[str, torch.Tensor]]
) -> None:
    """Three tokens, each branch recomputed without a cache over its prompt and the very tokens that were generated."""
    pictures = [images[0], tiny.picture(5, (96, 60))]  # of two sizes, so that some families pad
    load_decoder("cfg:2.5")(family, pictures, max_new_tokens=3)
    assert len(watched) == 3
    start = watched[0]["ids"].shape[1]
    for step in watched:
        tails = step["ids"][:, start:].tolist()
        for shown, kept in ((pictures, step["scores"].log_softmax(-1)), ([blank()] * 2, step["other"])):
            batch = family.prepare(shown)
            batch = batches.append_ids(batch, tails, pad_id=family.tokenizer.pad_token_id, right=False)
            with torch.no_grad():
                logits = family.core(**batches.inputs_of(batch)).logits[:, -1]
            expected = logits.masked_fill(kept.isneginf(), -torch.inf).log_softmax(-1)  # a caption holds no image token
            torch.testing.assert_close(expected, kept, atol=1e-4, rtol=1e-4)
        with_image = step["scores"].log_softmax(-1)
        torch.testing.assert_close(step["result"], step["other"] + 2.5 * (with_image - step["other"]))
    assert not torch.allclose(watched[0]["scores"][0], watched[0]["scores"][1], atol=1e-2)


def test_the_other_branch_does_not_see_the_picture(
    captioner: Captioner, images: list, watched: list[dict[str, torch.Tensor]]
) -> None:
    load_decoder("cfg:3")(captioner, images, max_new_tokens=1, forced_opening="a red ball")
    (step,) = watched
    assert torch.equal(step["other"], step["other"][:1].expand(4, -1))
    assert (step["scores"] - step["scores"][:1])[1:].nan_to_num().abs().amax(-1).min() > 0.1
    watched.clear()
    load_decoder("cfg:3")(captioner, images, max_new_tokens=1, forced_opening="two green fish")
    assert not torch.allclose(watched[0]["other"], step["other"])  # it does see the words


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_scale_one_is_plain_decoding_and_other_scales_are_not(family: Captioner, images: list) -> None:
    plain = family.generate(images, max_new_tokens=8)
    assert load_decoder("cfg:1.0")(family, images, max_new_tokens=8) == plain
    assert load_decoder("cfg:4")(family, images, max_new_tokens=8) != plain
    assert family.generate(images, max_new_tokens=8) == plain  # nothing is left behind


def test_scale_one_of_the_formula_is_plain_decoding_too(captioner: Captioner, images: list) -> None:
    guidance = ImageGuidance(captioner.core, captioner.prepare([blank()]), weight=0.0)
    guided = captioner.generate(images, logits_processor=[guidance], max_new_tokens=8)
    assert guided == captioner.generate(images, max_new_tokens=8)


@pytest.mark.parametrize("spec", ["cfg:2.5", "contrastive:1.5"])
def test_a_caption_does_not_depend_on_its_batch(captioner: Captioner, images: list, spec: str) -> None:
    decoder = load_decoder(spec)
    together = decoder(captioner, images, max_new_tokens=10)
    assert together == [decoder(captioner, [image], max_new_tokens=10)[0] for image in images]
    assert len(set(together)) > 1


def test_sampling_several_captions_with_guidance(captioner: Captioner, images: list) -> None:
    decoder, settings = load_decoder("cfg:2"), {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6}
    torch.manual_seed(0)
    captions = decoder(captioner, images, **settings)
    assert len(captions) == 12 and len(set(captions)) > 6
    cold = decoder(captioner, images, **settings, temperature=1e-4)
    assert cold[::3] == cold[1::3] == decoder(captioner, images, max_new_tokens=6)
    with PrefillCache(captioner.core):
        assert decoder(captioner, [images[0]] * 2, max_new_tokens=6) == [cold[0]] * 2


def test_an_adapter_takes_part_in_both_branches(
    captioner: Captioner, images: list, watched: list[dict[str, torch.Tensor]]
) -> None:
    decoder = load_decoder("cfg:2")
    decoder(captioner, images, max_new_tokens=1)
    decoder(tiny.taught(captioner), images, max_new_tokens=1)
    before, after = watched
    assert not torch.allclose(before["other"], after["other"], atol=1e-2)
    assert not torch.allclose(before["scores"], after["scores"], atol=1e-2)


def test_captions_may_be_empty(captioner: Captioner, images: list) -> None:
    end = {"max_new_tokens": 1, "forced_eos_token_id": captioner.eos_ids[0]}
    for spec in ("cfg:2", "contrastive:1", "best-of:3:length"):
        assert load_decoder(spec)(captioner, images, **end) == [""] * 4


def test_beams_are_refused(captioner: Captioner, images: list) -> None:
    with pytest.raises(CaptionerError, match="leave num_beams out"):
        load_decoder("cfg:2")(captioner, images, num_beams=2)


@pytest.mark.parametrize("language_model", ["gpt2", "mistral"])
def test_the_prefix_captioner_is_guided_as_the_others(
    language_model: str, tmp_path: Any, images: list, watched: list[dict[str, torch.Tensor]]
) -> None:
    """With learned positions (GPT-2) a branch whose places were counted otherwise would give itself away."""
    captioner = Captioner.load(tiny_prefix.prefix_captioner(tmp_path, lm=language_model), device="cpu")
    plain = captioner.generate(images, max_new_tokens=6)
    decoder = load_decoder("cfg:3")
    captions = decoder(captioner, images, max_new_tokens=6)
    assert captions != plain
    tails = watched[-1]["ids"][:, watched[0]["ids"].shape[1] :].tolist()
    batch = captioner.prepare([blank()] * 4)
    batch = batches.append_ids(batch, tails, pad_id=captioner.tokenizer.pad_token_id, right=False)
    with torch.no_grad():
        logits = captioner.core(**batches.inputs_of(batch)).logits[:, -1]
    torch.testing.assert_close(logits.log_softmax(-1), watched[-1]["other"], atol=1e-4, rtol=1e-4)
