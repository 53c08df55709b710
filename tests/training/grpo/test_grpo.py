"""GRPO on a captioner: a reward is learned, each image is seen once per step, a run that was cut goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from captune.errors import MissingColumn, ScorerError, UnknownScorer
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import Scorer, load_reward, load_scorer
from captune.training import trainer as training
from captune.training.config import TrainingConfig
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.grpo.train import run, train_with_reward
from captune.training.reward import prepare_reward


@pytest.fixture
def dataset(images: list) -> datasets.Dataset:
    rows = [{"image": image, "image_id": str(i), "references": ["a red ball"]} for i, image in enumerate(images)]
    return datasets.Dataset.from_list(rows)


def train(
    captioner: Captioner,
    dataset: datasets.Dataset,
    reward: Callable[..., list[float]] | list[tuple[Callable[..., list[float]], float]],
    output: Path,
    *,
    beta: float = 0.0,
    num_generations: int = 4,
    lora: bool = True,
    **settings: Any,
) -> RunDir:
    small = {"max_steps": 2, "batch_size": 2, "lora_r": 4, "lora_alpha": 8, "warmup_steps": 0}
    config = TrainingConfig(model="", images="-", output=output, device="cpu", **(small | settings))
    run_dir = RunDir(output)
    if not output.exists():
        run_dir.start({})
    torch.manual_seed(config.seed)
    if lora:
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
    train_with_reward(
        captioner,
        dataset,
        [(reward, 1.0)] if callable(reward) else reward,
        config,
        run_dir,
        beta=beta,
        num_generations=num_generations,
        temperature=1.0,
        max_new_tokens=3,
    )
    captioner.model.eval()
    return run_dir


def first_words(captioner: Captioner, images: list) -> torch.Tensor:
    """Probabilities of the first token, averaged over the images."""
    batch = captioner.prepare(images)
    with torch.no_grad():
        return captioner.model(**batch).logits[:, -1].softmax(-1).mean(0)


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def test_a_liked_word_becomes_likelier(
    captioner: Captioner, images: list, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    before = first_words(captioner, images)
    words = {i: captioner.tokenizer.decode([i]).strip() for i in range(len(before))}
    special = captioner.tokenizer.all_special_ids
    likely = before.argsort(descending=True).tolist()
    liked = next(
        i for i in likely if i not in special and words[i].isascii() and words[i].isalnum() and before[i] < 0.2
    )
    assert before[liked] > 0.005, "the word must be within reach of sampling"

    def reward(completions: list, **_: Any) -> list[float]:
        return [float(text_of(completion).strip().startswith(words[liked])) for completion in completions]

    run_dir = train(
        captioner, dataset, reward, tmp_path / "run", max_steps=8, batch_size=4, num_generations=12, learning_rate=0.02
    )
    after = first_words(captioner, images)
    assert after[liked] > 1.5 * before[liked]
    rewards = [row["reward"] for row in run_dir.metrics() if "reward" in row]
    assert len(rewards) == 8 and rewards[-1] > rewards[0]


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_each_image_is_seen_once_per_step(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path, beta: float
) -> None:
    """Four captions an image, log-probabilities, KL and training: one evaluation of the tower a step, none backward."""
    forward: list[int] = []
    backward: list[int] = []
    tower = captioner.core.model.vision_model
    tower.register_forward_hook(
        lambda module, args, kwargs, output: forward.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    for module in [*tower.modules(), *captioner.core.model.connector.modules()]:
        if isinstance(module, torch.nn.Linear):
            module.register_full_backward_hook(lambda *_: backward.append(1))
    train(
        captioner,
        dataset,
        lambda completions, **_: [float(len(text_of(c))) for c in completions],
        tmp_path / "run",
        beta=beta,
    )
    assert forward == [2, 2] and not backward


def test_only_lora_moves(captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path) -> None:
    before = {name: p.detach().clone() for name, p in captioner.core.named_parameters()}
    train(captioner, dataset, lambda completions, **_: [float(len(text_of(c))) for c in completions], tmp_path / "run")
    after = {name.replace(".base_layer", ""): p for name, p in captioner.core.named_parameters()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in after.items())


def test_the_reward_sees_the_rows_of_its_captions(
    captioner: Captioner, images: list, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    """Image and references come with each caption, in TRL's signature; a scorer serves as it is."""
    calls: list[dict[str, Any]] = []

    def reward(completions: list, **columns: Any) -> list[float]:
        calls.append({"completions": completions, **columns})
        return [0.5 * i for i in range(len(completions))]

    train(captioner, dataset, reward, tmp_path / "run")
    pictures = {image.tobytes(): str(i) for i, image in enumerate(images)}
    assert len(calls) == 2
    for call in calls:
        assert len(call["completions"]) == len(call["image"]) == len(call["references"]) == 8
        assert [pictures[image.tobytes()] for image in call["image"]] == call["image_id"]
        assert all(call["image_id"][i] == call["image_id"][i - i % 4] for i in range(8)), "four captions an image"
        assert call["references"] == [["a red ball"]] * 8


def test_a_scorer_is_a_reward(captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path) -> None:
    scorer = load_scorer("length")
    assert isinstance(scorer, Scorer)
    run_dir = train(captioner, dataset, scorer, tmp_path / "run")
    logged = [row for row in run_dir.metrics() if "reward" in row]
    assert [row["step"] for row in logged] == [1, 2]
    assert any("length" in name for name in logged[0])


