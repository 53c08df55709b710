"""What the methods share: where a trainer's numbers go, and which images are trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from captune.data import load_images
from captune.errors import CaptionerError, SettingError
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.training import lifecycle
from captune.training.config import RLConfig
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import caption_and_score, finish_run, load_training_images, make_trainable, start_run
from captune.training.scst import SCSTConfig
from captune.training.sft import SFTConfig, SFTTrainer, run
from captune.training.trainer import common_arguments


def config(output: Path, **settings: Any) -> SFTConfig:
    small = {"max_steps": 2, "batch_size": 2, "lora_r": 4, "lora_alpha": 8, "warmup_steps": 0}
    return SFTConfig(output=output, device="cpu", **({"model": "", "images": "-"} | small | settings))


@pytest.fixture
def dataset(images: list) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"image": image, "image_id": str(i), "references": ["a red ball"]} for i, image in enumerate(images)]
    )


@pytest.fixture
def photos(images: list, tmp_path: Path) -> Path:
    """A folder of four pictures, of which "1.png" is empty and "3.png" is cut."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    return folder


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_numbers_go_to_the_run_and_not_to_stdout(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    settings = config(tmp_path / "run")
    run_dir = RunDir(settings.output).start({})
    captioner.add_lora(4, 8, 0.0)
    if method == "sft":
        SFTTrainer.fit(captioner, dataset, settings, run_dir)
    else:
        lengths = {"num_generations": 2, "max_new_tokens": 3, "temperature": 1.0, "beta": 0.1}
        train_with_reward(captioner, dataset, [(load_scorer("length"), 1.0)], settings, run_dir, **lengths)
    assert capfd.readouterr().out == ""
    rows = [row for row in run_dir.metrics() if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(("reward" in row) is (method == "grpo") for row in rows)


def test_bad_images_are_named_and_left_out(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = load_training_images(config(tmp_path / "run", images=str(photos)))
    assert list(dataset["image_id"]) == ["0.png", "2.png"]
    assert dataset[0]["image"].size == load_images(str(photos))[0]["image"].size
    assert sorted(word for word in caplog.text.split() if ".png" in word) == ["1.png:", "3.png:"]


def test_nothing_left_to_train_on(photos: Path, tmp_path: Path) -> None:
    for name in ("0.png", "2.png"):
        (photos / name).unlink()
    with pytest.raises(ValueError, match=r"not one of 2 images can be used; the first, 1\.png: is empty"):
        load_training_images(config(tmp_path / "run", images=str(photos)))


def test_a_stream_cannot_be_trained_on(images: list, tmp_path: Path) -> None:
    rows = [{"image": image, "image_id": str(i)} for i, image in enumerate(images)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(ValueError, match="leave streaming=1 out"):
        load_training_images(config(tmp_path / "run", images=f"{tmp_path / 'some.parquet'}?streaming=1"))


def test_several_processes_are_refused_rather_than_trained_apart(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.world_size", 2)
    settings = config(tmp_path / "run")
    with pytest.raises(ValueError, match="one process, not in 2"):
        SFTTrainer.fit(captioner, dataset, settings, RunDir(settings.output).start({}))


def test_images_without_references_cost_scores_and_not_the_run(
    source: str, tmp_path: Path, captioner: Captioner, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(source)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    del lines[1]["references"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_dir = RunDir(tmp_path / "run").start({})
    caption_and_score(captioner, source, run_dir, "base")
    (row,) = run_dir.scores()["rows"]
    assert set(row["scores"]) == {"health"}
    assert "1 of 4 images have none, such as '1'" in caplog.text


@pytest.mark.usefixtures("no_report")
def test_every_method_continues_from_an_adapter(tiny_folder: Any, source: str, tmp_path: Path) -> None:
    """A second run of supervised fine-tuning begins where the first ended."""
    model = str(tiny_folder("idefics3"))
    first = run(config(tmp_path / "first", model=model, images=source))
    second = run(config(tmp_path / "second", model=model, images=source, adapter=first.adapter, learning_rate=1e-9))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first.adapter, second.adapter))
    assert before.keys() == after.keys() and all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    assert any(key.endswith("lora_B.weight") and bool(before[key].any()) for key in before)


def test_full_fine_tuning_leaves_a_plain_model_folder(
    tiny_folder: Any, images: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "caption_and_score", lambda *args, **_: None)
    monkeypatch.setattr("captune.report.render", lambda *args: None)
    settings = config(tmp_path / "run", model=str(tiny_folder("idefics3")), train_all_weights=True)
    run_dir, captioner = start_run(settings, "sft")
    make_trainable(captioner, settings)
    with torch.no_grad():
        for name, parameter in captioner.model.named_parameters():
            if parameter.requires_grad and "lm_head" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    expected = captioner.model(**captioner.prepare(images[:2])).logits
    finish_run(settings, run_dir, captioner, row="supervised", method="supervised fine-tuning")
    again = Captioner.load(run_dir.path / "model", device="cpu")
    torch.testing.assert_close(again.model(**again.prepare(images[:2])).logits, expected)


def test_settings_that_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="merge --adapter into the model first"):
        config(tmp_path, train_all_weights=True, adapter=tmp_path)
    with pytest.raises(SettingError, match="cannot train weights that --load-in-4bit"):
        config(tmp_path, train_all_weights=True, load_in_4bit=True)
    with pytest.raises(SettingError, match="--temperature: 0.0 must be at least 0.001"):
        RLConfig(model="", images="-", output=tmp_path, temperature=0.0)
    with pytest.raises(SettingError, match="missing required option: --reward"):
        SCSTConfig(model="", images="-", output=tmp_path, reward="")


def test_where_metrics_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert common_arguments(config(tmp_path))["report_to"] == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert common_arguments(config(tmp_path, report_to="wandb"))["report_to"] == ["wandb"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match="needs the package 'trackio', which is not installed"):
        config(tmp_path, report_to="trackio")


def test_four_bits_need_a_package(tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CaptionerError, match="bitsandbytes"):
        start_run(config(tmp_path / "run", model=str(tiny_folder("idefics3")), load_in_4bit=True), "sft")
