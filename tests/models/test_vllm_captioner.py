"""The vLLM engine as far as a machine without vLLM shows: arguments, prompts, seeds; captions come from a stand-in."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from captune.decoding import load_decoder
from captune.errors import CaptionerError, CaptionFileError, SettingError
from captune.inference.engines import check_engine
from captune.inference.job import caption_to_file
from captune.models.captioner import Captioner
from captune.models.vllm_captioner import VllmCaptioner, _files_mark, adapter_rank, engine_arguments

IMAGES = [tiny.picture(seed, (40, 40)) for seed in range(3)]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, imported as vllm."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "vllm_stand_in"))
    import vllm

    yield vllm
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A captioner with turns, and an adapter of it."""
    model = tiny.idefics3(tmp_path_factory.mktemp("model") / "m")
    captioner = Captioner.load(model)
    torch.manual_seed(0)
    captioner.make_trainable(r=4)
    with torch.no_grad():
        for name, parameter in captioner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return model, captioner.save_adapter(tmp_path_factory.mktemp("adapter") / "a")


@pytest.mark.parametrize(("rank", "room"), [(4, 8), (8, 8), (9, 16), (32, 32), (300, 320), (512, 512)])
def test_room_for_an_adapter_is_what_vllm_knows(rank: int, room: int) -> None:
    arguments = engine_arguments("a/b", dtype="bfloat16", trust_remote_code=False, rank=rank)
    assert arguments["enable_lora"] and (arguments["max_lora_rank"], arguments["max_loras"]) == (room, 1)
    assert "enable_lora" not in engine_arguments("a/b", dtype="auto", trust_remote_code=False, rank=None)
    with pytest.raises(CaptionerError, match="rank 512 at most"):
        engine_arguments("a/b", dtype="auto", trust_remote_code=False, rank=513)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"modules_to_save": ["model.connector"]}, "has modules_to_save: merge it first"),
        ({"use_dora": True}, "has use_dora"), ({"bias": "all"}, "has bias"), ({"peft_type": "IA3"}, "has IA3"),
    ],
)  # fmt: skip
def test_an_adapter_that_vllm_would_not_apply_whole_is_refused(
    change: dict[str, Any], why: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    assert adapter_rank(folders[1]) == 4
    config = json.loads((folders[1] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CaptionerError, match=why):
        adapter_rank(tmp_path)
    with pytest.raises(CaptionerError, match="is not an adapter folder"):
        adapter_rank(tmp_path / "none")


@pytest.mark.parametrize("adapted", [False, True])
def test_captions_are_those_of_this_process(vllm: Any, folders: tuple[Path, Path], adapted: bool) -> None:
    model, adapter = folders[0], folders[1] if adapted else None
    here = Captioner.load(model, adapter=adapter, device="cpu")
    there = VllmCaptioner.load(model, adapter=adapter)
    assert there.prompt == here.prompt and there.prompt_text() == here.prompt_text()
    assert there.generate(IMAGES, max_new_tokens=6) == here.generate(IMAGES, max_new_tokens=6)
    (engine,) = vllm.MADE[-1:]
    assert engine.arguments["limit_mm_per_prompt"] == {"image": 1}
    assert engine.arguments["generation_config"] == "vllm"
    prompts, sampling = engine.calls[0]
    text = here.prompt_text()
    wanted = here.tokenizer(text, add_special_tokens=here.adds_special_tokens(text))["input_ids"]
    assert all(prompt["prompt_token_ids"] == wanted for prompt in prompts)
    assert [prompt["multi_modal_data"]["image"].tobytes() for prompt in prompts] == [i.tobytes() for i in IMAGES]
    (one,) = {json.dumps(vars(params)) for params in sampling}
    assert (sampling[0].temperature, sampling[0].seed, sampling[0].max_tokens) == (0, None, 6), one
    assert set(sampling[0].stop_token_ids) == set(here.eos_ids)
    assert sampling[0].logit_bias == {here.core.config.image_token_id: -100.0}


def test_samples_and_log_probabilities(vllm: Any, folders: tuple[Path, Path]) -> None:
    there = VllmCaptioner.load(folders[0])
    settings = {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2, "max_new_tokens": 5, "seed": 3}
    together, mean, total = there.generate(IMAGES, return_logprob=True, **settings)
    assert len(together) == 6 and total.shape == mean.shape == (6,) and bool((total < 0).all())
    assert together == [text for image in IMAGES for text in there.generate([image], **settings)]
    sampling = vllm.MADE[-1].calls[0][1]
    assert len({params.seed for params in sampling}) == 6
    assert {(params.temperature, params.logprobs, params.n) for params in sampling} == {(0.7, 0, 1)}
    with pytest.raises(SettingError, match="vLLM has no beam search"):
        there.generate(IMAGES, num_beams=2)
    with pytest.raises(SettingError, match="vLLM takes no forced_opening"):
        there.generate(IMAGES, forced_opening="A")


def test_decoders_that_need_samples_alone(vllm: Any, folders: tuple[Path, Path]) -> None:
    here, there = Captioner.load(folders[0]), VllmCaptioner.load(folders[0])
    decoder = load_decoder("self-correct")
    assert decoder(there, IMAGES, max_new_tokens=4) == decoder(here, IMAGES, max_new_tokens=4)
    best = load_decoder("best-of:3:length")(there, IMAGES, max_new_tokens=6, seed=1)
    samples = there.generate(IMAGES, do_sample=True, num_return_sequences=3, max_new_tokens=6, seed=1)
    for row, text in enumerate(best):
        assert text in samples[3 * row : 3 * row + 3]


def test_the_job_with_the_engine(vllm: Any, tmp_path: Path) -> None:
    source = "storybook:test?n=6&seed=2"
    options: dict[str, Any] = {"progress": False}
    report = caption_to_file("storybook", source, tmp_path / "there.jsonl", engine="vllm", **options)
    caption_to_file("storybook", source, tmp_path / "here.jsonl", device="cpu", **options)
    assert report.done == 6
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    settings = json.loads((tmp_path / "there.jsonl.settings.json").read_text())
    assert settings["weights"].startswith("vllm, ") and settings["prompt"]
    with pytest.raises(SettingError, match="the decoder cfg works inside the model"):
        check_engine("vllm", "storybook", decoder="cfg:2")
    with pytest.raises(SettingError, match="vLLM picks the device itself"):
        check_engine("vllm", "storybook", device="cuda:1")


def test_captions_of_a_model_with_other_last_bytes_are_not_mixed_in(
    vllm: Any, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "caps.jsonl"

    def job(name: str) -> None:
        caption_to_file(tmp_path / name, "storybook:test?n=2", output, engine="vllm", max_new_tokens=4, progress=False)

    for name, last in (("one", b"1"), ("two", b"2")):
        shutil.copytree(folders[0], tmp_path / name)
        (tmp_path / name / "more.safetensors").write_bytes(bytes(2**21) + last)
    job("one")
    with pytest.raises(CaptionFileError, match=r"\(weights: 'vllm, .*' of .*one then, 'vllm, .*' of .*two now\)"):
        job("two")
    (tmp_path / "one").rename(tmp_path / "moved")
    job("moved")  # the same weights under another name


def test_weights_that_are_no_safetensors_are_marked_too(tmp_path: Path) -> None:
    marks = set()
    for last in (b"1", b"2"):
        (tmp_path / "pytorch_model.bin").write_bytes(last)
        marks.add(_files_mark(str(tmp_path)))
    assert len(marks) == 2


def test_without_vllm_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(CaptionerError, match=r"pip install 'captune\[vllm\]'"):
        VllmCaptioner.load("storybook")
