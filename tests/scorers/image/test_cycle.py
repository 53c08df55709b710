from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoders
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from captune import storybook
from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers.image.cycle import Cycle
from captune.storybook.drawer import scene_of
from captune.storybook.parser import count, judged
from captune.storybook.world import Scene, Thing

IMAGES = [tiny.picture(i) for i in range(3)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def data() -> Any:
    return storybook.load("test", 40)


class Painter:
    """A text-to-image pipeline as diffusers' are called: noise, and what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.components = {"unet": torch.nn.Linear(2, 2), "scheduler": object()}
        self.flagged: list[bool] | None = None

    def __call__(self, *, prompt: str, generator: torch.Generator, output_type: str, **options: Any) -> Any:
        self.calls.append({"prompt": prompt, **options})
        pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
        return SimpleNamespace(images=[Image.fromarray(pixels)], nsfw_content_detected=self.flagged)


def painted(clip: Path, settings: str = "") -> tuple[Cycle, Painter]:
    painter = Painter()
    return Cycle(f"some/model?encoder={clip}{settings}", pipeline=painter, device="cpu"), painter


def test_a_caption_is_drawn_as_it_says() -> None:
    scene = scene_of("a big red striped fish right of a small blue cup and a pine below the cup on the beach", 5)
    things = {t.kind: t for t in scene.things}
    assert (scene.background, scene.variation, len(scene.things)) == ("beach", 5, 3)
    assert (things["fish"].size, things["fish"].colour, things["fish"].subkind) == ("big", "red", "striped")
    assert things["fish"].x > things["cup"].x and things["tree"].y > things["cup"].y
    assert (things["tree"].subkind, things["tree"].colour, things["tree"].size) == ("pine", "white", "small")


def test_what_is_not_stated_is_neutral() -> None:
    assert scene_of("a cat") == Scene("snow", 0, (Thing("cat", None, "white", "small", 0.27, 0.27),))
    assert scene_of("") == scene_of("😀 \u2028 what a day") == Scene("snow", 0, ())
    assert scene_of("a red") == Scene("snow", 0, ())  # a colour of nothing
    assert scene_of("a tall fish").things[0].subkind == "striped"  # no fish is tall
    assert scene_of("in the mountain").background == "mountains"


def test_things_said_twice_and_things_without_a_place() -> None:
    assert len(scene_of("a cat and a cat").things) == 2
    the_cat = scene_of("a cat left of a dog and the red cat").things
    assert len(the_cat) == 1 and the_cat[0].colour == "red"
    crowd = scene_of("a house a car a tree a boat a fish a bird a flower a ball a kite a cup").things
    assert len(crowd) == 9 and len({(t.x, t.y) for t in crowd}) == 9
    # relations that contradict each other: as many as can hold
    contradiction = "a cat left of a cup and a ball above the cat and the cup left of the cat"
    assert [f.value for f, true in judged(contradiction, scene_of(contradiction)) if not true] == [
        ("cup", "left of", "cat")
    ]


def test_true_captions_are_true_of_what_is_drawn_from_them(data: Any) -> None:
    for own in data["references"]:
        for caption in own:
            facts = count(caption, scene_of(caption))
            assert all(true == stated for true, stated, *_ in facts.values()), caption


def test_storybook_tells_right_from_wrong(data: Any) -> None:
    scorer = load_scorer("cycle")
    right = [own[0] for own in data["references"]]
    wrong = right[1:] + right[:1]
    result = evaluate(right, {"image": data["image"]}, [scorer], bootstrap=20)["cycle"]
    other = scorer.rows(wrong, image=data["image"])[:, 0]
    assert list(result.values) == ["cycle"] and result.value > 0.8 and other.mean() < 0.4
    assert (result.per_caption > other).mean() > 0.95
    assert result.signature.startswith("cycle|t2i:storybook@") and "encoder:storybook-clip@" in result.signature


def test_any_batch_split_and_any_order(data: Any) -> None:
    scorer, parts = load_scorer("cycle"), Cycle(batch_size=3)
    captions, images = [own[0] for own in data["references"][:7]], data["image"][:7]
    rows = scorer.rows(captions, image=images)
    single = np.concatenate([scorer.rows([c], image=[i]) for c, i in zip(captions, images, strict=True)])
    np.testing.assert_allclose(single, rows, atol=1e-5)
    np.testing.assert_allclose(parts.rows(captions[::-1], image=images[::-1]), rows[::-1], atol=1e-5)
    assert scorer.rows([], image=[]).shape == (0, 1)


def test_a_pipeline_draws_by_caption_and_seed_alone(clip: Path) -> None:
    captions = ["a dog", "a cat", "a dog"]
    scorer, painter = painted(clip, "&steps=4&guidance=0&size=64")
    rows = scorer.rows(captions, image=IMAGES)
    options = {"num_inference_steps": 4, "guidance_scale": 0.0, "height": 64, "width": 64}
    assert painter.calls == [{"prompt": "a dog", **options}, {"prompt": "a cat", **options}]  # equal captions once
    again = np.concatenate([scorer.rows([c], image=[i]) for c, i in zip(captions, IMAGES, strict=True)])
    np.testing.assert_allclose(again, rows, atol=1e-6)
    other, _ = painted(clip, "&seed=1")
    assert abs(other.rows(captions, image=IMAGES) - rows).max() > 1e-6
    own = scorer.draw("a dog")
    assert own.tobytes() != scorer.draw("a cat").tobytes()
    assert scorer.rows(["a dog"], image=[own])[0, 0] == pytest.approx(1, abs=1e-6)
    for part in ("some/model@", "num_inference_steps:4", "guidance_scale:0", "width:64", "seed:0", f"encoder:{clip}@"):
        assert part in scorer.signature


def test_the_signature_knows_the_pipelines_weights(clip: Path) -> None:
    first, painter = painted(clip)
    second = Cycle(f"some/model?encoder={clip}", pipeline=painter)
    assert first.signature == second.signature
    assert painted(clip)[0].signature != first.signature  # other random weights
    assert "options:default" in first.signature


def test_a_failing_pipeline_is_no_zero(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer, painter = painted(clip)
    painter.flagged = [True]
    with caplog.at_level(logging.WARNING):
        scorer.rows(["a dog"], image=IMAGES[:1])
    assert "safety checker blacked out the image of 'a dog'" in caplog.text
    for error in (RuntimeError("out of memory"), ValueError("size"), TypeError("no such option")):
        scorer._pipeline = lambda error=error, **_: (_ for _ in ()).throw(error)
        with pytest.raises(ScorerError, match=f"could not draw 'a dog': {error}"):
            scorer.rows(["a dog"], image=IMAGES[:1])


def test_an_image_only_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "dino")
    scorer = Cycle(f"storybook?encoder={tmp_path / 'dino'}", device="cpu")
    rows = scorer.rows(["a red cat", "a cup", ""], image=IMAGES)
    drawn = scorer.draw("a red cat")
    with torch.no_grad():
        a, b = (model(**processor(images=image, return_tensors="pt")).last_hidden_state[0, 0]
                for image in (IMAGES[0], drawn))  # fmt: skip
    assert rows[0, 0] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5)
    assert scorer.rows(["a red cat"], image=[drawn])[0, 0] == pytest.approx(1, abs=1e-5)
    assert f"encoder:{tmp_path / 'dino'}@{scorer.encoder.digest}|" in scorer.signature


def test_features_that_are_no_numbers_are_no_score() -> None:
    blind = SimpleNamespace(name="blind", encode_images=lambda images, **_: torch.full((len(images), 3), torch.nan))
    with pytest.raises(ScorerError, match="not finite"):
        Cycle(encoder=blind).rows(["a cat"], image=IMAGES[:1])


def test_what_is_missing_is_said(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_scorer("cycle").check()
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer(f"cycle:storybook?encoder={tmp_path}/no").check()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else found(name))
    with pytest.raises(ScorerError, match="pip install diffusers"):
        load_scorer(f"cycle:some/model?encoder={clip}").rows(["a"], image=IMAGES[:1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "diffusers" else found(name))
    load_scorer(f"cycle:some/model?encoder={clip}").check()
    for folder, says in ((tmp_path, "no model_index.json"), (tmp_path / "no", "pipeline folder .* does not exist")):
        with pytest.raises(ScorerError, match=says):
            load_scorer(f"cycle:{folder}?encoder={clip}").check()


def test_settings() -> None:
    with pytest.raises(ValueError, match="say which encoder"):
        load_scorer("cycle:some/model")
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        load_scorer("cycle:?stepps=1")
    with pytest.raises(ValueError, match="draws by a program and has no steps"):
        load_scorer("cycle:storybook?steps=3")
    with pytest.raises(ValueError, match="steps: '0' must be at least 1"):
        load_scorer("cycle:a/b?encoder=c&steps=0")
    assert load_scorer("cycle").cached and load_scorer("cycle").required_columns == ("image",)


def test_b11_an_empty_caption_draws_nothing(clip: Path) -> None:
    scorer, painter = painted(clip)
    rows = scorer.rows(["", "a red ball"], image=[Image.new("RGB", (64, 64), "red")] * 2)
    assert rows[0, 0] == 0 and rows[1, 0] != 0 and [c["prompt"] for c in painter.calls] == ["a red ball"]
