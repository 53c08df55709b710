"""The reward-hacking watch: what it marks, what it lets pass and refuses; a run that goes on agrees with itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
import torch

from captune.errors import EvaluationError, MissingColumn, ScorerError
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import Scorer, load_reward, load_scorer
from captune.training.monitor.held_out import HeldOutMonitor, default_scorers

SOURCE = "storybook:val?n=16&seed=5"


class Scripted:
    """A captioner that says what it is told: one caption for every image, or one for each."""

    def __init__(self) -> None:
        self.greedy: str | Sequence[str] = "a house"
        self.sampled: str | Sequence[str] = "a house"
        self.said = 0

    def generate(self, images: Sequence[Any], **settings: Any) -> list[str]:
        text, k = (self.sampled, settings["num_return_sequences"]) if settings.get("do_sample") else (self.greedy, 1)
        if isinstance(text, str):
            return [text] * (len(images) * k)
        first = self.said
        if settings.get("do_sample"):
            self.said = (first + len(images)) % len(text)
        return [text[first + i] for i in range(len(images)) for _ in range(k)]

    def caption_ids(self, caption: str) -> list[int]:
        return [0] * len(caption.split())


class Marker(Scorer):
    """The number that a caption ends with; 1 where there is none."""

    name = "marker"

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        return np.array([[float(c.split()[-1]) if c and c.split()[-1].isdecimal() else 1.0] for c in captions])


class Failing(Scorer):
    name = "failing"

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        raise OSError("the server is gone")


class Nothing(Marker):
    name = "nothing"

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        return super().rows(captions) * np.nan


class WithModel(Marker):
    """A scorer with a model."""

    name: str = "marker"
    model: ClassVar = "a@11111111"

    @property
    def signature(self) -> str:
        return f"{self.name}|model:{self.model}"


class OtherModel(WithModel):
    model: ClassVar = "b@22222222"


class Elsewhere(WithModel):
    name = "elsewhere"


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run").start({})


def watch(captioner: Any, run_dir: RunDir, scorers: Sequence[Any] | None = None, **settings: Any) -> HeldOutMonitor:
    given: dict[str, Any] = {"reward": load_scorer("length"), "samples": 2, "max_new_tokens": 30}
    return HeldOutMonitor(captioner, SOURCE, [Marker()] if scorers is None else scorers, run_dir, **(given | settings))


def rows(run_dir: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir.path / "watch.jsonl").read_text().splitlines()]


def test_a_reward_that_rises_while_a_held_out_score_falls_is_marked(
    run_dir: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir)
    assert judge.primary == "eval_marker"
    captioner.sampled = "a house 10"
    start = judge.measure(0, None)
    assert start["eval_alerts"] == 0 and start["eval_marker"] == 1 and start["eval_marker_sampled"] == 10
    assert start["eval_length"] == 2 and all(isinstance(value, float) for value in start.values())
    run_dir.log(step=1, reward=2.5)
    captioner.sampled = "a day with <PERSON> 8"
    with caplog.at_level(logging.WARNING):
        figures = judge.measure(5, 7.0)
    assert figures["eval_alerts"] == 1 and figures["eval_marker_sampled"] == 8 and figures["eval_marker"] == 1
    row = rows(run_dir)[1]
    assert row["alerts"] == [{"figure": "marker", "since": 0, "text": row["alerts"][0]["text"]}]
    said = "step 5: the reward rose from 2.5 to 7, but marker of sampled captions fell from 10.000 (step 0) to 8.000"
    assert row["sentence"].startswith(said)
    assert [record.getMessage() for record in caplog.records] == [row["sentence"]]
    line = json.loads((run_dir.path / "captions" / "watch-5.jsonl").read_text().splitlines()[0])
    assert line["caption"] == "a house" and line["samples"] == ["a day with <PERSON> 8"] * 2


@pytest.mark.parametrize(
    ("after", "reward"),
    [("a house 120", 7.0), ("a house 100", 7.0), ("a house 95", 7.0), ("a house 50", 2.0)],
    ids=["both rise", "it stands still", "it falls by less than a tenth", "the reward falls, too"],
)
def test_a_healthy_evaluation_is_not_marked(run_dir: RunDir, after: str, reward: float) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir)
    captioner.sampled = "a house 100"
    judge.measure(0, None)
    run_dir.log(step=1, reward=2.5)
    captioner.sampled = after
    assert judge.measure(5, reward)["eval_alerts"] == 0


class Errors(Marker):
    """A scorer of which less is better, as `chair` is."""

    name = "errors"
    primary = "errors"
    higher_is_better: ClassVar = {"errors": False, "recall": True}


def test_which_way_is_better_is_what_the_scorer_declares(run_dir: RunDir) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir, [Errors()])
    assert (
        judge.primary == "eval_errors" and not judge.greater_is_better and watch(captioner, run_dir).greater_is_better
    )
    for step, (reward, errors, alerts) in enumerate([(None, 40, 0), (1.0, 20, 0), (2.0, 10, 0), (3.0, 30, 1)]):
        captioner.sampled = captioner.greedy = f"a house {errors}"
        figures = judge.measure(step, reward)
        assert figures["eval_alerts"] == alerts and figures["eval_errors"] == errors
    (alert,) = rows(run_dir)[-1]["alerts"]
    assert alert["since"] == 2 and "rose from 10.000 (step 2) to 30.000" in alert["text"]


def test_a_fall_is_measured_from_the_best(run_dir: RunDir) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir)
    for step, (reward, score, marks) in enumerate([(None, 10, 0), (1.0, 20, 0), (2.0, 40, 0), (3.0, 30, 1)]):
        captioner.sampled = f"a house {score}"
        assert judge.measure(step, reward)["eval_alerts"] == marks
    assert rows(run_dir)[-1]["alerts"][0]["since"] == 2


def test_a_fall_within_the_noise_is_not_marked(run_dir: RunDir) -> None:
    captioner, noise = Scripted(), np.random.default_rng(0)
    judge = watch(captioner, run_dir)
    for step in range(6):
        captioner.sampled = [f"a house {noise.integers(0, 100)}" for _ in range(16)]
        assert judge.measure(step, float(step))["eval_alerts"] == 0
    sampled = [row["sampled"]["marker"] for row in rows(run_dir)]
    assert min(sampled[1:]) < 0.9 * sampled[0] or max(sampled) > 1.1 * sampled[-1], "the noise is worth a tenth"


@pytest.mark.parametrize(
    ("caption", "figure"),
    [
        ("a cat and a cat and a cat and a cat 50", "repetition"),
        ("a cat on the", "bad_endings"),
        ("", "empty"),
        (" ".join(f"w{i}" for i in range(30)), "cut"),
        (" ".join(f"w{i}" for i in range(29)), "length"),
    ],
)
def test_a_failing_vital_sign_is_marked_whatever_the_scores_say(run_dir: RunDir, caption: str, figure: str) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir)
    judge.measure(0, None)
    captioner.greedy, captioner.sampled = caption, "a house 50"
    judge.measure(5, 1.0)
    captioner.greedy = caption
    assert judge.measure(10, 2.0)["eval_alerts"] >= 1
    assert figure in [mark["figure"] for mark in rows(run_dir)[-1]["alerts"]]


def test_captions_as_long_as_the_references_and_roughness_pass(run_dir: RunDir) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir)
    judge.measure(0, None)
    captioner.greedy = "a big red cat left of a small red ball and a red cat in the snow"
    judge.measure(5, 1.0)
    assert judge.measure(10, 2.0)["eval_alerts"] == 0
    assert 0 < rows(run_dir)[-1]["health"]["repetition"] < 0.15


def test_a_vocabulary_that_collapses_is_marked(run_dir: RunDir) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir, [])
    assert judge.primary is None
    captioner.greedy = " ".join(f"w{i}" for i in range(12))
    assert judge.measure(0, None).keys() >= {"eval_vocabulary", "eval_hallucinated", "eval_alerts"}
    judge.measure(5, 1.0)
    captioner.greedy = "w1 w2 w3 w4 w5"
    judge.measure(10, 2.0)
    assert [mark["figure"] for mark in rows(run_dir)[-1]["alerts"]] == ["vocabulary"]


def test_what_is_part_of_the_reward_is_refused(run_dir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    for scorers, reward in (
        (["clip"], load_reward("0.5*clip - length")),
        (["clip:storybook-clip?w=1"], load_reward("clip")),
        (["cider"], ["cider", "some_function"]),
        (["cider + rouge"], load_reward("rouge")),
        ([WithModel()], [WithModel()]),
    ):
        with pytest.raises(ValueError, match="cannot monitor the run: it is part of the reward"):
            watch(Scripted(), run_dir, scorers, reward=reward)
    watch(Scripted(), run_dir, [WithModel()], reward=[OtherModel(), lambda completions: completions])
    assert not caplog.records
    watch(Scripted(), run_dir, [WithModel()], reward=[Elsewhere()])
    assert "'marker' monitors and 'elsewhere' rewards the run, but both judge by the same model" in caplog.text


def test_facts_that_are_the_reward_are_no_vital_sign(run_dir: RunDir) -> None:
    figures = watch(Scripted(), run_dir, reward=load_reward("storybook")).measure(0, None)
    assert "eval_hallucinated" not in figures


def test_what_is_missing_is_said_at_once(run_dir: RunDir, tmp_path: Path, images: list) -> None:
    (tmp_path / "photos").mkdir()
    images[0].save(tmp_path / "photos" / "a.png")
    with pytest.raises(MissingColumn, match="references"):
        HeldOutMonitor(Scripted(), str(tmp_path / "photos"), ["cider"], run_dir, reward="length")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="has no image to monitor; a.png"):
        HeldOutMonitor(Scripted(), str(tmp_path / "broken"), [], run_dir, reward="length")


def test_a_scorer_that_knows_drawn_scenes_alone_says_so_on_photos(
    run_dir: RunDir, tmp_path: Path, images: list, caplog: pytest.LogCaptureFixture
) -> None:
    for number, image in enumerate(images[:2]):
        image.save(tmp_path / f"{number}.png")
    for source, warned in ((SOURCE, False), (str(tmp_path), True)):
        HeldOutMonitor(Scripted(), source, ["clip"], run_dir, reward="length", limit=2)  # type: ignore[arg-type]
        assert ("clip looks through storybook-clip, which has seen the images of storybook:" in caplog.text) is warned


def test_a_scorer_sees_the_columns_that_it_sees_in_an_evaluation(run_dir: RunDir) -> None:
    class Seen(Marker):
        name, optional_columns = "seen", ("references", "image_id", "nothing")

        def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
            assert columns.keys() == {"references", "image_id"}
            return super().rows(captions)

    assert watch(Scripted(), run_dir, [Seen()]).measure(0, None)["eval_seen"] == 1


@pytest.mark.parametrize("scorer", [Failing(), Nothing()])
def test_a_scorer_that_fails_names_itself(run_dir: RunDir, scorer: Scorer) -> None:
    judge = watch(Scripted(), run_dir, [Marker(), scorer])
    with pytest.raises(ScorerError, match=f"the monitor's scorer '{scorer.name}' .*at step 5"):
        judge.measure(5, 1.0)
    assert (run_dir.path / "captions" / "watch-5.jsonl").is_file(), "captions are kept before they are scored"
    assert not (run_dir.path / "watch.jsonl").exists()


def test_empty_captions_are_scored(run_dir: RunDir) -> None:
    captioner = Scripted()
    captioner.greedy = captioner.sampled = ""
    figures = watch(captioner, run_dir, ["cider", "clip"], reward="length").measure(0, None)
    assert figures["eval_cider"] == 0 and figures["eval_empty"] == 1 and figures["eval_clip"] >= 0


def script(captioner: Scripted, step: int) -> float | None:
    captioner.greedy, captioner.sampled = f"a house {step}", [f"a house {40 - step + i % 7}" for i in range(16)]
    return float(step) if step else None


def test_a_run_that_goes_on_writes_the_same_bytes(tmp_path: Path) -> None:
    whole, cut = (RunDir(tmp_path / name).start({}) for name in ("whole", "cut"))
    captioner, judge = (made := Scripted()), watch(made, whole)
    for step in (0, 5, 10, 15):
        judge.measure(step, script(captioner, step))
    captioner, judge = (made := Scripted()), watch(made, cut)
    for step in (0, 5, 10):
        judge.measure(step, script(captioner, step))

    resumed = Scripted()
    judge = watch(resumed, cut)
    judge.rewind(5)  # the last checkpoint
    assert [row["step"] for row in rows(cut)] == [0, 5]
    assert not (cut.path / "captions" / "watch-10.jsonl").exists()
    resumed.greedy = "something else"
    assert judge.measure(5, 3.0)["eval_length"] == 3, "what the file holds is not measured again"
    for step in (10, 15):
        judge.measure(step, script(resumed, step))
    for name in ("watch.jsonl", "captions/watch-10.jsonl", "captions/watch-15.jsonl"):
        assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert rows(whole)[-1]["alerts"], "the marks are part of what agrees"


def test_a_later_round_is_not_compared_by_an_earlier_reward(run_dir: RunDir) -> None:
    captioner = Scripted()
    judge = watch(captioner, run_dir)
    captioner.sampled = "a house 10"
    judge.measure(0, None)
    judge.measure(40, 9.0)
    judge = watch(captioner, run_dir, first_step=40)  # another reward, whose numbers are smaller
    assert judge.measure(0, None)["eval_marker_sampled"] == 10
    run_dir.log(step=41, reward=0.1)
    captioner.sampled = "a house 5"
    assert judge.measure(5, 0.2)["eval_alerts"] == 1
    assert rows(run_dir)[-1]["step"] == 45


def test_the_same_random_numbers_every_time_and_none_of_training(captioner: Captioner, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run_dir = RunDir(tmp_path / "run").start({})
    judge = watch(captioner, run_dir, ["cider"], limit=3, max_new_tokens=4)
    captioner.model.train()
    judge.measure(0, None)
    judge.measure(5, 1.0)
    assert torch.equal(torch.rand(4), expected)
    assert captioner.model.training
    first, second = ((run_dir.path / "captions" / f"watch-{step}.jsonl").read_bytes() for step in (0, 5))
    assert first == second
    samples = [json.loads(line)["samples"] for line in first.splitlines()]
    assert len(samples) == 3 and all(len(own) == 2 for own in samples)
    assert len({text for own in samples for text in own}) > 3


def test_the_trainer_evaluates_by_it(captioner: Captioner, images: list, tmp_path: Path) -> None:
    from captune.training.config import TrainingConfig
    from captune.training.grpo.train import train_with_reward

    run_dir = RunDir(tmp_path / "run").start({})
    small: dict[str, Any] = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-2, "device": "cpu"}
    config = TrainingConfig(model="", images="-", output=run_dir.path, **small)
    captioner.add_lora(4, 8, 0.0)
    judge = watch(captioner, run_dir, ["cider"], limit=2, max_new_tokens=3)
    reward, dataset = load_scorer("length"), datasets.Dataset.from_list([{"image": image} for image in images])
    given: dict[str, Any] = {"beta": 0.0, "num_generations": 2, "temperature": 1.0, "max_new_tokens": 3}
    evaluated = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "metric_for_best_model": judge.primary,
    }
    train_with_reward(captioner, dataset, [(reward, 1.0)], config, run_dir, monitor=judge, **given, **evaluated)
    assert [row["step"] for row in rows(run_dir)] == [0, 1, 2]
    assert rows(run_dir)[0]["reward"] is None
    logged = {row["step"]: row["reward"] for row in run_dir.metrics() if "reward" in row}
    assert [row["reward"] for row in rows(run_dir)][1:] == pytest.approx([logged[1], logged[2]])
    assert [row["step"] for row in run_dir.metrics() if "eval_cider" in row] == [0, 1, 2]


def test_the_default_watch(tmp_path: Path, images: list, caplog: pytest.LogCaptureFixture) -> None:
    assert default_scorers("length", SOURCE) == default_scorers(load_reward("cider"), SOURCE) == ["clip"]
    assert not caplog.records
    assert default_scorers("clip - 0.1*length", SOURCE) == ["cider"]
    assert "though the reward needs no labels" in caplog.text
    assert default_scorers("clip + cider", SOURCE) == []
    assert "only health" in caplog.text
    images[0].save(tmp_path / "a.png")
    assert default_scorers("length", str(tmp_path)) == []
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["a cat"]}) + "\n")
    caplog.clear()
    assert default_scorers(["rouge", "some_function"], str(tmp_path / "captions.jsonl")) == ["cider"]
    assert "though the reward needs no labels" in caplog.text
    caplog.clear()

    def labelled(completions: list) -> list[float]:
        return [0.0 for _ in completions]

    labelled.required_columns = ("references",)  # type: ignore[attr-defined]
    assert default_scorers([labelled], str(tmp_path / "captions.jsonl")) == ["cider"] and not caplog.records
    with (tmp_path / "captions.jsonl").open("a") as lines:  # where some have no references, nothing is judged by them
        lines.write(json.dumps({"image": "a.png", "image_id": "another"}) + "\n")
    assert default_scorers("length", str(tmp_path / "captions.jsonl")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("sampled"), "evaluation 2: sampled missing or invalid"),
        (lambda row: row.update(step="5", health=None, greedy=[]), "greedy, health, step missing or invalid"),
        (lambda row: row["greedy"].update(marker=float("nan")), "figures that are finite"),
    ],
)
def test_b3_an_evaluation_that_is_not_whole_is_refused(run_dir: RunDir, change: Any, message: str) -> None:
    judge = watch(Scripted(), run_dir)
    for step in (0, 5):
        judge.measure(step, 1.0)
    content = rows(run_dir)
    change(content[1])
    (run_dir.path / "watch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(EvaluationError, match=message):
        watch(Scripted(), run_dir)
