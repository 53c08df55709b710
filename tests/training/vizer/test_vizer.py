"""ViZer's objectives: what they are worth, what they move, and how often the vision tower runs for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch

from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.runs.run_dir import RunDir
from captune.scorers.image.vizer_mapper import ViZerScorer
from captune.training.vizer.mapper_fit import fit_mapper
from captune.training.vizer.objectives import ViZerTrainer, kl_to_start, latent_loss, straight_through_loss
from captune.training.vizer.train import (
    ViZerConfig,
)

CAPTIONS = ["a red ball", "two green fish and a small yellow bird", "a", "my house in 2011"]


def mapper_of(captioner: Captioner, images: list, **settings: Any) -> Mapper:
    torch.manual_seed(3)
    config = MapperConfig(width=16, **settings)
    features = captioner.image_features(images, where=config.feature, pool=config.pool)
    mapper = Mapper(config, 32, features.shape[-1], captioner.name)
    mapper.measure(features)
    return mapper.eval().requires_grad_(False)


def config(output: Path, **settings: Any) -> ViZerConfig:
    small = {"max_steps": 2, "batch_size": 2, "lora_r": 4, "lora_alpha": 8, "max_new_tokens": 5, "warmup_steps": 0}
    return ViZerConfig(model="", images="-", output=output, device="cpu", **(small | settings))


@pytest.fixture
def dataset(images: list) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"image": image, "image_id": str(i)} for i, image in enumerate(images)])


class Tower:
    """Counts what happens at the vision tower and the connector."""

    def __init__(self, captioner: Captioner) -> None:
        self.forward = self.images = self.backward = 0
        for part in (captioner.core.model.vision_model, captioner.core.model.connector):
            for module in part.modules():
                if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
                    module.register_full_backward_hook(self.went_back)
        captioner.core.model.vision_model.register_forward_hook(self.went_forward, with_kwargs=True)

    def went_forward(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        self.forward += 1
        self.images += len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])

    def went_back(self, *_: Any) -> None:
        self.backward += 1


def moved(captioner: Captioner, mapper: Mapper) -> set[str]:
    """Names of the captioner's parameters that a gradient reached; the mapper's must be none."""
    assert all(parameter.grad is None for parameter in mapper.parameters())
    parameters = captioner.model.named_parameters()
    return {name for name, p in parameters if p.grad is not None and p.grad.abs().max() > 0}


# -- the losses


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_the_latent_loss_is_one_minus_the_cosine(captioner: Captioner, images: list, blind: bool, shift: bool) -> None:
    tiny.taught(captioner)
    mapper = mapper_of(captioner, images, blind=blind, shift=shift, centred=True)
    loss = latent_loss(captioner, mapper, images, CAPTIONS)[0]
    batch = captioner.prepare(images, CAPTIONS)
    hidden, mask = captioner.caption_hidden_states(batch, blind=blind, shift=shift)
    told = torch.stack([mapper.h(h[m].mean(0)) for h, m in zip(hidden, mask, strict=True)])
    target = captioner.image_features(images) - mapper.centre
    expected = 1 - torch.nn.functional.cosine_similarity(target, told, dim=-1).mean()
    assert loss.shape == () and loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("blind", [False, True])
def test_the_latent_gradient_reaches_lora_and_nothing_else(captioner: Captioner, images: list, blind: bool) -> None:
    tiny.taught(captioner)
    mapper, tower = mapper_of(captioner, images, blind=blind), Tower(captioner)
    with captioner.share_vision():
        latent_loss(captioner, mapper, images, CAPTIONS)[0].backward()
    names = moved(captioner, mapper)
    assert names and all("lora_" in name and ".text_model." in name for name in names)
    assert len({name for name in names if "lora_A" in name}) == len({name for name in names if "lora_B" in name})
    assert (tower.forward, tower.images, tower.backward) == (1, 4, 0)


def test_what_sharing_saves(captioner: Captioner, images: list) -> None:
    """As trainers prepare models for adapters, the same loss goes backward through the tower."""
    tiny.taught(captioner)
    captioner.core.enable_input_require_grads()
    mapper, tower = mapper_of(captioner, images), Tower(captioner)
    batch = captioner.prepare(images, CAPTIONS)
    mapper.cosine(*captioner.caption_hidden_states(batch), captioner.image_features(batch)).sum().backward()
    assert tower.forward == 2 and tower.backward > 0
    tower.backward = 0
    with captioner.share_vision():
        latent_loss(captioner, mapper, images, CAPTIONS)[0].backward()
    assert tower.forward == 3 and tower.backward == 0


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("caption_pool", ["mean", "tokens"])
def test_straight_through_has_the_value_of_the_blind_score(
    captioner: Captioner, images: list, shift: bool, caption_pool: str
) -> None:
    tiny.taught(captioner)
    mapper = mapper_of(captioner, images, blind=True, centred=True, shift=shift, caption_pool=caption_pool)
    loss = straight_through_loss(captioner, mapper, images, CAPTIONS)[0]
    scores = ViZerScorer(captioner=captioner, mapper=mapper).rows(CAPTIONS, image=images)
    assert loss.item() == pytest.approx(1 - scores.mean(), abs=1e-5)
    assert scores.std() > 1e-3


def test_straight_through_reaches_lora_and_nothing_else(captioner: Captioner, images: list) -> None:
    tiny.taught(captioner)
    mapper, tower = mapper_of(captioner, images, blind=True, centred=True), Tower(captioner)
    with captioner.share_vision():
        straight_through_loss(captioner, mapper, images, CAPTIONS)[0].backward()
    names = moved(captioner, mapper)
    assert names and all("lora_" in name and ".text_model." in name for name in names)
    assert (tower.forward, tower.images, tower.backward) == (1, 4, 0)


def test_straight_through_gradients_point_at_better_words(captioner: Captioner, images: list) -> None:
    """A step along the gradient makes tokens likelier in the measure in which the mapper likes them."""
    tiny.taught(captioner)
    mapper = mapper_of(captioner, images, blind=True, centred=True)
    captions = ["a", "b", "c", "d"]
    loss, _, logits = straight_through_loss(captioner, mapper, images, captions)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    assert torch.allclose(gradient.sum(-1), torch.zeros(gradient.shape[:2]), atol=1e-6)  # a softmax's gradient
    batch = captioner.prepare(images, captions)
    last_of_prompt = int(batch["caption_mask"][0].nonzero()[0]) - 1
    assert gradient[:, last_of_prompt].abs().max() > 0, "the first word gets no gradient"
    assert gradient[:, :last_of_prompt].abs().max() == 0, "the prompt gets one"


def test_kl_is_zero_before_training(captioner: Captioner, images: list) -> None:
    captioner.add_lora(r=4, alpha=8)
    captioner.model.train()
    value = kl_to_start(captioner, captioner.prepare(images, CAPTIONS))
    assert value.item() == pytest.approx(0, abs=1e-6)
    value.backward()  # at its minimum: a gradient of zero, but a gradient
    assert any(p.grad is not None for p in captioner.model.parameters())


def test_kl_by_hand(captioner: Captioner, images: list) -> None:
    tiny.taught(captioner)
    batch = captioner.prepare(images, CAPTIONS)
    value = kl_to_start(captioner, batch)
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "caption_mask")}
    with torch.no_grad():
        ours = captioner.model(**inputs).logits.log_softmax(-1)
        with captioner.disable_adapter():
            base = captioner.model(**inputs).logits.log_softmax(-1)
    each = []
    for row, at in batch["caption_mask"].nonzero().tolist():
        p, q = ours[row, at - 1], base[row, at - 1]  # what predicts the token at `at`
        each.append(float((p.exp() * (p - q)).sum()))
    assert min(each) >= -1e-6 and value.item() > 1e-3
    assert value.item() == pytest.approx(sum(each) / len(each), rel=1e-4)
    logits = captioner.model(**inputs).logits
    assert kl_to_start(captioner, batch, logits).item() == pytest.approx(value.item(), rel=1e-5)


def test_kl_pulls_back_to_the_base(captioner: Captioner, images: list) -> None:
    tiny.taught(captioner)
    batch = captioner.prepare(images, CAPTIONS)
    optimizer = torch.optim.SGD([p for p in captioner.model.parameters() if p.requires_grad], lr=0.02)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = kl_to_start(captioner, batch)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert min(values) >= 0 and values[-1] < 0.9 * values[0]


# -- the trainer


def adapter(captioner: Captioner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in captioner.model.named_parameters() if "lora_" in name}


def train(captioner: Captioner, dataset: datasets.Dataset, settings: ViZerConfig, mapper: Mapper) -> RunDir:
    run_dir = RunDir(settings.output).start({})
    with captioner.share_vision():
        ViZerTrainer.fit(captioner, dataset, settings, run_dir, mapper=mapper, **settings.trainer_settings())
    return run_dir


def others(captioner: Captioner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in captioner.model.named_parameters() if "lora_" not in name}


@pytest.mark.parametrize("objective", ["latent", "straight_through"])
def test_training_steps(
    captioner: Captioner, images: list, dataset: datasets.Dataset, tmp_path: Path, objective: Any
) -> None:
    """Two steps on two images each: one evaluation of the tower a step, no backward, only LoRA moves."""
    settings = config(tmp_path / "run", objective=objective, beta=0.1)
    mapper = mapper_of(captioner, images, blind=True, centred=True)
    captioner.add_lora(4, 8, 0.1)
    tower, before, frozen = Tower(captioner), adapter(captioner), others(captioner)
    fixed = {name: tensor.clone() for name, tensor in mapper.state_dict().items()}
    with captioner.share_vision() as memo:
        run_dir = train(captioner, dataset, settings, mapper)
        assert memo.evaluations == 2
    assert (tower.forward, tower.images, tower.backward) == (2, 4, 0)
    assert any(not torch.equal(before[name], tensor) for name, tensor in adapter(captioner).items())
    assert all(torch.equal(frozen[name], tensor) for name, tensor in others(captioner).items())
    assert all(torch.equal(fixed[name], tensor) for name, tensor in mapper.state_dict().items())
    assert [row["step"] for row in run_dir.metrics() if "loss" in row] == [1, 2]


def test_latent_steps_lower_the_loss(
    captioner: Captioner, images: list, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    settings = config(
        tmp_path / "run", objective="latent", max_steps=12, batch_size=4, learning_rate=0.02, beta=0.0, lora_dropout=0.0
    )
    mapper = mapper_of(captioner, images)
    torch.manual_seed(0)
    captioner.add_lora(4, 8, 0.0)
    run_dir = train(captioner, dataset, settings, mapper)
    losses = [row["loss"] for row in run_dir.metrics() if "loss" in row]
    assert losses[-1] < losses[0] - 0.05, losses


def test_a_fitted_mapper_serves_the_trainer(
    captioner: Captioner, dataset: datasets.Dataset, images: list, tmp_path: Path
) -> None:
    """From captions to a fitted mapper to a trained adapter, saved and read back."""
    mapper, _ = fit_mapper(captioner, dataset, [[c] for c in CAPTIONS], MapperConfig(width=8, blind=True), epochs=2)
    settings = config(tmp_path / "run", objective="latent")
    captioner.add_lora(4, 8, 0.1)
    train(captioner, dataset, settings, mapper)
    captioner.save_adapter(tmp_path / "adapter")
    captioner.model.eval()
    again = Captioner.load(captioner.name, adapter=tmp_path / "adapter", device="cpu")
    assert again.generate(images, max_new_tokens=6) == captioner.generate(images, max_new_tokens=6)
