"""A prompt is evaluated once for all of its captions; log-probabilities and gradients stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import tiny_prefix
import torch
from transformers import BatchFeature
from trl import GRPOConfig, GRPOTrainer

from captune.models import inputs as batches
from captune.models.caching.prompts import PromptCache
from captune.models.captioner import Captioner
from captune.scorers import load_scorer
from captune.training.grpo.trainer import CaptionGRPOTrainer

TEXTS = ("a red ball", "a", "two green fish and a small bird", "my house", "a fish", "on the beach")


def trainer_of(folder: Path, output: Path, **settings: Any) -> CaptionGRPOTrainer:
    captioner = tiny.taught(Captioner.load(folder, device="cpu"))
    args = GRPOConfig(
        output_dir=str(output), report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=2,
        num_generations=2, remove_unused_columns=False, **({"gradient_checkpointing": False} | settings),
    )  # fmt: skip
    dataset = datasets.Dataset.from_list([{"image": tiny.picture(i)} for i in range(2)])
    return CaptionGRPOTrainer(captioner, dataset, [(load_scorer("length"), 1.0)], args)


def rows(trainer: CaptionGRPOTrainer, images: list) -> tuple[torch.Tensor, torch.Tensor, int, dict[str, Any]]:
    """What TRL hands in for the six captions: two of each image."""
    captioner = trainer.captioner
    prompt = captioner.prepare([image for image in images for _ in range(2)])
    width = prompt["input_ids"].shape[1]
    assert bool((prompt["attention_mask"][:, -1] == 1).all()), "prompts are padded on the left"
    tails = [captioner.caption_ids(text) + captioner.eos_ids[:1] for text in TEXTS]
    longest = max(map(len, tails))
    pad = captioner.tokenizer.pad_token_id
    ids = torch.tensor([tail + [pad] * (longest - len(tail)) for tail in tails])
    mask = torch.tensor([[1] * len(tail) + [0] * (longest - len(tail)) for tail in tails])
    rest = {name: value for name, value in prompt.items() if name not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in rest:
        rest["mm_token_type_ids"] = torch.cat([rest["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
    whole = torch.cat([prompt["input_ids"], ids], dim=1), torch.cat([prompt["attention_mask"], mask], dim=1)
    assert whole[0].shape[1] == width + longest
    tiles = [len(rest["pixel_values"]) // 6] * 6 if captioner.family.name == "internvl" else None
    return *whole, longest, rest | {"num_images": [1] * 6, "num_tiles": tiles}


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("idefics3", [(64, 64)] * 3),
        ("llava_next", [(64, 64), (128, 64), (64, 64)]),
        ("qwen2_vl", [(64, 64), (128, 64), (64, 96)]),
        ("internvl", [(64, 64)] * 3),
        ("prefix_captioner", [(64, 64)] * 3),
    ],
)
def test_log_probabilities_entropies_and_gradients(
    tiny_folder: Any, tmp_path: Path, family: str, sizes: list, chunk: int | None
) -> None:
    """Against TRL's own function; for two families the prompts have different lengths."""
    prefix = family == "prefix_captioner"
    folder = tiny_prefix.prefix_captioner(tmp_path / "model") if prefix else tiny_folder(family)
    trainer = trainer_of(folder, tmp_path / "run")
    ids, mask, kept, rest = rows(trainer, [tiny.picture(i, size) for i, size in enumerate(sizes)])
    assert bool(mask[:, :-kept].all()) == (len(set(sizes)) == 1)
    seen = mask[:, -kept:].bool()
    model, language = trainer.model, trainer.captioner.core.base_model.get_decoder()
    tokens: list[int] = []
    language.register_forward_hook(
        lambda m, a, k, o: tokens.append(o.last_hidden_state.shape[:2].numel()), with_kwargs=True
    )
    weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    results, evaluated = [], []
    for function in (CaptionGRPOTrainer, GRPOTrainer):
        model.zero_grad()
        tokens.clear()
        log_probs, entropies, _ = function._get_per_token_logps_and_entropies(
            trainer, model, ids, mask, kept, chunk, compute_entropy=True, **rest
        )
        (log_probs * weights * seen).sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((log_probs.detach()[seen], entropies.detach()[seen], grads))
        evaluated.append(sum(tokens))
    width = ids.shape[1] - kept
    assert evaluated == [3 * (width - 1) + 6 * (kept + 1), 6 * (width + kept)]
    for ours, theirs in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert results[0][2].keys() == results[1][2].keys() and results[0][2]
    for name, grad in results[0][2].items():
        torch.testing.assert_close(grad, results[1][2][name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("reason", ["checkpointing", "distinct prompts"])
def test_what_cannot_share_goes_the_other_way(tiny_folder: Any, tmp_path: Path, reason: str) -> None:
    settings = {"gradient_checkpointing": True} if reason == "checkpointing" else {}
    trainer = trainer_of(tiny_folder("idefics3"), tmp_path, **settings)
    trainer.model.train()
    ids, mask, kept, rest = rows(trainer, [tiny.picture(i) for i in range(3)])
    if reason == "distinct prompts":
        ids, mask = ids[::2], mask[::2]
        rest = {n: v[::2] if isinstance(v, (torch.Tensor, list)) else v for n, v in rest.items()}
    ours, theirs = (
        function._get_per_token_logps_and_entropies(trainer, trainer.model.eval(), ids, mask, kept, **rest)[0]
        for function in (CaptionGRPOTrainer, GRPOTrainer)
    )
    assert torch.equal(ours, theirs)


def test_a_prompt_that_ends_in_its_image_is_not_shared(captioner: Captioner) -> None:
    prompts = captioner.prepare([tiny.picture(0)] * 2)
    assert PromptCache.of_rows(captioner.core, prompts) is not None
    end = 1 + (prompts["input_ids"][0] == captioner.core.config.image_token_id).nonzero().max()
    cut = {name: value[:, :end] if name in batches.TOKEN_KEYS else value for name, value in prompts.items()}
    assert PromptCache.of_rows(captioner.core, BatchFeature(cut)) is None
