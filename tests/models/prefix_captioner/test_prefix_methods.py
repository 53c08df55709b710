"""What captune does with captioners, done with a prefix captioner: captions, supervision, ViZer_G, rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import tiny_prefix
import torch

from captune.decoding import load_decoder
from captune.inference.job import caption_source
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.training.config import TrainingConfig
from captune.training.grpo.train import train_with_reward
from captune.training.sft.train import SFTConfig, SFTTrainer
from captune.training.vizer.train import ViZerConfig, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 behind CLIP: absolute positions, no BOS, linear layers that are not nn.Linear."""
    return tiny_prefix.prefix_captioner(tmp_path_factory.mktemp("prefix"), "clip", "gpt2")


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass through the encoder saw."""
    from transformers import CLIPVisionModel

    seen: list[int] = []
    forward = CLIPVisionModel.forward

    def counting(self: Any, pixel_values: Any = None, **kwargs: Any) -> Any:
        seen.append(len(pixel_values))
        return forward(self, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(CLIPVisionModel, "forward", counting)
    return seen


def test_a_captioning_job(folder: Path, photos: str, images: list, tmp_path: Path) -> None:
    captioner = Captioner.load(folder, device="cpu")
    captioner.core.generation_config.max_new_tokens = 5
    report = caption_source(captioner, photos, tmp_path / "captions.jsonl", batch_size=2)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(images) and not report.bad
    made = {Path(row["image_id"]).stem: row["caption"] for row in rows}
    assert [made[str(i)] for i in range(len(images))] == captioner.generate(images)


@pytest.mark.parametrize("spec", ["cfg:2.0", "contrastive:0.5", "best-of:3:length"])
def test_decoders(folder: Path, images: list, spec: str) -> None:
    captioner = Captioner.load(folder, device="cpu")
    torch.manual_seed(0)
    captions = load_decoder(spec)(captioner, images, max_new_tokens=5)
    assert len(captions) == len(images) and captions != captioner.generate(images, max_new_tokens=5)


def test_supervision(folder: Path, images: list, tmp_path: Path) -> None:
    captioner = Captioner.load(folder, device="cpu")
    rows = [{"image": image, "references": ["a red ball"]} for image in images]
    config = SFTConfig(model="", images="-", output=tmp_path, device="cpu", max_steps=12, batch_size=4, warmup_steps=0,
                       learning_rate=0.02)  # fmt: skip
    torch.manual_seed(0)
    captioner.add_lora(8, 16, 0.0)
    run_dir = RunDir(tmp_path / "run")
    run_dir.start({})
    with captioner.share_vision() as memo:
        SFTTrainer.fit(captioner, datasets.Dataset.from_list(rows), config, run_dir)
        assert memo.images == len(images), "once per image, over all steps"
    losses = [row["loss"] for row in run_dir.metrics() if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_reward(folder: Path, images: list, tmp_path: Path, evaluations: list[int], beta: float) -> None:
    """trl's GRPOTrainer through captune's: each image encoded once a step, the adapter moves, the rest stays."""
    captioner = Captioner.load(folder, device="cpu")
    torch.manual_seed(0)
    captioner.add_lora(4, 8, 0.1)
    before = {name: p.clone() for name, p in captioner.model.named_parameters()}
    config = TrainingConfig(model="", images="-", output=tmp_path / "run", device="cpu", max_steps=2, batch_size=2,
                            warmup_steps=0, learning_rate=0.01)  # fmt: skip
    run_dir = RunDir(config.output)
    run_dir.start({})
    dataset = datasets.Dataset.from_list([{"image": image, "image_id": str(i)} for i, image in enumerate(images)])
    train_with_reward(
        captioner, dataset, [(load_scorer("length"), 1.0)], config, run_dir, beta=beta, num_generations=3,
        temperature=1.0, max_new_tokens=4,
    )  # fmt: skip
    assert evaluations == [2, 2]
    assert sum("reward" in row for row in run_dir.metrics()) == 2
    moved = [name for name, p in captioner.model.named_parameters() if not torch.equal(p, before[name])]
    assert moved and all(".lora_" in name for name in moved)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("objective", ["reward", "latent", "straight_through"])
def test_vizer_without_labels(folder: Path, photos: str, tmp_path: Path, objective: str) -> None:
    """ViZer_G, all three objectives: mapper and adapter from images alone."""
    small = {"max_steps": 2, "batch_size": 2, "max_new_tokens": 4, "warmup_steps": 0, "mapper_samples": 2}
    small |= {"mapper_epochs": 2, "width": 8, "whitened": 2, "num_generations": 2, "lora_r": 4, "lora_alpha": 8}
    small |= {"accept_reward": True}  # of random weights
    config = ViZerConfig(
        model=str(folder), images=photos, output=tmp_path / "run", device="cpu", objective=objective, rounds=1, **small
    )
    done = run(config)
    key = "reward" if objective == "reward" else "loss"
    numbers = torch.tensor([row[key] for row in done.metrics() if key in row])
    assert len(numbers) == 2 and numbers.isfinite().all()
    base, trained = Captioner.load(folder, device="cpu"), Captioner.load(folder, adapter=done.adapter, device="cpu")
    batch = base.prepare([tiny.picture(0)])
    with torch.no_grad():
        assert (base.model(**batch).logits - trained.model(**batch).logits).abs().max() > 1e-4
