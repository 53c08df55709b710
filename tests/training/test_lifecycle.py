"""What the methods share: where a trainer's numbers go, and which images are trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from captune.data import load_images, load_references, read_captions
from captune.errors import CaptionerError, SettingError, SourceError, TrainingError
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import MapperConfig
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.training import lifecycle
from captune.training.config import RLConfig
from captune.training.grpo import train as grpo
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import (
    caption_and_score,
    evaluation_source,
    finish_run,
    load_training_images,
    make_trainable,
    measured_on_training,
    start_run,
)
from captune.training.scst.train import SCSTConfig
from captune.training.sft.train import SFTConfig, SFTTrainer, run
from captune.training.trainer import common_arguments, not_finite
from captune.training.vizer import train as vizer
from captune.training.vizer.config import ViZerConfig
from captune.training.vizer.mapper_fit import fit_mapper
from captune.utils.skipped import counting


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


@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_kept_apart_by_their_bytes_and_not_by_numbers(images: list, tmp_path: Path, streaming: bool) -> None:
    """Tables without ids number their rows; another table's row 1 is another image."""
    for name, own in (("learned", images[:3]), ("judged", [images[3], images[1]])):
        rows = datasets.Dataset.from_list([{"image": image, "caption": "a"} for image in own])
        rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / f"{name}.parquet")
    judged = f"{tmp_path / 'judged.parquet'}{'?streaming=1' if streaming else ''}"
    left = lifecycle.apart_from(load_images(str(tmp_path / "learned.parquet")), judged)
    assert left["image_id"][:] == ["000000", "000002"]


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
    settings = config(
        tmp_path / "run", model=str(tiny_folder("idefics3")), train_all_weights=True, eval_images="photos"
    )
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


@pytest.mark.parametrize(("asked", "given"), [(100, 100), (12, None)])
def test_captions_are_judged_as_long_as_they_were_trained(
    tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, given: int | None
) -> None:
    seen: list[int | None] = []
    monkeypatch.setattr(lifecycle, "caption_and_score", lambda *args, **more: seen.append(more.get("max_new_tokens")))
    monkeypatch.setattr("captune.report.render", lambda *args: None)
    settings = RLConfig(
        model=str(tiny_folder("idefics3")), images="-", eval_images="photos", output=tmp_path, max_new_tokens=asked
    )
    run_dir, captioner = start_run(settings, "scst")
    make_trainable(captioner, settings)
    assert captioner.max_new_tokens == 64
    finish_run(settings, run_dir, captioner, row="SCST", method="scst")
    assert seen == [given, given]


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


# -- nothing quiet: too few images, numbers that are not finite


@pytest.mark.parametrize("method", ["grpo", "vizer"])
def test_b4_fewer_images_than_one_sampling_takes(tiny_folder: Any, tmp_path: Path, method: str) -> None:
    """trl would drop them all, and train nothing."""
    kind, run_method = {"grpo": (CaptionGRPOConfig, grpo.run), "vizer": (ViZerConfig, vizer.run)}[method]
    given: dict[str, Any] = {"images": "storybook:train?n=7&seed=3", "batch_size": 4, "gradient_accumulation_steps": 2}
    if method == "grpo":
        given["reward"] = "length"
    settings = kind(model=str(tiny_folder("idefics3")), output=tmp_path / "run", device="cpu", **given)
    with pytest.raises(
        SourceError, match=r"7 images to learn from, but one sampling takes 8 \(batch size 4 x gradient"
    ):
        run_method(settings)
    assert not (tmp_path / "run" / "mapper").exists()


def test_too_few_images_to_fit_a_mapper_are_refused_before_anything_is_done(tiny_folder: Any, tmp_path: Path) -> None:
    common: dict[str, Any] = {"model": str(tiny_folder("idefics3")), "device": "cpu", "batch_size": 2, "whitened": 12}
    settings = ViZerConfig(images="storybook:train?n=12&seed=3", output=tmp_path / "run", **common)
    with pytest.raises(SourceError, match=r"fitted on 12 images, which differ in 11 .* for 12: give 13 images or more"):
        vizer.run(settings)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        tiny.picture(number).save(tmp_path / "photos" / f"{number}.png")
    settings = ViZerConfig(images=str(tmp_path / "photos"), output=tmp_path / "other", **common)
    with pytest.raises(SourceError, match=r"fitted on 11 images.*give 14 images or more, of which 1 are held out"):
        vizer.run(settings)
    assert not any((tmp_path / name / "config.yaml").exists() for name in ("run", "other"))  # nothing was begun
    settings = ViZerConfig(images="storybook:train?n=14", output=tmp_path / "more", mapper_size=12, **common)
    with pytest.raises(SourceError, match="raise --mapper-size to 13 or more; or lower --whitened"):
        vizer.run(settings)


