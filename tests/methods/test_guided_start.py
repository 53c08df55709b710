"""A guided start: the captions are those of guidance, what learns is the adapter, and a run that was cut goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captune.captioner import Captioner
from captune.data import load_images, read_jsonl
from captune.decoding import load_decoder
from captune.methods import guided_start, training
from captune.methods.guided_start import learn_guided
from captune.methods.vizer import PRESETS, ViZerConfig
from captune.options import build
from captune.runs import RunDir


def config(output: Path, photos: str, **settings: Any) -> ViZerConfig:
    small: dict[str, Any] = {"guidance": 3.0, "guided_images": 3, "guided_steps": 4, "batch_size": 2, "save_steps": 2}
    small |= {"lora_r": 4, "lora_alpha": 8, "max_new_tokens": 6, "warmup_steps": 0, "device": "cpu", "model": "-"}
    return ViZerConfig(**({"images": photos, "output": output} | small | settings))


def begun(folder: Path) -> Captioner:
    captioner = Captioner.load(folder, device="cpu")
    torch.manual_seed(0)
    captioner.add_lora(4, 8, 0.0)
    return captioner


def adapter(captioner: Captioner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in captioner.model.named_parameters() if "lora_B" in name}


def test_it_learns_what_guidance_says(tiny_folder: Any, photos: str, tmp_path: Path) -> None:
    folder = tiny_folder("idefics3")
    captioner, images = begun(folder), load_images(photos)
    wanted = load_decoder("cfg:3")(Captioner.load(folder, device="cpu"), images[:3]["image"], max_new_tokens=6)
    plain = captioner.generate(images[:3]["image"], max_new_tokens=6)
    settings = config(tmp_path / "run", photos, guided_steps=40)
    run_dir = RunDir(settings.output)
    learn_guided(captioner, settings, run_dir, images)
    said = [row["caption"] for row in read_jsonl(run_dir.path / "guided" / "captions.jsonl")]
    assert said == wanted and said != plain, "the first three images, by guidance, without the new adapter"
    losses = [row["loss"] for row in RunDir(run_dir.path / "guided").metrics() if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    assert any(p.abs().sum() > 0 for p in adapter(captioner).values()) and not captioner.model.training
    again = begun(folder)
    learn_guided(again, settings, run_dir, images)  # it is there: nothing is trained
    for name, value in adapter(captioner).items():
        assert torch.equal(adapter(again)[name], value)


def test_a_start_that_was_cut_goes_on(
    tiny_folder: Any, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images = tiny_folder("idefics3"), load_images(photos)
    whole = begun(folder)
    learn_guided(whole, config(tmp_path / "whole", photos), RunDir(tmp_path / "whole"), images)

    def cut(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("cut")

    settings = config(tmp_path / "cut", photos)
    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", cut)
        with pytest.raises(RuntimeError, match="cut"):
            learn_guided(begun(folder), settings, RunDir(settings.output), images)
    captioned: list[int] = []
    real = guided_start.caption_source
    monkeypatch.setattr(guided_start, "caption_source", lambda *a, **k: captioned.append(real(*a, **k).done))
    resumed = begun(folder)
    learn_guided(resumed, settings, RunDir(settings.output), images)
    assert captioned == [0], "the captions were there"
    for name, value in adapter(whole).items():
        assert torch.equal(adapter(resumed)[name], value)


def test_a_captioner_that_says_nothing(
    tiny_folder: Any, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Captioner, "generate", lambda self, images, **settings: [""] * len(images))
    with pytest.raises(ValueError, match="under guidance 3 the captioner said nothing of 3 images"):
        settings = config(tmp_path / "run", photos)
        learn_guided(begun(tiny_folder("idefics3")), settings, RunDir(settings.output), load_images(photos))


def test_the_preset_and_what_goes_with_it(tmp_path: Path) -> None:
    flags = {"model": "-", "images": "-", "output": tmp_path}
    assert build(ViZerConfig, {**flags, "preset": "guided"}, presets=PRESETS).guidance == 3
    assert build(ViZerConfig, flags, presets=PRESETS).guidance == 0
    for wrong in ({"guidance": 0.5}, {"guidance": 3.0, "objective": "latent"}):
        with pytest.raises(ValueError, match="--guidance is a scale above 1"):
            ViZerConfig(model="-", images="-", output=tmp_path, **wrong)
