"""Nothing twice, nothing lost: the trainer against TRL's own, and cut at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer

from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.scorers import load_scorer
from captune.training.grpo import trainer as rollouts
from captune.training.grpo.trainer import CaptionGRPOTrainer


@pytest.fixture
def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_list([{"image": tiny.picture(i), "image_id": str(i)} for i in range(6)])


def arguments(output: Path, **settings: Any) -> GRPOConfig:
    small: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": False,
        "logging_steps": 1,
        "seed": 3,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return GRPOConfig(output_dir=str(output), **(small | settings))


def build(folder: Path, dataset: datasets.Dataset, output: Path, *, stock: bool = False, **settings: Any) -> Any:
    captioner = Captioner.load(folder, device="cpu")
    torch.manual_seed(0)
    captioner.add_lora(4, 8, settings.pop("dropout", 0.1))
    extra = {name: settings.pop(name) for name in ("latent", "keep_vision", "watch") if name in settings}
    args = arguments(output, **settings)
    reward = load_scorer("length")
    if not stock:
        return CaptionGRPOTrainer(captioner, dataset, [(reward, 1.0)], args, **extra)
    prompts = [[{"role": "user", "content": captioner.prompt}]] * len(dataset)
    return GRPOTrainer(
        captioner.model,
        processing_class=captioner.processor,
        reward_funcs=[reward],
        args=args,
        train_dataset=dataset.add_column("prompt", prompts),
    )


def adapter(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize(
    ("family", "beta"), [("idefics3", 0.1), ("llava_next", 0.0), ("qwen2_vl", 0.1), ("internvl", 0.0)]
)
def test_it_trains_as_trl_does(
    tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path, family: str, beta: float
) -> None:
    """The same samples, losses and weights as the stock trainer, with what is repeated done once."""
    ours, theirs = (
        build(tiny_folder(family), dataset, tmp_path / str(stock), stock=stock, beta=beta, dropout=0.0)
        for stock in (False, True)
    )
    for trainer in (ours, theirs):
        torch.manual_seed(5)
        trainer.train()
    logs = [[row for row in trainer.state.log_history if "reward" in row] for trainer in (ours, theirs)]
    assert len(logs[0]) == 2
    for mine, other in zip(*logs, strict=True):
        assert mine["reward"] == other["reward"] and mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
    for (name, a), b in zip(adapter(ours).items(), adapter(theirs).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-2, msg=name)
    assert "generate" not in vars(ours.captioner.core), "the model is given back as it was"


def test_an_image_is_decoded_preprocessed_and_encoded_once_a_step(
    tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(tiny_folder("idefics3"), dataset, tmp_path, beta=0.1, num_generations=4, max_steps=1)
    trainer.args.per_device_train_batch_size = 4
    memos: list[Any] = []
    original = rollouts.PreprocessingCache

    def counted(processor: Any) -> Any:
        memos.append(original(processor))
        return memos[-1]

    decoded: list[int] = []
    rows = datasets.Dataset.__getitems__
    monkeypatch.setattr(rollouts, "PreprocessingCache", counted)
    monkeypatch.setattr(datasets.Dataset, "__getitems__", lambda self, i: decoded.append(len(i)) or rows(self, i))
    prefills: list[int] = []
    trainer.captioner.core.model.text_model.register_forward_hook(
        lambda m, a, k, o: prefills.append(len(o.last_hidden_state)) if o.past_key_values is not None else None,
        with_kwargs=True,
    )
    trainer.train()
    assert decoded[0] == 1, "one image, four captions"
    assert [(memo.images, memo.asked) for memo in memos] == [(1, 8)]
    assert prefills[0] == 1 and prefills[1] == 4, "one prompt, four continuations"
    assert trainer._memo.images == 1


@pytest.mark.parametrize("settings", [
    {"num_iterations": 2},
    {"steps_per_generation": 2, "num_iterations": 2, "beta": 0.1},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
], ids=["iterations", "buffer", "accumulated"])  # fmt: skip
def test_cut_at_any_step_it_ends_the_same(
    tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """With captions waiting in the buffer, and in the second and third pass over the images: to the bit."""
    common = settings | {"max_steps": 7, "save_strategy": "steps", "save_steps": 1}
    whole = build(tiny_folder("idefics3"), dataset, tmp_path / "whole", **common)
    torch.manual_seed(5)
    whole.train()
    expected = adapter(whole)
    for step in range(1, 7):
        resumed = build(
            tiny_folder("idefics3"), dataset, tmp_path / f"resumed-{step}", **(common | {"save_steps": 100})
        )
        torch.manual_seed(step)  # whatever the process did before
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for (name, a), b in zip(expected.items(), adapter(resumed).values(), strict=True):
            assert torch.equal(a, b), (step, name)


def test_a_pass_has_its_own_order(tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path) -> None:
    sampler = build(tiny_folder("idefics3"), dataset, tmp_path)._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_latent_loss_is_added(tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path) -> None:
    """With its weight, on the captions that were sampled; a constant reward leaves nothing else to learn."""
    captioner = Captioner.load(tiny_folder("idefics3"), device="cpu")
    mapper = Mapper(MapperConfig(width=8), captioner.core.config.text_config.hidden_size,
                    captioner.image_features([tiny.picture(0)]).shape[1])  # fmt: skip
    mapper.requires_grad_(False)
    logs = {}
    for weight in (0.0, 0.5):
        trainer = build(tiny_folder("idefics3"), dataset, tmp_path / str(weight), latent=(mapper, weight), max_steps=1)
        torch.manual_seed(5)
        trainer.train()
        logs[weight] = next(row for row in trainer.state.log_history if "latent_loss" in row)
    assert 0 < logs[0.5]["latent_loss"] < 2
    assert logs[0.5]["loss"] == pytest.approx(logs[0.0]["loss"] + 0.5 * logs[0.0]["latent_loss"], abs=1e-4)


def test_kept_features_spare_the_tower(tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path) -> None:
    """A second run over the images reads what the first kept, and trains to the same bits."""
    adapters, images = [], []
    for run in ("first", "second"):
        trainer = build(tiny_folder("idefics3"), dataset, tmp_path / run, keep_vision=tmp_path / "vision", max_steps=3)
        torch.manual_seed(5)
        trainer.train()
        adapters.append(adapter(trainer))
        images.append(trainer._memo.images)
    assert images == [6, 1], "the tower sees one image to learn what the model returns"
    assert all(torch.equal(a, b) for a, b in zip(adapters[0].values(), adapters[1].values(), strict=True))
    kept = list((tmp_path / "vision").rglob("*.safetensors"))
    assert len(kept) == 6 and load_file(kept[0])["pooled"].ndim == 2
