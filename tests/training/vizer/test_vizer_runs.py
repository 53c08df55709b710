"""Runs of ViZer from settings to adapter: the mapper's captions, rounds, runs that are cut and go on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from captune.data import load_images
from captune.decoding import load_decoder
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.runs.run_dir import RunDir
from captune.training import trainer as training
from captune.training.lifecycle import evaluation_source, load_training_images
from captune.training.monitor.held_out import HeldOutMonitor
from captune.training.vizer.config import PRESETS, ViZerConfig
from captune.training.vizer.train import build_mapper, captions_for_mapper, mapper_images, run
from captune.utils.skipped import counting


def config(output: Path, **settings: Any) -> ViZerConfig:
    small = {"max_steps": 2, "batch_size": 2, "lora_r": 4, "lora_alpha": 8, "max_new_tokens": 3, "warmup_steps": 0}
    small |= {"mapper_samples": 2, "mapper_epochs": 2, "width": 8, "whitened": 0, "num_generations": 2}
    small |= {"accept_reward": True}  # of random weights
    return ViZerConfig(**({"model": "", "images": "-", "output": output, "device": "cpu"} | small | settings))


class Cut(RuntimeError):
    """What stops a run in the middle."""


def cut_run(settings: ViZerConfig, training_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies at the end of its n-th optimiser step, over all rounds."""
    steps: list[int] = []

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append(state.global_step)
        if len(steps) == training_step:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            run(settings)


def results(run_dir: RunDir) -> dict[str, Any]:
    """The bytes of the adapter and of the mapper, and what was logged of training."""
    numbers = [{key: row[key] for key in ("step", "loss", "reward", "kl") if key in row} for row in run_dir.metrics()]
    return {
        "adapter": (run_dir.adapter / "adapter_model.safetensors").read_bytes(),
        "mapper": (run_dir.mapper / "mapper.safetensors").read_bytes(),
        "training": [row for row in numbers if "loss" in row],
    }


# -- whole runs


