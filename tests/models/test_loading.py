"""Loading models and adapters: what goes wrong is said in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from captune.errors import CaptionerError, SettingError
from captune.models.captioner import Captioner


@pytest.fixture
def copy(tiny_folder, tmp_path: Path) -> Path:
    """A model folder to break."""
    return Path(shutil.copytree(tiny_folder("idefics3"), tmp_path / "model"))


def test_load_defaults(captioner: Captioner, tiny_folder) -> None:
    assert captioner.device.type == "cpu" and captioner.dtype == torch.float32
    assert not any(p.requires_grad for p in captioner.model.parameters()) and not captioner.model.training
    assert captioner.processor.chat_template, "TRL renders prompts through it"
    assert Captioner.load(tiny_folder("idefics3"), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_missing_folder() -> None:
    with pytest.raises(CaptionerError, match=r"model folder '\./nowhere/model' does not exist.*hub name"):
        Captioner.load("./nowhere/model")


def test_shipped_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("captune.storybook.shipped.CAPTIONER", tmp_path / "storybook")
    with pytest.raises(CaptionerError, match="shipped model 'storybook' is not in"):
        Captioner.load("storybook")


def test_hub_out_of_reach_says_what_to_fetch() -> None:
    with pytest.raises(CaptionerError, match="hf download HuggingFaceTB/SmolVLM-Base --local-dir"):
        Captioner.load("HuggingFaceTB/SmolVLM-Base")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"not a model folder: it has no config\.json"):
        Captioner.load(tmp_path)


def test_folder_without_processor(copy: Path) -> None:
    for file in copy.iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(CaptionerError, match="processor"):
        Captioner.load(copy)


def test_folder_with_a_tokenizer_but_no_image_processor(copy: Path) -> None:
    for file in copy.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(CaptionerError, match="processor"):
        Captioner.load(copy)


def test_not_an_image_text_to_text_model(tmp_path: Path) -> None:
    from transformers import BertConfig

    config = BertConfig(architectures=["BertModel"])
    config.save_pretrained(tmp_path)
    with pytest.raises(CaptionerError, match=r"no image-text-to-text model but 'bert' \(BertModel\)"):
        Captioner.load(tmp_path)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(CaptionerError, match="safetensors"):
        Captioner.load(copy)


def test_truncated_weights(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaptionerError, match="weights"):
        Captioner.load(copy)


def test_weights_of_another_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"].pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CaptionerError, match=r"the weights of .*Idefics3ForConditionalGeneration cannot be used: 9 tensors are missing"
    ):
        Captioner.load(copy)


def test_unknown_model_type(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "nosuchmodel"}))
    with pytest.raises(CaptionerError, match="configuration.*nosuchmodel"):
        Captioner.load(copy)


def test_remote_code_is_not_run_unasked(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForImageTextToText": "code.Own"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(CaptionerError, match="trust_remote_code=True"):
        Captioner.load(copy)


def test_adapter_round_trip(captioner: Captioner, images: list, tiny_folder, tmp_path: Path) -> None:
    base = captioner.generate(images, max_new_tokens=8)
    adapted = tiny.taught(captioner).generate(images, max_new_tokens=8)
    assert adapted != base
    folder = captioner.save_adapter(tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == captioner.name
    assert sorted(p.name for p in folder.glob("adapter*")) == ["adapter_config.json", "adapter_model.safetensors"]
    again = Captioner.load(tiny_folder("idefics3"), adapter=folder)
    assert again.generate(images, max_new_tokens=8) == adapted
    assert not any(p.requires_grad for p in again.model.parameters())
    with again.disable_adapter():
        assert again.generate(images, max_new_tokens=8) == base
    more = Captioner.load(tiny_folder("idefics3"), adapter=folder, adapter_trainable=True)
    trainable = [name for name, p in more.model.named_parameters() if p.requires_grad]
    assert trainable and all("lora" in name for name in trainable)


def test_adapter_errors(captioner: Captioner, tiny_folder, tmp_path: Path) -> None:
    folder = tiny_folder("idefics3")
    with pytest.raises(CaptionerError, match="no adapter to save"):
        captioner.save_adapter(tmp_path)
    with pytest.raises(CaptionerError, match="does not exist"):
        Captioner.load(folder, adapter=tmp_path / "nothing")
    with pytest.raises(CaptionerError, match=r"there is no folder photos/adapter, and .* cannot be had from the hub"):
        Captioner.load(folder, adapter="photos/adapter")  # a hub name, too
    with pytest.raises(CaptionerError, match=r"no adapter_config\.json"):
        Captioner.load(folder, adapter=tmp_path)
    adapter = tiny.taught(captioner).save_adapter(tmp_path / "adapter")
    with pytest.raises(CaptionerError, match="has an adapter already"):
        captioner.add_lora()
    with pytest.raises(CaptionerError, match="trained on other weights"):
        Captioner.load(tiny_folder("llava"), adapter=adapter)
    with pytest.raises(CaptionerError, match="trained on other weights"):
        Captioner.load(tiny_folder("idefics3", hidden=48), adapter=adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CaptionerError, match="is damaged"):
        Captioner.load(folder, adapter=adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(CaptionerError, match=r"no adapter_model\.safetensors"):
        Captioner.load(folder, adapter=adapter)


def test_a_merged_adapter_is_a_new_base(captioner: Captioner, images: list) -> None:
    base = captioner.generate(images, max_new_tokens=8)
    adapted = tiny.taught(captioner).generate(images, max_new_tokens=8)
    captioner.merge_adapter()
    assert captioner.model is captioner.core
    assert captioner.generate(images, max_new_tokens=8) == adapted != base
    assert not any(p.requires_grad for p in captioner.model.parameters())
    captioner.add_lora(r=4, alpha=8)  # a fresh adapter on top changes nothing yet
    assert captioner.generate(images, max_new_tokens=8) == adapted
    captioner.merge_adapter()
    captioner.merge_adapter()


# -- what is loaded is whole or refused --------------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_folder, tmp_path: Path) -> Path:
    """An adapter of the tiny model, to break."""
    captioner = tiny.taught(Captioner.load(tiny_folder("idefics3"), device="cpu"))
    return captioner.save_adapter(tmp_path / "adapter")


def rewrite(folder: Path, change) -> None:
    """Change an adapter's tensors by name."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