def test_equal_rewards_teach_nothing(captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path) -> None:
    """Groups without variance have no advantage: no NaN, and nothing but weight decay, which LoRA's zeros ignore."""
    train(captioner, dataset, lambda completions, **_: [1.0] * len(completions), tmp_path / "run", weight_decay=0.0)
    parameters = dict(captioner.model.named_parameters())
    assert all(torch.isfinite(p).all() for p in parameters.values())
    assert all(p.abs().max() == 0 for name, p in parameters.items() if "lora_B" in name)


def test_the_same_seed_trains_the_same(tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path) -> None:
    def adapter(name: str, seed: int) -> list[torch.Tensor]:
        captioner = Captioner.load(tiny_folder("idefics3"), device="cpu")
        train(captioner, dataset, load_scorer("length"), tmp_path / name, seed=seed)
        return [p for n, p in captioner.model.named_parameters() if "lora_" in n]

    same, again, other = adapter("a", 3), adapter("b", 3), adapter("c", 4)
    assert all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(same, other, strict=True))


def test_a_cut_run_ends_like_an_uncut_one(
    tiny_folder: Any, dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(RuntimeError):
        pass

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise Cut

    def captioner() -> Captioner:
        return Captioner.load(tiny_folder("idefics3"), device="cpu")

    settings: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "beta": 0.1}
    whole, cut = captioner(), captioner()
    dataset = datasets.concatenate_datasets([dataset, dataset])  # four steps to a pass over the images
    train(whole, dataset, load_scorer("length"), tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            train(cut, dataset, load_scorer("length"), tmp_path / "cut", **settings)
    assert [path.name for path in RunDir(tmp_path / "cut").checkpoints()] == ["checkpoint-2"]
    resumed = captioner()
    train(resumed, dataset, load_scorer("length"), tmp_path / "cut", **settings)
    expected = {name: p for name, p in whole.model.named_parameters() if "lora_" in name}
    assert all(torch.equal(p, expected[name]) for name, p in resumed.model.named_parameters() if name in expected)


def test_rewards_are_summed_with_their_weights(captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path) -> None:
    def letters(completions: list, **_: Any) -> list[float]:
        return [float(len(text_of(c))) for c in completions]

    def one(completions: list, **_: Any) -> list[float]:
        return [1.0] * len(completions)

    run_dir = train(captioner, dataset, [(letters, 0.5), (one, -2.0)], tmp_path / "run")
    rows = [row for row in run_dir.metrics() if "reward" in row]
    assert rows and all(row["reward"] == pytest.approx(0.5 * row["rewards/letters/mean"] - 2.0) for row in rows)


# -- captune grpo ----------------------------------------------------------------------------------------------------


def reward_config(tmp_path: Path, model: Path, name: str = "run", **settings: Any) -> CaptionGRPOConfig:
    small = {"max_steps": 2, "batch_size": 2, "num_generations": 2, "max_new_tokens": 3, "lora_r": 4, "lora_alpha": 8}
    sources = {"images": "storybook:train?n=6&seed=3", "eval_images": "storybook:val?n=3&seed=3"}
    more = {"output": tmp_path / name, "device": "cpu", "accept_reward": True}
    return CaptionGRPOConfig(model=str(model), **(more | small | sources | settings))


def test_a_run_with_a_sum_of_scorers_logs_its_parts_and_goes_on_from_an_adapter(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny_folder("idefics3")
    first = run(reward_config(tmp_path, model, reward="cider + 0.5*rouge - 0.1*length"))
    rows = [row for row in first.metrics() if "reward" in row]
    assert len(rows) == 2
    for row in rows:
        parts = [row[f"rewards/{name}/mean"] for name in ("cider", "rouge", "length")]
        assert row["reward"] == pytest.approx(parts[0] + 0.5 * parts[1] - 0.1 * parts[2], abs=1e-5)
    assert (first.path / "cider-df.json").is_file() and (first.path / "report.html").is_file()
    frozen = load_scorer(f"cider:{first.path / 'cider-df.json'}")
    assert len(frozen(["a red ball"], references=[["a red ball"]])) == 1

    second = run(reward_config(tmp_path, model, "more", reward="length", adapter=first.adapter, learning_rate=1e-9))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first.adapter, second.adapter))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    assert any(key.endswith("lora_B.weight") and bool(before[key].any()) for key in before)


def test_what_a_reward_lacks_is_said_before_training(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    run_dir = RunDir(tmp_path / "run").start({})
    with pytest.raises(MissingColumn, match="scene"):
        prepare_reward(load_reward("storybook + length"), dataset, run_dir, captioner)
    first = dataset["image_id"][0]
    found = tmp_path / "found.jsonl"
    found.write_text(json.dumps({"image_id": first, "objects": []}) + "\n")
    for scorer in ("detected", "chair"):  # not at the step that meets the image
        with pytest.raises(ScorerError, match=f"says nothing about image '(?!{first})"):
            prepare_reward(load_reward(f"length + {scorer}:?detections={found}"), dataset, run_dir, captioner)
    lines = [json.dumps({"image_id": one, "objects": []}) for one in dataset["image_id"]]
    found.write_text("\n".join(lines) + "\n")
    prepare_reward(load_reward(f"length + detected:?detections={found}"), dataset, run_dir, captioner)
    with pytest.raises(UnknownScorer, match="cider"):
        reward_config(tmp_path, tmp_path, reward="0.5*cidre")
    with pytest.raises(ValueError, match="missing required option: --reward"):
        reward_config(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="operator is missing"):
        reward_config(tmp_path, tmp_path, reward="cider rouge")
