"""The mapper: its loss by hand, its file, what it reads and what it leaves alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from captune.errors import CaptionerError, SettingError
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.scorers.image.vizer_mapper import ViZerScorer
from captune.training.vizer.mapper_fit import fit_mapper

CAPTIONS = ["a red ball", "two green fish and a small yellow bird on the beach", "a", "my house in 2011"]


@pytest.fixture(scope="module")
def dataset(images: list) -> datasets.Dataset:
    pictures = [*images, *(tiny.picture(seed) for seed in range(4, 12))]
    return datasets.Dataset.from_list([{"image": image, "image_id": str(i)} for i, image in enumerate(pictures)])


def texts(n: int) -> list[list[str]]:
    words = ("red", "blue", "green", "small", "fish", "bird", "house", "beach")
    return [[f"a {words[i % 8]} {words[(3 * i + 1) % 8]}", f"two {words[(5 * i + 2) % 8]}"] for i in range(n)]


def random_mapper(captioner: Captioner, images: list, **settings: object) -> Mapper:
    torch.manual_seed(3)
    config = MapperConfig(width=16, **settings)
    features = captioner.image_features(images, where=config.feature, pool=config.pool)
    mapper = Mapper(config, 32, features.shape[-1], captioner.name)
    mapper.measure(features)
    return mapper.eval().requires_grad_(False)


def told(captioner: Captioner, mapper: Mapper, pictures: list, captions: list[str]) -> torch.Tensor:
    """F_T_hat of captions in the context of pictures."""
    batch = captioner.prepare(pictures, captions)
    return mapper(
        *captioner.caption_hidden_states(batch, blind=mapper.config.blind, shift=mapper.config.shift)
    ).detach()


def by_hand(mapper: Mapper, pooled: list[float]) -> list[float]:
    """LayerNorm, linear, GELU, linear in plain Python."""
    norm, first, _, second = mapper.h
    mean = sum(pooled) / len(pooled)
    variance = sum((x - mean) ** 2 for x in pooled) / len(pooled)
    x = [(v - mean) / math.sqrt(variance + norm.eps) for v in pooled]
    hidden = [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(first.weight.tolist(), first.bias.tolist(), strict=True)
    ]
    hidden = [0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
    rows = zip(second.weight.tolist(), second.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, hidden, strict=True)) + b for row, b in rows]


def test_the_loss_by_hand() -> None:
    torch.manual_seed(0)
    mapper = Mapper(MapperConfig(width=3, depth=2), hidden_size=4, feature_size=2)
    mapper.centre.copy_(torch.tensor([0.5, -1.0]))
    state, feature = [0.3, -1.2, 2.0, 0.7], [1.5, 0.25]
    a = [feature[0] - 0.5, feature[1] + 1.0]
    b = by_hand(mapper, state)
    expected = (a[0] * b[0] + a[1] * b[1]) / (math.hypot(*a) * math.hypot(*b))
    found = mapper.cosine(torch.tensor([[state]]), torch.tensor([[True]]), torch.tensor([feature]))
    assert found.tolist() == pytest.approx([expected], abs=1e-6)
    own = torch.nn.functional.cosine_similarity(torch.tensor([a]), torch.tensor([b]))
    assert found.tolist() == pytest.approx(own.tolist(), abs=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_counts_linear_layers(depth: int) -> None:
    mapper = Mapper(MapperConfig(width=5, depth=depth), hidden_size=4, feature_size=3)
    linear = [module for module in mapper.h if isinstance(module, nn.Linear)]
    assert len(linear) == depth and linear[0].in_features == 4 and linear[-1].out_features == 3
    assert isinstance(mapper.h[-1], nn.Linear), "no activation after the last layer"
    with pytest.raises(ValueError, match="depth of at least 1, not 0"):
        Mapper(MapperConfig(depth=0), hidden_size=4, feature_size=3)


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 7.0], [100.0, 100.0]], [[5.0, 0.0], [7.0, 2.0], [9.0, 7.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    tokens = [[[1.0, 2.0], [3.0, 7.0]], [[5.0, 0.0], [7.0, 2.0], [9.0, 7.0]]]
    for how in ("mean", "last", "tokens"):
        torch.manual_seed(0)
        mapper = Mapper(MapperConfig(width=4, caption_pool=how), hidden_size=2, feature_size=3)
        for row, states in zip(mapper(hidden, mask).tolist(), tokens, strict=True):
            if how == "tokens":
                each = [by_hand(mapper, state) for state in states]
                expected = [sum(values) / len(each) for values in zip(*each, strict=True)]
            else:
                mean = [sum(values) / len(states) for values in zip(*states, strict=True)]
                expected = by_hand(mapper, states[-1] if how == "last" else mean)
            assert row == pytest.approx(expected, abs=1e-5), how


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("caption_pool", ["mean", "last", "tokens"])
def test_padding_is_masked(captioner: Captioner, images: list, blind: bool, shift: bool, caption_pool: str) -> None:
    """A caption in a batch of longer ones is read as it is read alone."""
    mapper = random_mapper(captioner, images, blind=blind, shift=shift, caption_pool=caption_pool)
    together = told(captioner, mapper, images, CAPTIONS)
    alone = torch.cat([told(captioner, mapper, [i], [c]) for i, c in zip(images, CAPTIONS, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_blind_does_not_see_the_image(captioner: Captioner, images: list) -> None:
    """Only through F_I does a blind score depend on the image; with the image in context the reading does too."""
    others = images[1:] + images[:1]
    for blind in (True, False):
        mapper = random_mapper(captioner, images, blind=blind)
        here, there = (told(captioner, mapper, pictures, CAPTIONS) for pictures in (images, others))
        if blind:
            assert torch.equal(here, there)
        else:
            assert (here - there).abs().amax(dim=1).min() > 1e-3
        scores = [mapper.score(captioner, captioner.prepare(pictures, CAPTIONS)) for pictures in (images, others)]
        assert not torch.allclose(*scores, atol=1e-4)  # through F_I


def test_the_score_is_the_cosine_of_what_is_read(captioner: Captioner, images: list) -> None:
    mapper = random_mapper(captioner, images, centred=True, pool="quarters", caption_pool="tokens")
    features = captioner.image_features(images, pool="quarters")
    expected = torch.nn.functional.cosine_similarity(
        features - features.mean(0), told(captioner, mapper, images, CAPTIONS), dim=-1
    )
    found = mapper.score(captioner, captioner.prepare(images, CAPTIONS))
    assert torch.allclose(found, expected, atol=1e-5)


def test_shifted_states_are_those_before(captioner: Captioner, images: list) -> None:
    """With shift the last token itself is not read, only the states up to what predicts it."""
    plain, shifted = (random_mapper(captioner, images, shift=shift, caption_pool="last") for shift in (False, True))
    one, other = captioner.prepare(images[:1], ["a red ball"]), captioner.prepare(images[:1], ["a red ball"])
    eos = int(one["caption_mask"][0].nonzero()[-1])
    other["input_ids"][0, eos] = captioner.caption_ids("x")[0]
    assert torch.equal(shifted.score(captioner, one), shifted.score(captioner, other))
    assert not torch.equal(plain.score(captioner, one), plain.score(captioner, other))


def test_fit_lowers_the_loss_and_freezes(captioner: Captioner, dataset: datasets.Dataset) -> None:
    mapper, losses = fit_mapper(
        captioner, dataset, texts(len(dataset)), MapperConfig(width=32, centred=True), epochs=40, lr=3e-3, batch_size=8
    )
    assert len(losses) == 40 * 3  # 24 captions in batches of 8
    assert sum(losses[-6:]) / 6 < 0.5 * sum(losses[:3]) / 3
    assert not mapper.training and not any(p.requires_grad for p in mapper.parameters())
    assert mapper.captioner_name == captioner.name


def test_a_fitted_mapper_knows_its_captions(captioner: Captioner, dataset: datasets.Dataset) -> None:
    captions = texts(len(dataset))
    config = MapperConfig(width=64, centred=True, blind=True)
    mapper, _ = fit_mapper(captioner, dataset, captions, config, epochs=60, lr=3e-3, batch_size=8)
    pictures = dataset["image"][:]
    features = mapper.image_features(captioner, pictures)
    hidden, mask = captioner.caption_hidden_states(
        captioner.prepare(pictures, [own[0] for own in captions]), blind=True
    )
    right = mapper.cosine(hidden, mask, features)
    wrong = torch.stack([mapper.cosine(hidden, mask, features.roll(i, 0)) for i in (1, 2, 3)]).mean(0)
    assert (right > wrong).float().mean() >= 0.9


def test_fit_leaves_the_captioner_alone(captioner: Captioner, dataset: datasets.Dataset) -> None:
    tiny.taught(captioner)
    captioner.model.train()
    before = {name: tensor.clone() for name, tensor in captioner.model.state_dict().items()}
    fit_mapper(captioner, dataset, texts(len(dataset)), MapperConfig(width=8), epochs=2)
    assert captioner.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in captioner.model.state_dict().items())
    assert all(parameter.grad is None for parameter in captioner.model.parameters())


def test_the_fit_reads_the_base(captioner: Captioner, dataset: datasets.Dataset) -> None:
    """In a second round the captioner has learned something; the reader has not."""
    config = MapperConfig(width=8, blind=True)
    before, _ = fit_mapper(captioner, dataset, texts(len(dataset)), config)
    tiny.taught(captioner)
    after, _ = fit_mapper(captioner, dataset, texts(len(dataset)), config)
    for name, tensor in before.state_dict().items():
        assert torch.allclose(tensor, after.state_dict()[name], atol=1e-5), name


def test_the_same_seed_fits_the_same_mapper(captioner: Captioner, dataset: datasets.Dataset) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed + 100)  # what went before must not matter
        mapper, _ = fit_mapper(captioner, dataset, texts(len(dataset)), MapperConfig(width=8), epochs=2, seed=seed)
        return list(mapper.state_dict().values())

    once, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(once, other, strict=True))


def test_the_centre_is_the_mean_feature(captioner: Captioner, dataset: datasets.Dataset) -> None:
    features = captioner.image_features(dataset["image"][:], pool="quarters")
    for centred in (True, False):
        config = MapperConfig(width=8, pool="quarters", centred=centred)
        mapper, _ = fit_mapper(captioner, dataset, texts(len(dataset)), config)
        assert torch.allclose(mapper.centre, features.mean(0) if centred else torch.zeros_like(features[0]), atol=1e-6)
        assert mapper.feature_size == features.shape[1] == mapper.h[-1].out_features


def test_whitened_features_have_unit_variance(captioner: Captioner, dataset: datasets.Dataset) -> None:
    features = captioner.image_features(dataset["image"][:], pool="quarters")
    config = MapperConfig(width=8, pool="quarters", whitened=5)
    mapper, losses = fit_mapper(captioner, dataset, texts(len(dataset)), config)
    target = mapper.target(features)
    assert target.shape == (len(features), 5) and losses
    assert torch.allclose(target.mean(0), torch.zeros(5), atol=1e-4)
    assert torch.allclose(target.T @ target / len(features), torch.eye(5), atol=1e-3)
    for number in (len(dataset), 13):  # centred, N images differ in N - 1 directions
        with pytest.raises(SettingError, match=rf"whitened {number} needs .* differ in {len(dataset) - 1}$"):
            fit_mapper(captioner, dataset, texts(len(dataset)), MapperConfig(pool="quarters", whitened=number))


def test_equal_images_are_no_further_directions(captioner: Captioner, dataset: datasets.Dataset) -> None:
    twice = datasets.concatenate_datasets([dataset, dataset])
    with pytest.raises(SettingError, match=rf"differ in {len(dataset) - 1}$"):
        fit_mapper(captioner, twice, texts(len(twice)), MapperConfig(pool="quarters", whitened=len(dataset) + 1))


def test_images_may_have_different_numbers_of_captions(captioner: Captioner, dataset: datasets.Dataset) -> None:
    """Each caption is fitted on its own image: one with none, one with many."""
    captions = [[], *texts(len(dataset) - 1)]
    captions[3] = captions[3] * 3
    _, losses = fit_mapper(captioner, dataset, captions, MapperConfig(width=8), batch_size=1)
    assert len(losses) == sum(map(len, captions))
    with pytest.raises(ValueError, match="12 images, 11 caption lists"):
        fit_mapper(captioner, dataset, captions[1:], MapperConfig())
    with pytest.raises(ValueError, match="needs captions"):
        fit_mapper(captioner, dataset, [[]] * len(dataset), MapperConfig())


@pytest.mark.parametrize("where", ["connector", "tower"])
def test_features_of_tower_or_connector(captioner: Captioner, dataset: datasets.Dataset, where: str) -> None:
    config = MapperConfig(width=8, feature=where)
    mapper, losses = fit_mapper(captioner, dataset, texts(len(dataset)), config)
    expected = captioner.image_features(dataset["image"][:2], where=where)
    assert torch.equal(mapper.image_features(captioner, dataset["image"][:2]), expected) and losses


def test_saved_and_loaded_bit_for_bit(captioner: Captioner, images: list, tmp_path: Path) -> None:
    settings = {
        "centred": True,
        "blind": True,
        "shift": True,
        "caption_pool": "tokens",
        "pool": "quarters",
        "whitened": 3,
    }
    mapper = random_mapper(captioner, images, **settings)
    loaded = Mapper.load(mapper.save(tmp_path / "run" / "mapper"))
    assert loaded.config == mapper.config and loaded.captioner_name == captioner.name
    assert set(loaded.state_dict()) == set(mapper.state_dict())
    assert all(torch.equal(tensor, mapper.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    states = torch.randn(5, 7, 32), torch.ones(5, 7, dtype=torch.bool), torch.randn(5, mapper.feature_size)
    assert torch.equal(loaded.cosine(*states), mapper.cosine(*states))
    first = (tmp_path / "run" / "mapper" / "mapper.safetensors").read_bytes()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "mapper.safetensors").read_bytes() == first


def test_a_folder_without_a_mapper_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        Mapper.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"mapper\.safetensors is missing"):
        Mapper.load(tmp_path)


@pytest.fixture
def saved(captioner: Captioner, images: list, tmp_path: Path) -> Path:
    """A mapper's folder, to break."""
    mapper = random_mapper(captioner, images)
    mapper.captioner_digest = captioner.base_digest()
    return mapper.save(tmp_path / "mapper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {k: v for k, v in t.items() if "h.1" not in k},
            r"2 tensors are missing \(h\.1\.bias, h\.1\.weight\)",
        ),
        (lambda t: {**t, "g.0.weight": torch.zeros(1)}, r"1 tensors are not of this model \(g\.0\.weight\)"),
        (lambda t: {**t, "centre": torch.zeros(1)}, "1 tensors are of another shape .centre"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite"),
    ],
)
def test_b3_a_mapper_is_whole_or_refused(saved: Path, change, message: str) -> None:
    save_file(change(load_file(saved / "mapper.safetensors")), saved / "mapper.safetensors")
    with pytest.raises(CaptionerError, match=message):
        Mapper.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"width": 3}', '{"width": "a", "hidden_size": 1}', "\0"])
def test_b3_a_mappers_config_of_any_kind(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CaptionerError, match=r"config\.json"):
        Mapper.load(saved)


def test_b3_a_torn_mapper(saved: Path) -> None:
    whole = (saved / "mapper.safetensors").read_bytes()
    (saved / "mapper.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaptionerError, match="damaged"):
        Mapper.load(saved)


def test_b1_a_mapper_of_another_captioner(saved: Path, captioner: Captioner) -> None:
    mapper = Mapper.load(saved)
    mapper.check_captioner(captioner)
    captioner.add_lora()
    mapper.check_captioner(captioner)  # of the base, whatever is trained
    mapper.captioner_digest = "0" * 16
    with pytest.raises(CaptionerError, match="with other weights"):
        ViZerScorer(mapper=mapper).bind(captioner)