BROKEN = {
    "renamed": (
        lambda t: {k.replace("q_proj", "query"): v for k, v in t.items()},
        r"missing .*and \d+ more.*not of this",
    ),
    "half": (lambda t: dict(sorted(t.items())[: len(t) // 2]), r"tensors are missing \(.* more\)"),
    "none": (lambda t: {}, "tensors are missing"),
    "more": (
        lambda t: {**t, "base_model.model.extra.lora_A.weight": torch.zeros(2)},
        r"1 tensors are not of this model",
    ),
    "shapes": (lambda t: {k: v[..., :-1].clone() for k, v in t.items()}, "of another shape"),
    "nan": (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite in .* tensors"),
    "inf": (lambda t: {k: v + (float("inf") if "layers.0" in k else 0) for k, v in t.items()}, "not finite"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_b1_an_adapter_is_whole_or_refused(kind: str, adapter: Path, tiny_folder) -> None:
    whole = Captioner.load(tiny_folder("idefics3"), adapter=adapter)
    change, message = BROKEN[kind]
    rewrite(adapter, change)
    with pytest.raises(CaptionerError, match=message):
        Captioner.load(tiny_folder("idefics3"), adapter=adapter)
    with pytest.raises(CaptionerError, match=message):
        Captioner.load(tiny_folder("idefics3")).make_trainable(adapter=adapter)
    with pytest.raises(CaptionerError, match=message):  # as the rounds of vizer do
        whole.load_adapter_weights(adapter)


def test_b1_an_adapter_of_another_base_with_the_same_shapes(adapter: Path, tiny_folder, copy: Path, caplog) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CaptionerError, match="was trained on other weights"):
        Captioner.load(copy, adapter=adapter)
    with pytest.raises(CaptionerError, match="was trained on other weights"):
        Captioner.load(copy).make_trainable(adapter=adapter)
    Captioner.load(tiny_folder("idefics3"), adapter=adapter, dtype=torch.bfloat16)  # the same weights, rounded
    assert "does not say which weights" not in caplog.text
    (adapter / "base_model.json").unlink()  # as other programs save adapters
    Captioner.load(copy, adapter=adapter)
    assert "does not say which weights it was trained on" in caplog.text


def test_an_adapter_is_asked_with_the_prompt_that_it_was_trained_under(tiny_folder, tmp_path: Path, caplog) -> None:
    model = tiny_folder("idefics3")
    trained = Captioner.load(model, prompt="what is here ?")
    trained.add_lora(2, 4, 0.0)
    trained.save_adapter(tmp_path / "adapter")
    assert Captioner.load(model, adapter=tmp_path / "adapter").prompt == "what is here ?"
    assert "was trained under the prompt 'what is here ?'" in caplog.text
    assert Captioner.load(model, adapter=tmp_path / "adapter", prompt="say it").prompt == "say it"
    merged = Captioner.load(model, adapter=tmp_path / "adapter").merge(tmp_path / "merged")
    assert Captioner.load(merged).prompt == "what is here ?"
    trained.prompt = trained.default_prompt
    trained.save_adapter(tmp_path / "adapter")  # over the other one
    assert Captioner.load(model, adapter=tmp_path / "adapter").prompt == Captioner.load(model).prompt


def test_b1_peft_reads_the_adapter_as_before(adapter: Path, tiny_folder) -> None:
    core = Captioner.load(tiny_folder("idefics3")).core
    assert PeftModel.from_pretrained(core, adapter).peft_config["default"].peft_type == "LORA"


def test_b3_weights_that_are_not_finite(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    for name in sorted(weights)[:5]:
        weights[name].view(-1)[0] = float("nan") if "embed" in name else float("inf")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CaptionerError, match=r"not finite in 5 tensors \(.*, .*, .* and 2 more\)"):
        Captioner.load(copy)


def _set(path: Path, *keys: Any) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-2]:
        place = place[key]
    place[keys[-2]] = keys[-1]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (10**9, "text_config.num_hidden_layers = 1000000000, not 0 to 1000"),
        (2.5, "num_hidden_layers"),
        ("many", "num_hidden_layers"),
        (-1, "= -1, not 0 to 1000"),
    ],
)
def test_c1_a_config_that_cannot_be_built_is_refused_at_once(copy: Path, value: Any, match: str) -> None:
    _set(copy / "config.json", "text_config", "num_hidden_layers", value)
    with pytest.raises(CaptionerError, match=match):
        Captioner.load(copy)


@pytest.mark.parametrize(
    "template", ["{% for", "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}", "no image"]
)
def test_c1_a_chat_template_that_cannot_be_used(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(CaptionerError, match="chat template|processor"):
        Captioner.load(copy)


def test_c1_a_processor_that_cannot_work_is_refused_when_it_is_loaded(copy: Path, tiny_folder) -> None:
    _set(copy / "config.json", "image_token_id", 1)
    with pytest.raises(CaptionerError, match="leaves no place for the image|processor"):
        Captioner.load(copy)
    captioner = Captioner.load(tiny_folder("idefics3"))
    captioner.processor.image_processor.image_std = [0.0, 0.0, 0.0]
    with pytest.raises(CaptionerError, match="not finite.*image_std"):
        captioner.check_processor()
    captioner.processor.image_processor.image_mean = None
    with pytest.raises(CaptionerError, match="cannot prepare an image"):
        captioner.check_processor()


def test_b1_a_pattern_of_modules_that_is_none(captioner: Captioner, tmp_path: Path) -> None:
    captioner.add_lora(r=2)
    captioner.save_adapter(tmp_path / "adapter")
    captioner.unload_adapter() if hasattr(captioner, "unload_adapter") else captioner.merge_adapter()
    _set(tmp_path / "adapter" / "adapter_config.json", "target_modules", "q_proj(")
    with pytest.raises(CaptionerError, match="does not fit"):
        Captioner.load(captioner.name, adapter=tmp_path / "adapter")


def test_c1_a_prompt_of_half_a_character(tiny_folder) -> None:
    with pytest.raises(SettingError, match="not Unicode text"):
        Captioner.load(tiny_folder("idefics3"), prompt="\udcff")
