"""Scorers in a stock trl.GRPOTrainer: the documentation's own code, and what trl hands to a reward function."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import trl
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from captune.errors import MissingColumn
from captune.scorers import Scorer, load_reward, load_scorer

DOC = Path(__file__).parents[1] / "docs" / "rewards.md"
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
FEW = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6}
QUIET = {"report_to": "none", "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that GRPOTrainer loads by itself."""
    return str(tiny.idefics3(tmp_path_factory.mktemp("trl") / "model", chat_template=CHAT))


def rows(**columns: list[Any]) -> datasets.Dataset:
    prompts = [[{"role": "user", "content": "Describe this image."}]] * 4
    return datasets.Dataset.from_dict({"prompt": prompts, "image": [tiny.picture(i) for i in range(4)], **columns})


def train(model: str, reward_funcs: Any, dataset: datasets.Dataset, output: Path, **settings: Any) -> GRPOTrainer:
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward_funcs,
        args=GRPOConfig(str(output), **(FEW | QUIET | settings)),
        train_dataset=dataset,
        peft_config=LoraConfig(r=2, target_modules=r".*text_model.*q_proj"),
    )
    trainer.train()
    return trainer


def logged(trainer: GRPOTrainer) -> dict[str, float]:
    return next(entry for entry in trainer.state.log_history if "reward" in entry)


def test_the_code_of_the_documentation_runs(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word but for the names of models and data, two steps of the stock trainer each."""
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    trained: list[GRPOTrainer] = []

    class Kept(GRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            assert "image" in kwargs["train_dataset"].column_names
            super().__init__(*args, **kwargs)
            trained.append(self)

    def config(output: str, **settings: Any) -> GRPOConfig:
        return GRPOConfig(str(tmp_path / output), **(settings | FEW | QUIET | {"max_steps": 2}))

    monkeypatch.setattr(trl, "GRPOTrainer", Kept)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows().remove_columns("prompt"))
    names: dict[str, Any] = {"config": config}
    for block in blocks:
        code = block.replace("Qwen/Qwen2-VL-2B-Instruct", model).replace(":openai/clip-vit-base-patch32", "")
        code = code.replace("language_model", "text_model").replace("GRPOConfig(", "config(")
        exec(compile(code, str(DOC), "exec"), names)
    whole, parts = trained
    assert [trainer.state.global_step for trainer in trained] == [2, 2]
    assert whole.reward_func_names == ["clip - 0.5*repetition"]
    assert parts.reward_func_names == ["clip", "repetition"]
    assert parts.reward_weights.tolist() == [1.0, -0.5]
    entry = logged(parts)
    assert entry["reward"] == pytest.approx(
        entry["rewards/clip/mean"] - 0.5 * entry["rewards/repetition/mean"], abs=1e-5
    )


class Seen(Scorer):
    """Keeps what it is given; the caption's length in characters, nan for the image named by `unscorable`."""

    name = "seen"
    required_columns = ("image", "references", "image_id")

    def __init__(self, unscorable: str = "none") -> None:
        self.unscorable, self.calls = unscorable, []  # type: ignore[var-annotated]

    def rows(self, captions: Any, *, image_id: Any, **columns: Any) -> np.ndarray:
        self.calls.append({"captions": captions, "image_id": image_id, **columns})
        silent = [i == self.unscorable for i in image_id]
        return np.array([[math.nan if no else float(len(c))] for c, no in zip(captions, silent, strict=True)])


def named(**columns: list[Any]) -> datasets.Dataset:
    return rows(image_id=list("abcd"), references=[["a ball", "ball"], ["b"], ["c"], ["d"]], **columns)


@pytest.mark.parametrize("column", ["image", "images"])
def test_what_a_scorer_sees(model: str, tmp_path: Path, column: str) -> None:
    """Its columns, row by row, out of all that TRL sends (prompts, completion_ids, trainer_state, log_extra, ...); the
    texts of conversational completions."""
    dataset = named(other=[1, 2, 3, 4])
    if column == "images":
        dataset = dataset.map(lambda row: {"images": [row["image"]]}, remove_columns="image")
    scorer = Seen()
    train(model, scorer, dataset, tmp_path)
    (call,) = scorer.calls
    assert set(call) == {"captions", "image", "references", "image_id"}
    assert all(isinstance(caption, str) for caption in call["captions"])
    for name, image, own in zip(call["image_id"], call["image"], call["references"], strict=True):
        place = "abcd".index(name)
        assert image.convert("RGB").tobytes() == tiny.picture(place).tobytes()
        assert own == [["a ball", "ball"], ["b"], ["c"], ["d"]][place]
    assert call["image_id"][0::2] == call["image_id"][1::2]  # two captions of each image


@pytest.mark.parametrize("together", [False, True])
def test_a_caption_that_cannot_be_judged(model: str, tmp_path: Path, together: bool) -> None:
    """NaN for one image: no advantage for its captions, and none of the others' is touched."""
    scorer = Seen(unscorable="b")
    kept: list[dict[str, Any]] = []

    class Watched(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            out = super()._generate_and_score_completions(inputs)
            kept.append({"advantages": out["advantages"], "ids": [row["image_id"] for row in inputs]})
            return out

    rewards: Any = scorer
    if together:  # a sum as one function: one part that cannot judge is enough
        rewards = load_reward("length - repetition")
        rewards.parts.append((scorer, 1.0))
        rewards.required_columns = scorer.required_columns
    trainer = Watched(
        model,
        reward_funcs=rewards,
        args=GRPOConfig(str(tmp_path), **(FEW | QUIET | {"per_device_train_batch_size": 8})),
        train_dataset=named(),
        peft_config=LoraConfig(r=2, target_modules=r".*text_model.*q_proj"),
    )
    trainer.train()
    (step,) = kept
    silent = [i == "b" for i in step["ids"]]
    assert sum(silent) == 2 and not step["advantages"].isnan().any()
    assert all(step["advantages"][i] == 0 for i, quiet in enumerate(silent) if quiet)
    assert any(step["advantages"][i] != 0 for i, quiet in enumerate(silent) if not quiet)
    assert math.isfinite(logged(trainer)["reward"]) and math.isfinite(logged(trainer)["loss"])


def test_the_real_nan(model: str, tmp_path: Path) -> None:
    """`attributes` cannot judge where the references name none; the other part of the reward goes on."""
    reward = load_reward("attributes + length")
    dataset = rows(references=[["a red ball"], ["dogs run"], ["a blue fish"], ["the sea"]])
    trainer = train(model, [part for part, _ in reward.parts], dataset, tmp_path, per_device_train_batch_size=8)
    values = list(trainer._logs["rewards"]["attributes"])
    assert sum(math.isnan(value) for value in values) == 4 and len(values) == 8
    assert math.isfinite(logged(trainer)["reward"]) and math.isfinite(logged(trainer)["loss"])


def test_a_missing_column_is_an_error_that_names_it(model: str, tmp_path: Path) -> None:
    with pytest.raises(MissingColumn, match="'rouge' needs references; the data have image"):
        train(model, load_scorer("rouge"), rows(), tmp_path)


def test_images_of_a_row_without_one_are_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="no image"):
        load_scorer("clip")(["a", "b"], images=[[tiny.picture(0)], None])