@pytest.mark.usefixtures("no_report")
def test_rounds_of_reward(tiny_folder: Any, photos: str, tmp_path: Path) -> None:
    """Each round has its mapper and its steps; the run's adapter is the last round's, its mapper too."""
    model = str(tiny_folder("idefics3"))
    one = run(config(tmp_path / "one", model=model, images=photos, rounds=1))
    two = run(config(tmp_path / "two", model=model, images=photos, rounds=2))
    assert [row["step"] for row in two.metrics() if "reward" in row] == [1, 2, 3, 4]
    last = (two.path / "round-2" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert results(two)["adapter"] == last
    first = (two.path / "round-1" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert first == results(one)["adapter"] != last
    assert results(two)["mapper"] != results(one)["mapper"]
    assert Captioner.load(model, adapter=two.adapter, device="cpu")


@pytest.mark.usefixtures("no_report")
def test_the_same_seed_gives_the_same_bytes(tiny_folder: Any, photos: str, tmp_path: Path) -> None:
    settings = {"model": str(tiny_folder("idefics3")), "images": photos, "rounds": 1}
    same, again, other = (
        run(config(tmp_path / name, seed=seed, **settings)) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert results(same) == results(again)
    assert results(same)["adapter"] != results(other)["adapter"]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("objective", "rounds", "step"), [("reward", 2, 1), ("reward", 2, 3), ("reward", 2, 4), ("latent", 1, 2)]
)
def test_a_cut_run_ends_like_an_uncut_one(
    tiny_folder: Any,
    photos: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: Any,
    rounds: int,
    step: int,
) -> None:
    """Cut in the first round, at the start of the second, or after a checkpoint in it."""
    settings = {"model": str(tiny_folder("idefics3")), "images": photos, "objective": objective, "rounds": rounds}
    settings |= {"save_steps": 1}
    whole = run(config(tmp_path / "whole", **settings))
    cut_run(config(tmp_path / "cut", **settings), step, monkeypatch)
    assert not RunDir(tmp_path / "cut").finished
    assert results(run(config(tmp_path / "cut", **settings))) == results(whole)


def test_a_whole_run(tiny_folder: Any, photos: str, tmp_path: Path) -> None:
    """The preset `paper` on a folder of images: what is left behind, scored by the mapper itself."""
    model = str(tiny_folder("idefics3"))
    settings = {key: value for key, value in PRESETS["paper"].items() if key not in ("max_steps", "width")}
    run_dir = run(config(tmp_path / "run", preset="paper", model=model, images=photos, **settings))
    assert run_dir.finished and (run_dir.path / "report.html").is_file()
    rows = run_dir.scores()["rows"]
    assert [row["name"] for row in rows] == ["base", "ViZer zero-label (paper)"]
    assert all({"vizer", "health"} <= set(row["scores"]) for row in rows)
    assert Mapper.load(run_dir.mapper).captioner_name == model


# -- the mapper's captions


@pytest.mark.parametrize(("captions", "n"), [("generated", 4), ("sampled", 4 * 3)])
def test_the_mapper_is_built_on_the_models_own_captions(
    captioner: Captioner, photos: str, tmp_path: Path, captions: str, n: int
) -> None:
    settings = config(tmp_path / "run", mapper_captions=captions, mapper_samples=3, mapper_epochs=5)
    settings.images = photos
    run_dir = RunDir(settings.output).start({})
    mapper = build_mapper(captioner, settings, run_dir, load_images(settings.images))
    assert Mapper.load(run_dir.mapper).config == mapper.config == settings.mapper_config()
    steps = [row for row in run_dir.metrics() if "mapper_loss" in row]
    assert len(steps) == 5 * ((n + 63) // 64)


def test_one_of_an_images_captions_is_guided(captioner: Captioner, photos: str, tmp_path: Path) -> None:
    """Sampled at a temperature that leaves the likeliest word only, captions are the greedy ones."""
    images = load_images(photos)
    pictures = images[:]["image"]
    plain = captioner.generate(pictures, max_new_tokens=3)
    under = load_decoder("cfg:9")(captioner, pictures, max_new_tokens=3)
    assert plain != under
    settings = config(tmp_path, mapper_samples=3, temperature=1e-3)
    for scale, expected in (
        (9.0, [[a, a, b] for a, b in zip(plain, under, strict=True)]),
        (0.0, [[a] * 3 for a in plain]),
    ):
        assert captions_for_mapper(captioner, images, replace(settings, guidance=scale)) == expected
    alone = replace(settings, mapper_samples=1, guidance=9.0)
    assert captions_for_mapper(captioner, images, alone) == [[text] for text in under]
    greedy = replace(settings, mapper_captions="generated", guidance=9.0)
    assert captions_for_mapper(captioner, images, greedy) == [[text] for text in plain]


@pytest.mark.usefixtures("no_report")
def test_guidance_is_for_the_first_round(
    tiny_folder: Any, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = []

    def noted(captioner: Captioner, part: ViZerConfig, *args: Any, **kwargs: Any) -> Mapper:
        scales.append(part.guidance)
        return build_mapper(captioner, part, *args, **kwargs)

    monkeypatch.setattr("captune.training.vizer.train.build_mapper", noted)
    run(config(tmp_path / "run", model=str(tiny_folder("idefics3")), images=photos, rounds=3, guidance=3.0))
    assert scales == [3.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="above 1"):
        config(tmp_path, guidance=0.5)


def test_a_run_that_goes_on_takes_the_mapper_it_has(
    captioner: Captioner, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "run", mapper_captions="generated", mapper_epochs=2)
    settings.images = photos
    run_dir = RunDir(settings.output).start({})
    fitted = build_mapper(captioner, settings, run_dir, load_images(photos), first_step=10)
    steps = [row["step"] for row in run_dir.metrics()]
    assert steps and all(10 <= step < 10 + settings.max_steps for step in steps)
    monkeypatch.setattr(
        "captune.training.vizer.train.fit_mapper", lambda *_, **__: pytest.fail("it was fitted already")
    )
    taken = build_mapper(captioner, settings, run_dir, load_images(photos), first_step=10)
    kept = taken.state_dict()
    assert all(tensor.equal(kept[name]) for name, tensor in fitted.state_dict().items())
    assert [row["step"] for row in run_dir.metrics()] == steps


def test_gt_captions_come_from_the_source_that_is_named(
    captioner: Captioner, images: list, photos: str, tmp_path: Path
) -> None:
    settings = config(tmp_path / "run", mapper_captions=photos)
    with pytest.raises(ValueError, match="no caption to learn from for 4 images"):
        build_mapper(captioner, settings, RunDir(settings.output).start({}), images)


def test_gt_captions_are_of_no_image_that_the_run_is_judged_on(tmp_path: Path) -> None:
    """The held-out part of --images lies in the mapper's source, too, and so does a copy under another name."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(24):
        tiny.picture(number).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"ball number {number}\n")
    settings = config(tmp_path / "run", model="storybook", images=str(photos), mapper_captions=str(tmp_path / "more"))
    judged = set(load_images(evaluation_source(settings))["image_id"])
    shutil.copytree(photos, tmp_path / "more")
    name = next(iter(judged))
    (tmp_path / "more" / name).rename(tmp_path / "more" / "copy.png")
    (tmp_path / "more" / name).with_suffix(".txt").rename(tmp_path / "more" / "copy.txt")
    with counting() as counts:
        found = mapper_images(settings, load_training_images(settings))
    assert judged and not judged & set(found["image_id"]) and "copy.png" not in found["image_id"]
    assert len(found) == 24 - len(judged) and sum(len(items) for items in counts.values()) == len(judged)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("objective", ["latent", "reward"])
def test_an_adapters_prompt_is_that_of_the_mapper_too(
    tiny_folder: Any, photos: str, tmp_path: Path, objective: str
) -> None:
    model, settings = str(tiny_folder("idefics3")), {"max_steps": 1, "objective": objective}
    if objective == "reward":
        settings |= {"rounds": 1}
    asked = Captioner.load(model, device="cpu", prompt="what is in this place ?")
    asked.add_lora(4, 8, 0.0)
    adapter = asked.save_adapter(tmp_path / "adapter")
    run_dir = run(config(tmp_path / "run", model=model, images=photos, adapter=adapter, **settings))
    assert Mapper.load(run_dir.mapper).prompt == asked.prompt
    assert Captioner.load(model, adapter=run_dir.adapter, device="cpu").prompt == asked.prompt
    other = run(config(tmp_path / "other", model=model, images=photos, adapter=adapter, prompt="say it", **settings))
    assert Mapper.load(other.mapper).prompt == "say it"


def test_the_image_is_seen_through_the_bases_connector(captioner: Captioner, images: list) -> None:
    mapper = Mapper(MapperConfig(width=8), 32, captioner.image_features(images).shape[-1], captioner.name)
    expected = mapper.image_features(captioner, images)
    tiny.reconnected(captioner)
    frozen = [name for name, weight in captioner.model.named_parameters() if not weight.requires_grad]
    assert not torch.allclose(captioner.image_features(images), expected)
    with captioner.share_vision():
        for _ in range(2):
            assert torch.allclose(mapper.image_features(captioner, images), expected)
            with captioner.disable_adapter():
                assert torch.allclose(mapper.image_features(captioner, images), expected)
                assert torch.allclose(captioner.image_features(images), expected)  # still without it
    assert frozen == [name for name, weight in captioner.model.named_parameters() if not weight.requires_grad]


def test_the_monitor_samples_as_the_training_does(
    tiny_folder: Any, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []

    class Seen(RuntimeError):
        pass

    def init(self: Any, *args: Any, max_new_tokens: int = 40, temperature: float = 1.0, **kwargs: Any) -> None:
        seen.append((max_new_tokens, temperature))
        raise Seen

    monkeypatch.setattr(HeldOutMonitor, "__init__", init)
    with pytest.raises(Seen):
        run(config(tmp_path / "run", model=str(tiny_folder("idefics3")), images=photos, temperature=0.7))
    assert seen == [(config(tmp_path / "x", model="storybook", images=photos).max_new_tokens, 0.7)]


# -- settings


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--blind"):
        config(tmp_path, objective="straight_through", blind=False)
    with pytest.raises(ValueError, match="at least 2"):
        config(tmp_path, num_generations=1)
    with pytest.raises(ValueError, match="--images"):
        ViZerConfig(model="storybook", images="", output=tmp_path)
    with pytest.raises(ValueError, match="--learning-rate"):
        config(tmp_path, learning_rate=0)


def test_the_paper_preset_is_the_literal_reading(tmp_path: Path) -> None:
    settings = config(tmp_path, preset="paper", **PRESETS["paper"])
    assert settings.objective == "latent" and settings.mapper_captions == "generated"
    assert not (settings.blind or settings.centred or settings.shift) and settings.caption_pool == "mean"
    assert settings.width == 256 and settings.beta == 0
    assert (settings.lora_r, settings.weight_decay) == (4, 0.01)
    literal = ViZerConfig(model="", images="-", output=tmp_path, **PRESETS["paper"])
    assert (literal.lora_r, literal.lora_alpha, literal.lora_dropout) == (32, 64, 0.1)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("objective", ["latent", "reward"])
def test_a7_a_half_written_mapper_is_named_and_fitted_again(
    tiny_folder: Any, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, objective: Any
) -> None:
    settings = {"model": str(tiny_folder("idefics3")), "images": photos, "objective": objective, "rounds": 1}
    whole = run(config(tmp_path / "whole", **settings))
    cut_run(config(tmp_path / "cut", **settings), 1, monkeypatch)
    folder = RunDir(tmp_path / "cut" / ("round-1" if objective == "reward" else ".")).mapper
    file = folder / "config.json"
    file.write_text(file.read_text()[:20])
    resumed = run(config(tmp_path / "cut", **settings))
    assert results(resumed) == results(whole)
    assert f"{folder} cannot be read and is fitted again" in caplog.text and "config.json" in caplog.text
    steps = [[row["step"] for row in each.metrics() if "mapper_loss" in row] for each in (whole, resumed)]
    assert steps[0] == steps[1]
