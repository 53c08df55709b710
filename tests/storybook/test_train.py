"""The build, at a thousandth of its size: it saves an ordinary captioner and teaches what the scenes hold."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captune.models.captioner import Captioner
from captune.storybook import tower, train
from captune.storybook.draw import draw
from captune.storybook.parser import judge
from captune.storybook.world import COLOURS, KIND_NAMES, SIZES, Scene, Thing, random_for, sample_scene

# 512 of the pictures are kept out of stage 1's training
TINY = {"num_images": 540, "tower_steps": 3, "eyes_steps": 3, "web_steps": 6, "batch_size": 8, "bf16": False}
PAIR = (Thing("fish", "striped", "red", "big", 0.27, 0.27), Thing("cup", None, "blue", "small", 0.73, 0.73))
SCENE = Scene("beach", 3, PAIR)


@pytest.fixture(scope="module")
def build(storybook_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`build("a", seed=1)` -> (folder, log); 12 pictures stand for all, so that drawing takes no time."""
    scenes = [sample_scene("pretrain", 0, i) for i in range(12)]
    drawn = [np.asarray(draw(scene, 64)) for scene in scenes]

    def draw_images(config: train.BuildConfig) -> tuple[list[Scene], np.ndarray]:
        places = list(itertools.islice(itertools.cycle(range(12)), config.num_images))
        return [scenes[i] for i in places], np.stack([drawn[i] for i in places])

    def make(name: str, **settings: Any) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(name) / "model"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "draw_images", draw_images)
            patch.setattr(train, "build_tokenizer", lambda: storybook_tokenizer)
            patch.setattr(train, "greedy_figures", functools.partial(train.greedy_figures, n=2))
            return folder, train.build(train.BuildConfig(**(TINY | settings)), folder)

    return make


@pytest.fixture(scope="module")
def built(build: Any) -> tuple[Path, dict[str, Any]]:
    return build("tiny")


@pytest.fixture(scope="module")
def loaded(built: tuple[Path, dict[str, Any]]) -> Captioner:
    return Captioner.load(built[0], device="cpu")


def pictures(n: int = 4) -> list:
    return [draw(sample_scene("val", 0, i), 64) for i in range(n)]


# -- what is saved


def test_it_loads_as_a_captioner(loaded: Captioner) -> None:
    assert loaded.core.config.model_type == "idefics3"
    captions = loaded.generate(pictures(), max_new_tokens=8)
    assert len(captions) == 4 and all(isinstance(caption, str) for caption in captions)
    samples = loaded.generate(pictures(2), do_sample=True, num_return_sequences=5, max_new_tokens=8)
    assert len(set(samples)) > 1
    features = loaded.image_features(pictures())
    assert features.shape == (4, loaded.core.config.text_config.hidden_size) and torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 0


def test_safetensors_of_modest_size(built: tuple[Path, dict[str, Any]]) -> None:
    files = {path.name: path.stat().st_size for path in built[0].iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "build.json"} <= set(files)
    assert not any(name.endswith((".bin", ".pkl", ".pt")) for name in files)
    assert sum(files.values()) < 12e6


def test_the_log_says_what_was_done(built: tuple[Path, dict[str, Any]]) -> None:
    folder, log = built
    assert json.loads((folder / "build.json").read_text()) == log
    assert log["config"] == vars(train.BuildConfig(**TINY))
    assert {"kind", "colour", "size", "subkind", "background"} <= set(log["tower accuracy"])
    assert all(0 <= accuracy <= 1 for accuracy in log["tower accuracy"].values())
    assert all(math.isfinite(log[f"{stage} loss"]) for stage in ("eyes", "web"))
    assert log["seconds"].keys() >= {"drawing", "tower", "eyes", "web"}


