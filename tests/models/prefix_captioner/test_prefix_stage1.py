"""HAR's stage 1: the projector learns beside LoRA, while the frozen encoder's output is shared; stage 2 freezes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import tiny_prefix
import torch

from captune.models.captioner import Captioner
from captune.models.loading import load_adapter
from captune.runs.run_dir import RunDir
from captune.scorers import load_reward
from captune.training.lifecycle import make_trainable
from captune.training.scst.train import SCSTConfig, SCSTTrainer
from captune.training.sft.train import SFTConfig, SFTTrainer
from captune.training.trainer import attach_callbacks, training_arguments

SMALL: dict[str, Any] = {"model": "", "images": "-", "device": "cpu", "batch_size": 4, "warmup_steps": 0}


def begun(folder: Path) -> RunDir:
    run_dir = RunDir(folder)
    run_dir.start({})
    return run_dir


def test_stage_1_and_stage_2(images: list, tmp_path: Path) -> None:
    folder = tiny_prefix.prefix_captioner(tmp_path / "model", "clip", "gpt2")
    references = [["a red ball"], ["two green fish"], ["a house"], ["a day"]]
    data = datasets.Dataset.from_dict({"image": images, "references": references}, datasets.Features(
        image=datasets.Image(), references=datasets.List(datasets.Value("string"))))  # fmt: skip
    results = []
    for shared in (False, True):
        captioner = Captioner.load(folder, device="cpu")
        before = captioner.core.model.projector.mlp[1].weight.clone()
        torch.manual_seed(0)
        calls: list[int] = []
        captioner.core.model.vision_tower.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run_dir = begun(tmp_path / f"run-{shared}")
        lora: dict[str, Any] = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
        config = SFTConfig(output=run_dir.path, max_steps=6, learning_rate=0.01, train_connector=True, **lora, **SMALL)
        make_trainable(captioner, config, connector=True)
        memo = captioner.share_vision() if shared else None
        SFTTrainer.fit(captioner, data, config, run_dir)
        features = captioner.image_features(images)
        if memo is not None:
            memo.remove()
            assert len(calls) == 2  # once for all steps, and once more: a checkpoint forgets what is kept
        else:
            assert len(calls) > 6
        results.append((torch.tensor([row["loss"] for row in run_dir.metrics() if "loss" in row]), features))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5) and torch.allclose(
        results[0][1], results[1][1], atol=1e-4
    )
    learned = captioner.core.model.projector.modules_to_save["default"].mlp[1].weight
    assert (learned - before).abs().max() > 1e-3
    captioner.save_adapter(tmp_path / "adapter")

    captioner = Captioner.load(folder, device="cpu")
    captioner.model = load_adapter(captioner.core, tmp_path / "adapter", trainable=True)
    captioner.freeze_vision()
    run_dir = begun(tmp_path / "scst")
    config = SCSTConfig(output=run_dir.path, reward="length", max_steps=2, num_generations=3, max_new_tokens=5, **SMALL)
    start = {name: p.clone() for name, p in captioner.model.named_parameters()}
    trainer = SCSTTrainer(captioner, data, training_arguments(config), reward=load_reward("length"), rl_config=config)
    attach_callbacks(trainer, run_dir)
    trainer.train()
    moved = [name for name, p in captioner.model.named_parameters() if not torch.equal(p, start[name])]
    assert moved and all(".lora_" in name for name in moved)
