"""The gate: which rewards may train, what is said and kept of it, and that a run has the same bits without it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch

from captune.cli.main import main
from captune.errors import TrainingError
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_reward
from captune.training import gate
from captune.training.gate import TEMPLATE, check_reward
from captune.training.grpo import train as grpo
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.sc_captioner.train import SCConfig
from captune.training.sc_captioner.train import run as run_sc
from captune.training.scst.train import SCSTConfig
from captune.training.scst.train import run as run_scst

SOURCE = "storybook:train?n=12&seed=3"
WORDS = [f"a {colour} {kind}" for colour in ("red", "green", "blue") for kind in ("ball", "car", "fish", "kite")]


def config(output: Path, **settings: Any) -> CaptionGRPOConfig:
    small = {"model": "storybook", "images": SOURCE, "reward": "cider", "max_steps": 1, "batch_size": 2}
    small |= {"num_generations": 2, "max_new_tokens": 4, "lora_r": 2, "watch": "none", "eval_images": SOURCE}
    return CaptionGRPOConfig(output=output, device="cpu", **(small | settings))


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    rows = [
        {"image": tiny.picture(i, (32, 32)), "image_id": str(i), "references": [text, f"{text} here"]}
        for i, text in enumerate(WORDS)
    ]
    return datasets.Dataset.from_list(rows)


Reward = Callable[..., list[float]]


def verdict(
    captioner: Captioner, data: datasets.Dataset, folder: Path, *rewards: Reward, **settings: Any
) -> dict[str, Any]:
    run_dir = RunDir(folder)
    run_dir.claim({"a": 1})
    parts = [(reward, 1.0) for reward in rewards]
    check_reward(captioner, data, parts, config(folder, accept_reward=True, **settings), run_dir, name="mine")
    return run_dir.begin().gate


def right(completions: Sequence[str], *, references: Sequence[Sequence[str]], **columns: Any) -> list[float]:
    """The share of a reference's words that a caption has."""
    words = [set(refs[0].split()) for refs in references]
    return [len(own & set(text.split())) / len(own) for own, text in zip(words, completions, strict=True)]


# -- the rule


def wrong(completions: Sequence[str], **columns: Any) -> list[float]:
    return [-score for score in right(completions, **columns)]


def blind(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def silent(completions: Sequence[str], **columns: Any) -> list[float]:
    return [score + (not text) * 0.9 for text, score in zip(completions, right(completions, **columns), strict=True)]


def vague(completions: Sequence[str], **columns: Any) -> list[float]:
    return [score + (text == TEMPLATE) for text, score in zip(completions, right(completions, **columns), strict=True)]


def unsaid(completions: Sequence[str], **columns: Any) -> list[float | None]:
    return [None for _ in completions]


@pytest.mark.parametrize(
    ("reward", "problems"),
    [
        (right, []),
        (wrong, ["a real caption is not worth more than the template 'a photo'",
                 "a real caption is not worth more than another image's caption",
                 "an empty caption is worth more than the template 'a photo'"]),
        (blind, ["a real caption is not worth more than another image's caption"]),
        (silent, ["an empty caption is worth more than the template 'a photo'"]),
        (vague, ["a real caption is not worth more than the template 'a photo'"]),
        (unsaid, ["it cannot judge a real caption of 12 of 12 images"]),
    ],
)  # fmt: skip
def test_what_fails_and_why(
    captioner: Captioner, data: datasets.Dataset, tmp_path: Path, reward: Any, problems: list[str]
) -> None:
    found = verdict(captioner, data, tmp_path / "run", reward)
    assert found["problems"] == problems and found["passed"] is (not problems) and found["accepted"]
    assert found["images"] == 12 and found["real_from"] == "references"


def test_four_figures_by_hand(captioner: Captioner, data: datasets.Dataset, tmp_path: Path) -> None:
    """Real is the first reference, judged by the second; other is that of the image six places on."""
    found = verdict(captioner, data, tmp_path / "run", right)
    shared = [len(set(WORDS[i].split()) & set(f"{WORDS[(i + 6) % 12]} here".split())) / 4 for i in range(12)]
    assert found["means"] == pytest.approx(
        {"real": 3 / 4, "template": 1 / 4, "empty": 0.0, "other": sum(shared) / 12}, abs=1e-9
    )
    assert found["parts"]["right +1"] == found["means"]
    assert found["sentence"].startswith("the reward 'mine' on 12 training images: a real caption 0.75, the template")


def test_the_parts_that_can_judge_are_summed(captioner: Captioner, data: datasets.Dataset, tmp_path: Path) -> None:
    found = verdict(captioner, data, tmp_path / "run", right, unsaid)
    assert found["passed"] and found["means"]["real"] == 0.75


def test_equal_in_all_but_rounding_is_equal(captioner: Captioner, data: datasets.Dataset, tmp_path: Path) -> None:
    rows = iter(range(10**6))

    def rounded(completions: Sequence[str], **columns: Any) -> list[float]:
        return [1000.0 * bool(text) + 1e-9 * next(rows) for text in completions]

    assert "another image's" in verdict(captioner, data, tmp_path / "run", rounded)["problems"][-1]


def test_a_difference_within_its_error_is_none() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=32)
    assert not gate._above(noise + 0.01, generator.normal(size=32))
    assert gate._above(noise + 0.01, noise)
    assert gate._above(noise + 2.0, generator.normal(size=32))
    assert gate._above(np.array([np.nan]), np.array([1.0])) is None