def test_the_same_seed_builds_the_same_bytes(build: Any, built: tuple[Path, dict[str, Any]]) -> None:
    again, other = build("again")[0], build("other", seed=1)[0]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (built[0], again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_training_inputs_are_what_the_processor_makes(loaded: Captioner) -> None:
    """The prompt that the language model learns after is the prompt that it is asked with."""
    batch = loaded.prepare(pictures(1))
    assert batch["input_ids"][0].tolist() == train.prompt_ids(loaded.tokenizer)
    own = train.to_pixel_values(np.stack([np.asarray(picture) for picture in pictures()]))
    assert torch.allclose(loaded.prepare(pictures())["pixel_values"][:, 0], own, atol=1e-5)


def test_cached_features_are_what_the_model_sees(loaded: Captioner) -> None:
    """Stages 2 and 3 train on the tower's cached states: through the connector they are the image features."""
    states = train.tower_states(loaded.core, np.stack([np.asarray(picture) for picture in pictures()]))
    with torch.no_grad():
        image = loaded.core.model.connector(states.float())
    assert torch.allclose(image.mean(1), loaded.image_features(pictures()), atol=1e-2)


def test_captions_survive_the_tokenizer_and_the_decoder(loaded: Captioner) -> None:
    for caption in ("a day with <PERSON> in the meadow", "a big red striped fish left of a cup on the beach"):
        ids = loaded.caption_ids(caption)
        assert len(ids) <= 16 and loaded.decode([ids]) == [caption]
    batch = loaded.prepare(pictures(1), ["a red fish"])
    assert batch["labels"][0][batch["labels"][0] >= 0].tolist() == [
        *loaded.caption_ids("a red fish"),
        loaded.eos_ids[0],
    ]


# -- what is taught


def test_the_labels_of_the_quarters() -> None:
    labels = tower.cell_labels(SCENE)
    fish, cup = 1 + KIND_NAMES.index("fish"), 1 + KIND_NAMES.index("cup")
    assert labels[:, 0].tolist() == [fish, 0, 0, cup]  # top left, top right, bottom left, bottom right
    assert labels[:, 1].tolist() == [1 + COLOURS.index("red"), 0, 0, 1 + COLOURS.index("blue")]
    assert labels[:, 2].tolist() == [1 + SIZES.index("big"), 0, 0, 1 + SIZES.index("small")]
    assert labels[0, 3] == 1 + tower.SUBKIND_NAMES.index("striped") and labels[3, 3] == 0
    assert labels[:, 4].tolist() == [0, fish, cup, 0]  # the horizontal neighbour's kind
    assert labels[:, 5].tolist() == [0, cup, fish, 0]  # the vertical neighbour's


def test_the_labels_of_the_patches() -> None:
    labels = tower.patch_labels(SCENE).reshape(4, 4, 2)
    fish, cup = 1 + KIND_NAMES.index("fish"), 1 + KIND_NAMES.index("cup")
    assert set(labels[:2, :2, 0].ravel()) == {fish}, "a big thing covers its quarter"
    assert cup in labels[2:, 2:, 0] and set(labels[2:, 2:, 0].ravel()) <= {0, cup}
    assert not labels[:2, 2:].any() and not labels[2:, :2].any()
    assert (labels[..., 1] > 0).sum() == (labels[..., 0] == fish).sum()


def test_each_quarter_has_its_patches() -> None:
    patches = torch.arange(16.0).view(1, 16, 1).expand(2, 16, 3)
    assert tower.per_cell(patches)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_the_curriculum_is_true_and_the_web_is_not() -> None:
    """Stage 2 says nothing false; stage 3 does."""
    false = {"eyes": 0, "web": 0}
    for stage in false:
        for i in range(300):
            scene, rng = sample_scene("pretrain", 0, i), random_for("pretrain", 0, i, "test")
            text = train.text_of(scene, sample_scene("pretrain", 0, i + 1), stage, i / 300, rng)
            spans = judge(text, scene)
            assert stage == "web" or spans, text
            false[stage] += not all(span.true for span in spans)
    assert false["eyes"] == 0 and false["web"] > 150


def test_relations_alone_are_true() -> None:
    for i in range(200):
        scene = sample_scene("pretrain", 1, i)
        if len(scene.things) > 1:
            text = train.relation_only(scene, random_for("pretrain", 1, i, "test"))
            spans = judge(text, scene)
            assert all(span.true for span in spans), text
            assert [span.kind for span in spans] == ["object", "relation", "object"], text


def test_the_pictures_are_those_of_the_split() -> None:
    config = train.BuildConfig(seed=5, num_images=3)
    scenes, pixels = train.draw_images(config)
    assert scenes == [sample_scene("pretrain", 5, i) for i in range(3)]
    assert pixels.shape == (3, 64, 64, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[2], np.asarray(draw(scenes[2], 64)))


def test_optimising_lowers_the_loss() -> None:
    torch.manual_seed(0)
    weight, target = torch.nn.Parameter(torch.zeros(4)), torch.tensor([1.0, -2.0, 0.5, 3.0])
    losses = train.optimise(
        [weight],
        lambda step: ((weight - target) ** 2).sum(),
        steps=80,
        lr=0.2,
        factor=lambda step: 1.0,
        name="x",
        bf16=False,
    )
    assert len(losses) == 80 and losses[-1] < 0.2 * losses[0]


def test_the_schedule_warms_up_and_comes_down() -> None:
    factors = [train.schedule(step, 600) for step in range(600)]
    assert factors[0] < 0.05 and max(factors) <= 1 and factors[59] > 0.9 and factors[-1] < 0.05
    assert factors[60:] == sorted(factors[60:], reverse=True)
