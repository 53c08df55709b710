"""What of a captioner learns, how it is merged into a plain folder, and how it loads in 4 bits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from captune.errors import CaptionerError, SettingError
from captune.models import loading
from captune.models.captioner import Captioner


def learning(captioner: Captioner) -> set[str]:
    """Which parts have trainable weights."""
    names = [name for name, p in captioner.model.named_parameters() if p.requires_grad]
    parts = {"lora": "lora_", "connector": "connector", "vision": "vision_model", "head": "lm_head"}
    found = {part for part, text in parts.items() if any(text in name for name in names)}
    whole = any("text_model.modules_to_save" in name for name in names)
    return found | ({"language model"} if whole else set())


def step(captioner: Captioner, images: list) -> None:
    """One large step on what learns."""
    batch = captioner.prepare(images, ["a red ball"] * len(images))
    batch.pop("caption_mask")
    captioner.model(**batch).loss.backward()
    with torch.no_grad():
        for parameter in captioner.model.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    captioner.model.eval()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"lora"}),
        ({"connector": True}, {"lora", "connector"}),
        ({"full": True}, {"language model", "head"}),
        ({"full": True, "connector": True}, {"language model", "head", "connector"}),
    ],
)
def test_what_learns(captioner: Captioner, settings: dict[str, bool], expected: set[str]) -> None:
    captioner.make_trainable(r=4, alpha=8, **settings)
    assert learning(captioner) == expected
    with pytest.raises(CaptionerError, match="has an adapter already"):
        captioner.make_trainable()
    captioner.freeze_vision()
    assert learning(captioner) == expected - {"connector"}


def test_a_new_lora_is_that_of_add_lora(tiny_folder: Any) -> None:
    states = []
    for make in (lambda c: c.add_lora(4, 8, 0.0), lambda c: c.make_trainable(r=4, alpha=8, dropout=0.0)):
        captioner = Captioner.load(tiny_folder("idefics3"), device="cpu")
        torch.manual_seed(3)
        make(captioner)
        states.append(captioner.model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_adapter_is_continued(captioner: Captioner, images: list, tiny_folder: Any, tmp_path: Path) -> None:
    captioner.make_trainable(connector=True, r=4, alpha=8)
    step(captioner, images)
    folder = captioner.save_adapter(tmp_path / "adapter")
    before = captioner.generate(images, max_new_tokens=8)
    for connector in (False, True):
        again = Captioner.load(tiny_folder("idefics3"), device="cpu")
        again.make_trainable(adapter=folder, connector=connector)
        assert learning(again) == {"lora"} | ({"connector"} if connector else set())
        assert again.generate(images, max_new_tokens=8) == before
    with pytest.raises(SettingError, match="does not hold all weights of the language model"):
        Captioner.load(tiny_folder("idefics3"), device="cpu").make_trainable(adapter=folder, full=True)


@pytest.mark.parametrize("name", ["idefics3", "qwen2_vl", "llava"])
@pytest.mark.parametrize("full", [False, True])
def test_a_merged_folder_is_plain(name: str, full: bool, tiny_folder: Any, images: list, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    captioner = Captioner.load(tiny_folder(name), device="cpu")
    base = captioner.generate(images, max_new_tokens=8)
    if full:
        captioner.make_trainable(full=True)
        step(captioner, images)
    else:
        tiny.taught(captioner)
    adapted = captioner.generate(images, max_new_tokens=8)
    folder = captioner.merge(tmp_path / "merged")
    assert Captioner.load(folder, device="cpu").generate(images, max_new_tokens=8) == adapted != base
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    plain = Captioner(model, processor)
    assert plain.generate(images, max_new_tokens=8) == adapted
    assert not list(folder.glob("adapter*"))


def test_encode_is_what_prepare_uses(captioner: Captioner, images: list) -> None:
    batch = captioner.prepare(images)
    for key, value in captioner.encode([captioner.prompt_text()] * len(images), images).items():
        assert torch.equal(value, batch[key])


def test_4_bits_need_bitsandbytes(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(CaptionerError, match="needs bitsandbytes, which is not installed; run: pip install"):
        Captioner.load(tiny_folder("idefics3"), load_in_4bit=True)


def test_4_bits_are_asked_of_transformers(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub stands in for bitsandbytes: the language model is quantised, the vision side is not."""
    find, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "bitsandbytes" else find(name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "bitsandbytes" else version(name))
    real, asked = loading.AutoModelForImageTextToText.from_pretrained, {}
    whole = loading.AutoModelForImageTextToText.from_config

    def load(source: str, **settings: Any) -> Any:
        asked.update(quantization=settings.pop("quantization_config"), device=settings.pop("device_map"))
        model, info = real(source, **settings)
        model.is_loaded_in_4bit = True
        return model, info

    monkeypatch.setattr(
        loading, "AutoModelForImageTextToText", SimpleNamespace(from_pretrained=load, from_config=whole)
    )
    captioner = Captioner.load(tiny_folder("idefics3"), device="cpu", load_in_4bit=True)
    assert asked["quantization"].load_in_4bit and asked["device"] == {"": torch.device("cpu")}
    assert asked["quantization"].llm_int8_skip_modules == ["model.vision_model", "model.connector", "lm_head"]
    assert captioner.in_4bit
    with pytest.raises(SettingError, match="in 4 bits cannot be trained"):
        captioner.make_trainable(full=True)
    captioner.make_trainable(r=4, alpha=8)
    with pytest.raises(CaptionerError, match="cannot be merged into weights in 4 bits"):
        captioner.merge("nowhere")
