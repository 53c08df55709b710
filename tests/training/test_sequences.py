"""Captions that share a prompt: the greedy one is greedy, samples are samples, and logits are those of a plain pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_prefix
import torch

from captune.models import reading
from captune.models.caching.prefill import PrefillCache
from captune.models.captioner import Captioner
from captune.training import sequences
from captune.training.sequences import caption_logits, sample

FAMILIES = ["idefics3", "llava_next", "qwen2_vl", "internvl", "prefix_captioner"]


@pytest.fixture(scope="session")
def folder(tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model."""
    prefix = tiny_prefix.prefix_captioner(tmp_path_factory.mktemp("prefix"))
    return lambda name: prefix if name == "prefix_captioner" else tiny_folder(name)


def ended_early(captioner: Captioner) -> Captioner:
    """Every fifth token ends a caption, so that random weights write captions of different lengths."""
    captioner.eos_ids = [captioner.eos_ids[0], *range(3, len(captioner.tokenizer), 5)]
    return captioner


@pytest.fixture
def several() -> list:
    return [tiny.picture(seed) for seed in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_is_greedy_and_the_others_are_sampled(folder: Any, several: list, family: str) -> None:
    captioner = ended_early(tiny.taught(Captioner.load(folder(family), device="cpu")))
    greedy = captioner.generate(several, max_new_tokens=12)
    torch.manual_seed(0)
    with captioner.share_vision(), PrefillCache(captioner.core) as prefill:
        tails, ended = sample(captioner, captioner.prepare(several), 8, greedy=True, temperature=1.0, max_new_tokens=12)
    assert (prefill.prompts, prefill.rows) == (3, 24)
    assert captioner.decode(tails[::8]) == greedy
    assert len(set(map(tuple, tails))) > 12
    eos = captioner.eos_ids
    assert any(ended) and all(end == (tail[-1] in eos) for tail, end in zip(tails, ended, strict=True))
    assert all(len(tail) == 12 for tail, end in zip(tails, ended, strict=True) if not end)
    assert not any(token in eos for tail in tails for token in tail[:-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_leave_change_nothing_for_those_that_stay(
    folder: Any, several: list, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row greedy, with and without leaving; captions end at different steps."""
    captioner = ended_early(tiny.taught(Captioner.load(folder(family), device="cpu")))
    images = [tiny.picture(seed) for seed in range(12)]
    outcomes = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(sequences, "LEAVE", share)
        outcomes.append(
            sample(captioner, captioner.prepare(images), 1, greedy=True, temperature=1.0, max_new_tokens=16)
        )
    assert outcomes[0] == outcomes[1]
    assert len({len(tail) for tail in outcomes[0][0]}) > 1


def test_samples_follow_the_model(captioner: Captioner, several: list) -> None:
    """First tokens as often as the model says, at its temperature, beside a greedy row."""
    prompt = captioner.prepare(several[:1])
    with torch.no_grad():
        expected = (captioner.model(**prompt).logits[0, -1] / 0.7).softmax(-1)
    torch.manual_seed(0)
    tails, _ = sample(captioner, prompt, 4001, greedy=True, temperature=0.7, max_new_tokens=1)
    found = torch.bincount(torch.tensor(tails[1:])[:, 0], minlength=len(expected)) / 4000
    assert tails[0][0] == expected.argmax()
    assert (found - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_a_plain_pass(folder: Any, several: list, family: str) -> None:
    """Shared and plain, values and gradients; with prompts of different lengths it goes the plain way by itself."""
    captioner = tiny.taught(Captioner.load(folder(family), device="cpu"))
    texts = ("a red ball", "a", "two green fish and a small yellow bird", "my house", "a fish", "on the beach")
    tails = [captioner.caption_ids(text) + captioner.eos_ids[:1] for text in texts]
    prompt = captioner.prepare(several)
    weights = torch.randn(6, max(map(len, tails)), generator=torch.Generator().manual_seed(0))
    results = []
    for plain in (False, True):
        if plain:
            rows = [row for row in range(3) for _ in range(2)]
            logits = reading._plain(captioner, prompt, rows, tails, weights.shape[1]).float()
        else:
            logits, ids, mask = caption_logits(captioner, prompt, tails)
        captioner.model.zero_grad()
        logprobs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        (logprobs * mask * weights).sum().backward()
        grads = {n: p.grad.clone() for n, p in captioner.model.named_parameters() if p.grad is not None}
        results.append((logits.detach()[mask.bool()], grads))
    assert mask.sum(-1).tolist() == list(map(len, tails))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    assert results[0][1].keys() == results[1][1].keys() and results[0][1]
    for name, grad in results[0][1].items():
        torch.testing.assert_close(grad, results[1][1][name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_prompts_of_different_lengths(folder: Any, family: str) -> None:
    captioner = tiny.taught(Captioner.load(folder(family), device="cpu"))
    images = [tiny.picture(0), tiny.picture(1, (128, 64))]
    prompt = captioner.prepare(images)
    assert not prompt["attention_mask"].all()
    tails = [captioner.caption_ids("a red ball"), captioner.caption_ids("a fish")]
    together, _, mask = caption_logits(captioner, prompt, tails)
    for i, image in enumerate(images):
        alone, _, _ = caption_logits(captioner, captioner.prepare([image]), tails[i : i + 1])
        torch.testing.assert_close(together[i][mask[i].bool()], alone[0], atol=1e-4, rtol=1e-4)
