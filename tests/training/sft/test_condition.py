"""A column of the captions as a condition, and as their weights in the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captune.cli.main import main
from captune.data import load_references
from captune.data.values import load_values
from captune.errors import SourceError, UsageError
from captune.models.captioner import Captioner
from captune.models.condition import Condition, prompt_under, read_condition, read_prompt, save_prompt
from captune.training.sft.train import SFTConfig, check_weights, run, supervised_loss


def write(folder: Path, images: list[Any], **columns: list[list[Any]]) -> str:
    lines = []
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
        line = {"image": f"{number}.png", "image_id": f"i{number}", "references": ["a red ball", "two green fish"]}
        lines.append(line | {name: values[number] for name, values in columns.items()})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "captions.jsonl")


def config(output: Path, model: Path, images: str, **settings: Any) -> SFTConfig:
    small = {"max_steps": 2, "batch_size": 4, "lora_r": 4, "lora_alpha": 8, "warmup_steps": 0, "lora_dropout": 0.0}
    return SFTConfig(
        output=output, model=str(model), images=images, eval_images=images, device="cpu", **small | settings
    )


def test_values_of_blank_captions_are_left_out_with_them(tmp_path: Path) -> None:
    rows = [
        {"image_id": "a", "captions": ["a dog", " ", "a red dog", "nan"], "weight": 2, "each": [1, 2, 3, 4]},
        {"image_id": "b", "captions": "a cat", "weight": 0.5, "each": [5]},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = load_references(str(tmp_path / "c.jsonl"))
    for name, expected in (("weight", [[2, 2], [0.5]]), ("each", [[1, 3], [5]])):
        assert load_values(str(tmp_path / "c.jsonl"), name, list(known), list(known.values())) == expected
    with pytest.raises(SourceError, match="image 'a' has 1 captions and 2 values of each"):
        load_values(str(tmp_path / "c.jsonl"), "each", ["a"], [["a dog"]])


def test_a_prompt_for_each_image(captioner: Captioner, images: list[Image.Image]) -> None:
    several = [images[0], images[0], images[1]]
    prompts = ["level 1", "level 2 of it", "level 1"]
    batch = captioner.prepare(several, ["a", "b", "c"], prompts=prompts)
    for row, (image, prompt, caption) in enumerate(zip(several, prompts, "abc", strict=True)):
        captioner.prompt = prompt
        alone = captioner.prepare([image], [caption])
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == alone["input_ids"][0].tolist()


def test_weights_by_hand(captioner: Captioner, images: list[Image.Image]) -> None:
    captions = ["a red ball", "two green fish swim"]
    batch = captioner.prepare(images[:2], captions)
    tokens = batch.pop("caption_mask").sum(1).double()
    alone = torch.stack([supervised_loss(captioner, [i], [c]) for i, c in zip(images, captions, strict=False)]).double()
    for weights in ([1.0, 1.0], [2.0, 0.5], [0.0, 3.0]):
        w = torch.tensor(weights).double()
        expected = (w * tokens * alone).sum() / tokens.sum()
        found = supervised_loss(captioner, images[:2], captions, weights=weights)
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    single = supervised_loss(captioner, images[:1], captions[:1], weights=[2.0])  # a batch of one is weighed, too
    assert single.item() == pytest.approx(2 * alone[0].item(), rel=1e-4)


def test_weights_are_1_on_average(tmp_path: Path) -> None:
    found = check_weights(config(tmp_path, "m", "s", weights="w"), {"a": [2, 6], "b": [0], "c": [8]})
    assert found == {"a": [0.5, 1.5], "b": [0.0], "c": [2.0]}


@pytest.mark.parametrize("by_length", [False, True])
def test_captions_obey_the_level(tiny_folder: Any, images: list[Any], tmp_path: Path, by_length: bool) -> None:
    """Two levels say two things about every image; each level is answered by its own."""
    model = tiny_folder("idefics3")
    source = write(tmp_path, images, level=[[0, 1]] * len(images))
    settings = {"max_steps": 60, "learning_rate": 3e-2, "group_by_length": by_length}
    done = run(config(tmp_path / "run", model, source, condition="level", **settings))
    adapter = done.path / "adapter"
    condition = read_condition(adapter)
    assert condition is not None and list(condition.prompts) == ["0", "1"] and condition.highest == "1"
    said = {}
    for level in ("0", "1"):
        captioner = Captioner.load(model, adapter=adapter, device="cpu", prompt=prompt_under(adapter, f"level={level}"))
        said[level] = set(captioner.generate(images, max_new_tokens=12))
    assert said == {"0": {"a red ball"}, "1": {"two green fish"}}
    assert set(Captioner.load(model, adapter=adapter, device="cpu").generate(images, max_new_tokens=12)) == said["1"]
    merged = Captioner.load(model, adapter=adapter, device="cpu").merge(tmp_path / "merged")
    for asked, answer in ((None, said["1"]), (prompt_under(None, "level=0", merged), said["0"])):
        assert set(Captioner.load(merged, device="cpu", prompt=asked).generate(images, max_new_tokens=12)) == answer
    rows = [json.loads(line) for line in (done.path / "captions/supervised.jsonl").read_text().splitlines()]
    assert {row["caption"] for row in rows} == said["1"]  # the run is measured under the highest level


def test_captions_without_weight_are_not_learned(tiny_folder: Any, images: list[Any], tmp_path: Path) -> None:
    model = tiny_folder("idefics3")
    source = write(tmp_path, images, weight=[[0, 1]] * len(images))
    done = run(config(tmp_path / "run", model, source, weights="weight", max_steps=60, learning_rate=3e-2))
    captioner = Captioner.load(model, adapter=done.path / "adapter", device="cpu")
    assert set(captioner.generate(images, max_new_tokens=12)) == {"two green fish"}


def test_weights_are_asked_the_same_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "home" / "adapter").mkdir(parents=True)
    Condition.of("level", [0, 1], "Say it:").save(folder)
    save_prompt(folder, "Say it:")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def cached(name: str, file: str) -> str:
        if name != "me/adapter":
            raise OSError
        return str(folder / file)

    monkeypatch.setattr("transformers.utils.cached_file", cached)
    for weights in (folder, "~/adapter", "me/adapter"):
        condition = read_condition(weights)
        assert condition is not None and condition.highest == "1" and read_prompt(weights) == "Say it:"
    assert read_condition("me/other") is None is read_prompt("me/other")


def test_a_prompt_in_place_of_a_condition_is_what_the_adapter_says(
    tiny_folder: Any, images: list[Any], tmp_path: Path
) -> None:
    model, source = tiny_folder("idefics3"), write(tmp_path, images, level=[[0, 1]] * len(images))
    first = run(config(tmp_path / "first", model, source, condition="level"))
    done = run(config(tmp_path / "run", model, source, adapter=first.path / "adapter", prompt="Say it:"))
    assert read_condition(done.path / "adapter") is None and read_prompt(done.path / "adapter") == "Say it:"
    merged = Captioner.load(model, adapter=done.path / "adapter", device="cpu").merge(tmp_path / "merged")
    own = Captioner.load(merged, device="cpu").default_prompt
    plain = run(config(tmp_path / "plain", merged, source, prompt=own))  # of the family, where the base says another
    assert Captioner.load(merged, adapter=plain.path / "adapter", device="cpu").prompt == own


def test_captune_caption_refuses_what_was_not_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter").mkdir()
    words = ["caption", "--model", "storybook", "--images", "storybook:test?n=1", "--output", str(tmp_path / "c.jsonl")]
    adapter = ["--adapter", str(tmp_path / "adapter")]
    assert main([*words, *adapter, "--condition", "level=7"]) == 2
    assert "was not trained under a condition" in capsys.readouterr().err
    Condition.of("level", [0, 1.0, 10, 9], "Describe it.").save(tmp_path / "adapter")
    assert list(read_condition(tmp_path / "adapter").prompts) == ["0", "1", "9", "10"]  # type: ignore[union-attr]
    assert prompt_under(tmp_path / "adapter", "level=9") == "level 9. Describe it."
    for asked, match in (
        ("level=7", "never seen level 7; it knows 0, 1, 9, 10"),
        ("7", "level=N"),
        ("sim=9", "level=N"),
    ):
        assert main([*words, *adapter, "--condition", asked]) == 2
        assert match in capsys.readouterr().err
    assert main([*words, *adapter, "--condition", "level=9", "--prompt", "x"]) == 2
    assert main([*words, "--condition", "level=9"]) == 2


def test_values_stand_beside_their_captions(images: list[Any], tmp_path: Path) -> None:
    source = write(tmp_path, images[:3], level=[[0, 1], 2, [3, None]])
    ids, texts = ["i1", "i0"], [["a", "b"], ["c", "d"]]
    assert load_values(source, "level", ids, texts) == [[2, 2], [0, 1]]
    with pytest.raises(SourceError, match="image 'i2' has 2 captions and 1 values of level"):
        load_values(source, "level", ["i2"], [["a", "b"]])
    with pytest.raises(SourceError, match="has no 'score'; it has image, image_id, references, level"):
        load_values(source, "score", ids, texts)
    with pytest.raises(SourceError, match="read from JSON lines or parquet"):
        load_values("storybook:test?n=2", "level", ids, texts)
    with pytest.raises(UsageError, match="has 101 values"):
        Condition.of("score", range(101), "")
    with pytest.raises(UsageError, match="has 1 values"):
        Condition.of("score", [3, 3.0], "")


def test_weights_are_numbers(tiny_folder: Any, images: list[Any], tmp_path: Path) -> None:
    for number, weights in enumerate(([[0, 0]] * 4, [[1, -1]] * 4, [["much", 1]] * 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = write(folder, images, weight=weights)
        with pytest.raises(SourceError, match="weight"):
            run(config(folder / "run", tiny_folder("idefics3"), source, weights="weight"))
