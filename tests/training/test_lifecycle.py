"""What the methods share: where a trainer's numbers go, and which images are trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from captune.data import load_images
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import caption_and_score, load_training_images
from captune.training.sft import SFTConfig, SFTTrainer


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