def test_without_references_the_captioner_speaks(
    captioner: Captioner, data: datasets.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caption may be worth less than the template, which is said; the same caption anywhere is worth the same."""
    bare = data.remove_columns("references")
    settings = config(tmp_path, max_new_tokens=5)
    own = gate._generate(captioner, list(bare["image"]), settings)

    def seen(completions: Sequence[str], *, image_id: Sequence[str], **columns: Any) -> list[float]:
        return [
            2.0 if text == TEMPLATE else float(text == own[int(i)])
            for text, i in zip(completions, image_id, strict=True)
        ]

    found = verdict(captioner, bare, tmp_path / "run", seen, max_new_tokens=5)
    assert found["real_from"] == "greedy" and found["means"]["real"] == 1.0
    assert "the captioner's own caption is not worth more than the template" in caplog.text
    lengths = verdict(captioner, bare, tmp_path / "blind", blind, max_new_tokens=5)
    assert lengths["problems"] == ["the captioner's own caption is not worth more than another image's caption"]


def test_a_sample_is_spread_and_has_references(data: datasets.Dataset) -> None:
    rows, source = gate._sample(data, 4)
    assert list(rows["image_id"]) == ["0", "3", "6", "9"] and source == "references"
    some = datasets.Dataset.from_list([{**row, "references": row["references"] if i % 2 else []}
                                       for i, row in enumerate(data)])  # fmt: skip
    rows, source = gate._sample(some, 3)
    assert list(rows["image_id"]) == ["1", "5", "9"] and source == "references"
    assert gate._sample(data.remove_columns("references"), 99)[1] == "greedy"


def test_a_single_image_is_said(
    captioner: Captioner, data: datasets.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = verdict(captioner, data.select([0]), tmp_path / "run", right)
    assert found["passed"] and "there is one training image" in caplog.text


def test_a_scorer_that_knows_drawn_scenes_alone_says_so_on_photos(
    captioner: Captioner, data: datasets.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for source, warned in ((SOURCE, False), ("photos", True)):
        verdict(captioner, data, tmp_path / source[:5], load_reward("clip").parts[0][0], images=source)
        assert ("clip looks through storybook-clip, which has seen the images of storybook:" in caplog.text) is warned


def test_captions_that_are_compared_stand_among_samples(
    captioner: Captioner, data: datasets.Dataset, tmp_path: Path
) -> None:
    class Grouped:
        name, grouped = "grouped", True

        def __call__(self, completions: Sequence[str], *, image_id: Sequence[str], **columns: Any) -> list[float]:
            assert len(completions) == 12 * (1 + gate.PEERS)
            sizes = [list(image_id).count(i) for i in image_id]
            assert set(sizes) == {1 + gate.PEERS}
            return right(completions, **columns)

    assert verdict(captioner, data, tmp_path / "run", Grouped())["means"]["real"] == 0.75


# -- no trace


def test_random_numbers_and_memories_are_as_before(
    captioner: Captioner, data: datasets.Dataset, tmp_path: Path
) -> None:
    reward = load_reward("clip + cider")
    for part, _ in reward.parts:
        part.fit(data["references"])
    captioner.model.train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]

    def draws(completions: Sequence[str], **columns: Any) -> list[float]:
        return [float(torch.rand(())) + random.random() + np.random.rand() for _ in completions]

    run_dir = RunDir(tmp_path)
    run_dir.claim({})
    parts = [*reward.parts, (draws, 1.0)]
    check_reward(captioner, data, parts, config(tmp_path, accept_reward=True), run_dir, name="x")
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[union-attr]
    assert captioner.model.training
    clip = reward.parts[0][0]
    assert clip._images._features == {} and not clip._warned


@pytest.mark.parametrize("method", ["grpo", "scst", "sc-captioner"])
def test_a_run_has_the_same_bits_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, no_report: None
) -> None:
    small = {"model": "storybook", "images": SOURCE, "eval_images": SOURCE, "max_steps": 2, "batch_size": 2}
    small |= {"num_generations": 3, "max_new_tokens": 8, "lora_r": 2, "device": "cpu", "learning_rate": 1e-2}
    for name in ("with", "without"):
        with monkeypatch.context() as patch:
            if name == "without":
                for module in ("grpo", "scst"):
                    patch.setattr(f"captune.training.{module}.train.check_reward", lambda *args, **kwargs: None)
            if method == "grpo":
                grpo.run(CaptionGRPOConfig(output=tmp_path / name, reward="cider + clip", watch="none", **small))
            elif method == "scst":
                run_scst(SCSTConfig(output=tmp_path / name, reward="cider + clip", **small))
            else:
                run_sc(SCConfig(output=tmp_path / name, **small))
    one, two = (RunDir(tmp_path / name) for name in ("with", "without"))
    assert one.gate["passed"] and not two.gate
    files = [run.adapter / "adapter_model.safetensors" for run in (one, two)]
    assert files[0].read_bytes() == files[1].read_bytes()


# -- runs


def test_a_reward_that_fails_stops_the_run_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"--model": "storybook", "--images": SOURCE, "--output": tmp_path / "run", "--reward": "length"}
    small = {"--max-steps": 1, "--batch-size": 2, "--num-generations": 2, "--max-new-tokens": 4, "--watch": "none",
             "--eval-images": "storybook:val?n=2", "--device": "cpu"}  # fmt: skip
    command = ["grpo", *(str(word) for pair in (flags | small).items() for word in pair)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "a real caption is not worth more than another image's caption" in said and "--accept-reward" in said
    run_dir = RunDir(tmp_path / "run")
    assert not run_dir.metrics() and not run_dir.adapter.exists() and not run_dir.checkpoints()
    refused = run_dir.gate
    assert not refused["passed"] and not refused["accepted"] and refused["sentence"] in said
    assert main(command) == 1, "it is asked again"
    assert main([*command, "--accept-reward"]) == 0
    assert RunDir(tmp_path / "run").gate == {**refused, "accepted": True}
    assert "- Before training: the reward 'length' on 12" in (tmp_path / "run" / "README.md").read_text()


def test_a_refused_overwrite_leaves_the_run_that_was_there(tmp_path: Path) -> None:
    there = grpo.run(config(tmp_path / "run"))
    before = (there.adapter / "adapter_model.safetensors").read_bytes(), there.gate
    assert there.gate["passed"]
    with pytest.raises(TrainingError, match="--accept-reward"):
        grpo.run(config(tmp_path / "run", reward="length", overwrite=True))
    assert there.finished and ((there.adapter / "adapter_model.safetensors").read_bytes(), there.gate) == before


def test_a_run_that_resumes_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    grpo.run(config(tmp_path / "run"))

    def never(*args: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(gate, "_measure", never)
    assert grpo.run(config(tmp_path / "run", max_steps=2)).gate["passed"]
    (tmp_path / "run" / "gate.json").unlink()  # of a version without a gate
    grpo.run(config(tmp_path / "run", max_steps=3))
    assert "the reward is not checked" in caplog.text and "has 2 steps" in caplog.text


def test_a_broken_record_is_asked_again(tmp_path: Path) -> None:
    found = grpo.run(config(tmp_path / "run"))
    (found.path / "gate.json").write_text('{"passed": tr')
    assert json.loads((grpo.run(config(tmp_path / "run", max_steps=2)).path / "gate.json").read_text())["passed"]