def spoil(trainer: type, step: int, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The loss of one step is not finite; its gradient is what the value makes of it."""
    loss_of = trainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = loss_of(self, *args, **kwargs)
        return loss * value if self.state.global_step == step - 1 else loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_b3_training_stops_at_the_first_loss_that_is_not_finite(
    captioner: Captioner,
    dataset: datasets.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    value: float,
) -> None:
    """The weights are those of the step before, its checkpoint is named and whole."""
    settings = config(tmp_path / "run", max_steps=4, save_steps=2, lora_dropout=0.0)
    run_dir = RunDir(settings.output).start({})
    captioner.add_lora(4, 8, 0.0)
    spoil(SFTTrainer if method == "sft" else grpo.CaptionGRPOTrainer, 3, monkeypatch, value)
    with pytest.raises(TrainingError, match=r"stopped at step 3: the loss is (nan|inf|-inf); .* is .*checkpoint-2;"):
        if method == "sft":
            SFTTrainer.fit(captioner, dataset, settings, run_dir)
        else:
            lengths = {"num_generations": 2, "max_new_tokens": 3, "temperature": 1.0, "beta": 0.1}
            train_with_reward(captioner, dataset, [(load_scorer("length"), 1.0)], settings, run_dir, **lengths)
    assert not_finite(captioner.model.named_parameters()) is None
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
    now = {name.replace(".default", ""): weight for name, weight in captioner.model.named_parameters()}
    assert saved and all(torch.equal(weight, now[name]) for name, weight in saved.items())
    assert [path.name for path in run_dir.checkpoints()] == ["checkpoint-2"]


def test_b3_a_gradient_that_is_not_finite(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is, its gradient is not: sqrt at 0."""
    loss_of = SFTTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = loss_of(self, *args, **kwargs)
        return loss + (loss - loss).sqrt()

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    captioner.add_lora(4, 8, 0.0)
    settings = config(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm is nan; there is no checkpoint yet"):
        SFTTrainer.fit(captioner, dataset, settings, RunDir(settings.output).start({}))


def test_b3_a_weight_that_is_not_finite_is_not_saved(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    """A step may overflow though its loss and gradient are finite."""

    class Overflow(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            next(weight for weight in model.parameters() if weight.requires_grad).data.mul_(1e38).mul_(1e38)

    captioner.add_lora(4, 8, 0.0)
    settings = config(tmp_path / "run", max_steps=1)
    with pytest.raises(TrainingError, match=r"stopped at step 1: the weight .*lora.* is not finite"):
        SFTTrainer.fit(captioner, dataset, settings, RunDir(settings.output).start({}), callbacks=[Overflow()])
    assert not RunDir(settings.output).checkpoints()


def test_b3_a_reward_that_is_infinite(captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path) -> None:
    def endless(completions: list[Any], **columns: Any) -> list[float]:
        return [float("inf")] * len(completions)

    captioner.add_lora(4, 8, 0.0)
    settings = config(tmp_path / "run")
    lengths = {"num_generations": 2, "max_new_tokens": 3, "temperature": 1.0, "beta": 0.0}
    with pytest.raises(TrainingError, match=r"step 1: the reward endless is infinite"):
        train_with_reward(captioner, dataset, [(endless, 1.0)], settings, RunDir(settings.output).start({}), **lengths)


def test_b3_sampling_from_weights_that_are_not_finite(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    captioner.add_lora(4, 8, 0.0)
    for name, weight in captioner.model.named_parameters():
        if "lora" in name:
            weight.data.fill_(float("nan"))
    settings = config(tmp_path / "run")
    lengths = {"num_generations": 2, "max_new_tokens": 3, "temperature": 1.0, "beta": 0.0}
    reward = [(load_scorer("length"), 1.0)]
    with pytest.raises(TrainingError, match=r"step 1: the captioner's probabilities are not finite"):
        train_with_reward(captioner, dataset, reward, settings, RunDir(settings.output).start({}), **lengths)


def test_b3_a_mapper_whose_loss_is_not_finite(captioner: Captioner, dataset: datasets.Dataset) -> None:
    with pytest.raises(TrainingError, match=r"the mapper's fit stopped at step \d+ of 50: the loss is nan"):
        fit_mapper(captioner, dataset, [["a red ball"]] * 4, MapperConfig(width=8, whitened=0), epochs=50, lr=1e30)


# -- held out by default


def own_images(folder: Path, number: int) -> str:
    """A captions file of so many images."""
    folder.mkdir()
    lines = []
    for index in range(number):
        tiny.picture(index).save(folder / f"{index:03}.png")
        lines.append(json.dumps({"image": f"{index:03}.png", "references": [f"a red ball {index}"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "captions.jsonl")


def test_b5_own_images_are_held_out_of_training(tiny_folder: Any, tmp_path: Path) -> None:
    """A tenth of fewer than 640: the same for every seed and method, and none of them is trained on."""
    source = own_images(tmp_path / "own", 30)
    settings = config(tmp_path / "run", model=str(tiny_folder("idefics3")), images=source, max_steps=1)
    held_out = set(load_references(evaluation_source(settings)))
    trained = set(load_training_images(settings, references=True)["image_id"])
    assert len(held_out) == 3 and len(trained) == 27 and not held_out & trained
    assert held_out == set(load_references(evaluation_source(config(tmp_path, images=source, seed=5))))
    assert held_out != set(sorted(held_out | trained)[:3])
    run_dir = run(settings)
    assert read_captions(run_dir.captions("supervised")).keys() == held_out
    assert run_dir.scores()["source"] == f"{source}?part=held_out"
    assert "training images" not in run_dir.path.joinpath("README.md").read_text().replace("on training", "")
    assert "measured on its training images" not in (run_dir.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("query", "limit", "held_out", "trained"),
    [("", None, 64, 586), ("?n=100&seed=3", None, 10, 90), ("?n=100&seed=3", 50, 5, 45), ("", 40, 4, 36),
     ("?skip=600", None, 5, 45), ("?part=training", None, 64, 586)],
)  # fmt: skip
def test_b5_how_many_are_held_out(tmp_path: Path, query: str, limit: int | None, held_out: int, trained: int) -> None:
    lines = [json.dumps({"image": f"{index}.png", "references": ["a ball"]}) for index in range(650)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    for index in range(650):
        (tmp_path / f"{index}.png").touch()
    settings = config(tmp_path / "run", images=f"{tmp_path / 'captions.jsonl'}{query}", limit=limit)
    source = evaluation_source(settings)
    ours = load_references(source).keys()
    theirs = load_references(source.replace("part=held_out", "part=training")).keys()
    assert (len(ours), len(theirs)) == (held_out, trained) and ours.isdisjoint(theirs)
    if not query.startswith("?part"):
        assert ours | theirs == load_references(settings.images, limit=limit).keys()
    assert not measured_on_training(settings)


def test_b5_images_of_another_source_are_known_by_their_bytes(tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
        for index in range(4):
            tiny.picture(index + 10 * (name == "other"), (8, 8)).save(tmp_path / name / f"{index}.png")
        rows = [json.dumps({"image": f"{index}.png", "references": ["a ball"]}) for index in range(4)]
        (tmp_path / name / "captions.jsonl").write_text("\n".join(rows) + "\n")
    images = str(tmp_path / "one")
    for judged, learned in (("one/captions.jsonl", True), ("two", True), ("other", False)):
        settings = config(tmp_path / "run", images=images, eval_images=str(tmp_path / judged))
        assert measured_on_training(settings) is learned


def test_b5_too_few_images_to_hold_some_out(tiny_folder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Log, headline of the report and model card say on what the figures were measured."""
    source = own_images(tmp_path / "own", 9)
    settings = config(tmp_path / "run", model=str(tiny_folder("idefics3")), images=source, max_steps=1)
    with caplog.at_level(logging.WARNING):
        run_dir = run(settings)
    assert "too few images to hold some out, so the run will be measured on its training images" in caplog.text
    card = (run_dir.path / "README.md").read_text()
    assert f"Measured on its training images, `{source}`" in card and "model-index" not in card
    assert "measured on its training images" in (run_dir.path / "report.html").read_text()


def test_b5_a_source_with_its_own_held_out_images_keeps_them(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", images="storybook:train")
    assert evaluation_source(settings) == "storybook:val" and not measured_on_training(settings)
    assert len(load_training_images(config(tmp_path, images="storybook:train?n=20"))) == 20
    assert measured_on_training(config(tmp_path, images="storybook:val?n=20", eval_images="storybook:val?n=4"))


def test_copies_of_what_is_held_out_are_not_trained_on(tmp_path: Path) -> None:
    """Twenty photos, each twice under two names: the split by name puts one of a pair on each side."""
    (tmp_path / "photos").mkdir()
    for number in range(20):
        for name in (f"{number}.png", f"{number} (1).png"):
            tiny.picture(number).save(tmp_path / "photos" / name)
    settings = config(tmp_path, images=str(tmp_path / "photos"))
    held_out = {row["image"].tobytes() for row in load_images(evaluation_source(settings))}
    with counting() as skipped:
        learned = load_training_images(settings)
    (copies,) = skipped.values()
    assert len(learned) == 40 - 4 - sum(copies.values()) and 0 < sum(copies.values()) <= 4
    assert held_out.isdisjoint(image.tobytes() for image in learned["image"])
    assert not measured_on_training(settings)
    other = config(tmp_path, images=str(tmp_path / "photos"), eval_images=str(tmp_path / "others"))
    (tmp_path / "others").mkdir()
    tiny.picture(3).save(tmp_path / "others" / "z.png")
    assert measured_on_training(other)
