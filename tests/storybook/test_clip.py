from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captune.storybook import clip, model_path, world
from captune.storybook.changes import changed, fact_vector, scene_vector, true_of
from captune.storybook.clip_model import ClipConfig, build_model, build_processor, build_tokenizer
from captune.storybook.draw import draw
from captune.storybook.grammar import reference
from captune.storybook.world import Scene, Thing, sample_scene

TINY = ClipConfig(
    num_images=48,
    look_steps=12,
    steps=12,
    batch_size=16,
    negatives=1,
    width=32,
    vision_layers=1,
    text_layers=1,
    bf16=False,
    validation=8,
)
SCENE = Scene(
    "beach", 3, (Thing("fish", "striped", "red", "big", 0.27, 0.3), Thing("cup", None, "blue", "small", 0.73, 0.27))
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(clip.corpus(0, 200))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], set[str]]:
    """A tiny build: its folder, its log, and the splits that were asked for before measuring."""
    output, asked, measured = tmp_path_factory.mktemp("clip"), set(), clip.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "sample_scene", lambda split, *where: asked.add(split) or world.sample_scene(split, *where))

        def measure(*args: Any, **settings: Any) -> dict[str, float]:
            patch.setattr(clip, "sample_scene", world.sample_scene)
            return measured(*args, **settings)

        patch.setattr(clip, "measure", measure)
        return output, clip.build(TINY, output), asked


def embeddings(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    from captune.models.encoders.clip import Encoder

    encoder = Encoder.load(folder)
    return encoder.encode_images([draw(SCENE), draw(sample_scene("clip", 1, 1))]), encoder.encode_texts(
        ["a red fish", "a cup"]
    )


def test_training_uses_the_clip_split_only(built: tuple[Path, dict[str, Any], set[str]]) -> None:
    assert built[2] == {"clip"}


def test_the_build_leaves_a_model_a_processor_and_its_figures(built: tuple[Path, dict[str, Any], set[str]]) -> None:
    output, log, _ = built
    assert json.loads((output / "build.json").read_text()) == log
    assert log["config"]["steps"] == 12
    assert {"image to text R@1", "changed relation", "right against wrong image AUC"} <= set(log["figures"])
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in output.iterdir()}


def test_it_loads_by_the_auto_classes(built: tuple[Path, dict[str, Any], set[str]]) -> None:
    from transformers import AutoModel, AutoProcessor, CLIPModel, CLIPProcessor

    model = AutoModel.from_pretrained(built[0])
    processor = AutoProcessor.from_pretrained(built[0], backend="pil")
    assert isinstance(model, CLIPModel) and isinstance(processor, CLIPProcessor)
    inputs = processor(
        text=["a red fish", "a cup on the beach"], images=[draw(SCENE)], padding=True, return_tensors="pt"
    )
    assert model(**inputs).logits_per_image.shape == (1, 2)


def test_saving_keeps_the_embeddings(built: tuple[Path, dict[str, Any], set[str]], tmp_path: Path) -> None:
    from transformers import AutoModel, AutoProcessor

    AutoModel.from_pretrained(built[0]).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(built[0], backend="pil").save_pretrained(tmp_path)
    for before, after in zip(embeddings(built[0]), embeddings(tmp_path), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)
        assert before.norm(dim=-1) == pytest.approx(1)
        assert not torch.equal(before[0], before[1])


def test_the_processor_prepares_pictures_as_training_does(tokenizer: Any) -> None:
    picture = draw(SCENE)
    prepared = build_processor(tokenizer).image_processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(prepared, clip.to_pixel_values(np.array(picture)[None]), rtol=0, atol=1e-6)


def test_the_loss_falls() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(clip.corpus(0, 200))
    trainer = clip.Trainer(build_model(tokenizer, TINY), tokenizer, TINY)
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss = trainer.contrast(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert all(p.grad is not None for p in trainer.model.text_model.parameters())


def test_info_nce_of_a_perfect_and_of_a_blind_encoder() -> None:
    seen, scale = torch.eye(3), torch.tensor(50.0)
    truth = torch.zeros(5, 3, dtype=torch.bool)
    said = torch.cat([torch.eye(3), -torch.eye(3)[:2]])
    assert clip.info_nce(seen, said, scale, truth) == pytest.approx(0, abs=1e-6)
    blind = clip.info_nce(torch.ones(3, 4), torch.ones(5, 4), scale, truth)
    assert blind == pytest.approx((np.log(5) + np.log(3)) / 2)  # 5 texts to choose from, 3 pictures


def test_info_nce_excuses_captions_that_are_true_of_other_pictures() -> None:
    seen = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    said, scale = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor(20.0)
    truth = torch.eye(3, dtype=torch.bool)
    both = truth.clone()
    both[0, 1] = both[1, 0] = True
    assert clip.info_nce(seen, said, scale, both) < 0.01 < 0.4 < clip.info_nce(seen, said, scale, truth)


def test_the_tokenizer_follows_clip(tokenizer: Any) -> None:
    ids = tokenizer("a red fish").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id != 2
    assert tokenizer("A photo depicts A Red FISH").input_ids == tokenizer("a photo depicts a red fish").input_ids
    padded = tokenizer(["a red fish", "a big red fish by the lake"], padding=True)
    assert padded.input_ids[0][-1] == tokenizer.pad_token_id and padded.attention_mask[0][-1] == 0
    assert tokenizer.unk_token_id not in tokenizer("Ein Käse, 2019: 写真!").input_ids


def test_what_is_said_is_true_and_what_misleads_is_mostly_not() -> None:
    rng, untrue = random.Random(0), 0
    for index in range(100):
        scene = sample_scene("clip", 3, index)
        caption = clip.say(scene, rng)
        facts = np.stack([fact_vector(t) for t in (caption, clip.mislead(caption, scene, scene, rng))])
        true, misleading = true_of(facts, scene_vector(scene)[None])[:, 0]
        assert true, caption
        untrue += not misleading
    assert untrue > 80


def test_the_shipped_model_is_small_and_what_the_defaults_build() -> None:
    weights = model_path("storybook-clip") / "model.safetensors"
    log = json.loads((model_path("storybook-clip") / "build.json").read_text())
    assert weights.stat().st_size < 7e6
    assert log["parameters"] < 1.8e6
    assert log["config"] == vars(ClipConfig())


def test_clip_score_with_the_shipped_model_tells_right_from_wrong() -> None:
    from captune.scorers.image.clip import ClipScore

    scenes = [sample_scene("val", 4, index) for index in range(40)]
    pictures = [draw(scene, 64) for scene in scenes]
    captions = [reference(scene, random.Random(index)) for index, scene in enumerate(scenes)]
    scorer = ClipScore()
    right = scorer.rows(captions, image=pictures)[:, 0]
    wrong = scorer.rows(captions[1:] + captions[:1], image=pictures)[:, 0]
    assert (right[:, None] > wrong).mean() > 0.99
    assert scorer.rows([caption.upper() + "." for caption in captions], image=pictures)[:, 0] == pytest.approx(
        right, abs=0.2
    )
    for what, least in (("kind", 0.9), ("colour", 0.8), ("relation", 0.7), ("background", 0.9)):
        pairs = [(i, changed(text, what, random.Random(i))) for i, text in enumerate(captions)]
        rows = [i for i, text in pairs if text is not None]
        false = scorer.rows([text for _, text in pairs if text is not None], image=[pictures[i] for i in rows])[:, 0]
        assert (right[rows] > false).mean() > least, what
