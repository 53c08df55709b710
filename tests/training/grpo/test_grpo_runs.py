"""`captune grpo` as a whole: watched, stopped in time, its best adapter kept, and none of it lost by a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from captune.cli.config import build
from captune.cli.main import main
from captune.corpus.build import build as build_corpus
from captune.errors import RunError, ScorerError, SettingError
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper
from captune.models.vizer_mapper_config import MapperConfig
from captune.runs.run_dir import RunDir
from captune.training import trainer as training
from captune.training.grpo.config import PRESETS, CaptionGRPOConfig
from captune.training.grpo.train import run
from captune.training.grpo.trainer import CaptionGRPOTrainer
from captune.training.monitor.held_out import HeldOutMonitor


def config(folder: Path, model: Path, **settings: Any) -> CaptionGRPOConfig:
    small = {"max_steps": 6, "batch_size": 2, "num_generations": 2, "max_new_tokens": 3, "lora_r": 4, "lora_alpha": 8}
    sources = {"images": "storybook:train?n=6&seed=3", "eval_images": "storybook:val?n=3&seed=3"}
    rest = {"reward": "length", "eval_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0, "accept_reward": True}
    return CaptionGRPOConfig(model=str(model), output=folder, device="cpu", **(small | sources | rest | settings))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """`judged([.1, .3, .2])`: what the held-out scorer says at each evaluation, the last one for ever after."""

    def say(scores: Sequence[float]) -> None:
        def measure(self: HeldOutMonitor, step: int, reward: float | None) -> dict[str, float]:
            return {"eval_clip": scores[min(step, len(scores) - 1)], "eval_alerts": 0.0}

        monkeypatch.setattr(HeldOutMonitor, "measure", measure)

    return say


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_adapter_is_kept_and_a_run_that_stalls_is_stopped(
    tiny_folder: Callable[[str], Path], tmp_path: Path, judged: Callable[[Sequence[float]], None]
) -> None:
    """Best after step 2, nothing better in three evaluations: the end is step 5, the adapter that of step 2."""
    judged([0.1, 0.2, 0.5, 0.4, 0.3, 0.45, 0.9])
    found = run(config(tmp_path / "run", tiny_folder("idefics3"), save_steps=1))
    assert max(row["step"] for row in found.metrics()) == 5
    assert [path.name for path in found.checkpoints()] == ["checkpoint-2", "checkpoint-5"]
    assert same(weights(found.adapter), weights(found.path / "checkpoint-2"))
    assert not same(weights(found.adapter), weights(found.path / "checkpoint-5"))


def test_the_end_is_an_evaluation_too(
    tiny_folder: Callable[[str], Path], tmp_path: Path, judged: Callable[[Sequence[float]], None]
) -> None:
    judged([0.1, 0.2, 0.3, 0.4, 0.5])
    found = run(config(tmp_path / "run", tiny_folder("idefics3"), max_steps=3, eval_steps=2, early_stopping_patience=0))
    assert [row["step"] for row in found.metrics() if "eval_clip" in row] == [0, 2, 3]
    assert same(weights(found.adapter), weights(found.path / "checkpoint-3"))


def test_checkpoints_are_saved_between_evaluations(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    judged: Callable[[Sequence[float]], None],
) -> None:  # fmt: skip
    """--save-steps 2 with --eval-steps 3: transformers would save at 3 and at the end alone."""
    saved = []
    monkeypatch.setattr(CaptionGRPOTrainer, "save_more", lambda self, folder: saved.append(folder.name))
    judged([0.5, 0.5, 0.5, 0.4])
    more = {"max_steps": 5, "eval_steps": 3, "save_steps": 2, "early_stopping_patience": 0}
    found = run(config(tmp_path / "run", tiny_folder("idefics3"), **more))
    assert saved == [f"checkpoint-{step}" for step in (2, 3, 4, 5)]
    assert [row["step"] for row in found.metrics() if "eval_clip" in row] == [0, 3, 5]


def test_a_killed_run_ends_with_the_same_adapter_and_watch(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the middle of what was sampled, between two checkpoints."""

    class Cut(RuntimeError):
        pass

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise Cut

    settings: dict[str, Any] = {
        "num_iterations": 2,
        "eval_steps": 3,
        "early_stopping_patience": 0,
        "beta": 0.1,
        "keep_vision": True,
    }
    model = tiny_folder("idefics3")
    whole = run(config(tmp_path / "whole", model, **settings))
    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            run(config(tmp_path / "cut", model, **settings))
    assert [path.name for path in RunDir(tmp_path / "cut").checkpoints()] == ["checkpoint-3"]
    assert (tmp_path / "cut" / "checkpoint-3" / "0-rollouts.safetensors").is_file()
    torch.manual_seed(99)
    resumed = run(config(tmp_path / "cut", model, **settings))
    assert same(weights(whole.adapter), weights(resumed.adapter))
    assert (whole.path / "watch.jsonl").read_bytes() == (resumed.path / "watch.jsonl").read_bytes()
    assert [row["step"] for row in map(json.loads, (whole.path / "watch.jsonl").open())] == [0, 3, 6]
    assert list((whole.path / "vision").rglob("*.safetensors"))


def test_cim_is_a_preset(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    given = {"model": str(tiny_folder("idefics3")), "output": tmp_path / "run", "images": "storybook:unlabelled"}
    cim = build(CaptionGRPOConfig, {**given, "preset": "cim", "corpus": tmp_path / "c"}, None, PRESETS)
    assert cim.reward == f"grc:{tmp_path / 'c'} + qir:{tmp_path / 'c'}" and cim.num_generations == 5
    with pytest.raises(ValueError, match="needs --corpus"):
        build(CaptionGRPOConfig, {**given, "preset": "cim"}, None, PRESETS)


def test_cim_trains(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """GRC + QIR on a small corpus, each logged apart, in mini-batches that share one sampling."""
    clip = {"text_encoder": "storybook-clip", "image_encoder": "storybook-clip"}
    build_corpus("storybook:train?n=8&seed=5", tmp_path / "corpus", **clip)
    found = run(config(
        tmp_path / "run", tiny_folder("idefics3"), reward="", preset="cim", corpus=tmp_path / "corpus", max_steps=2,
        steps_per_generation=2, watch="none",
    ))  # fmt: skip
    rows = [row for row in found.metrics() if "reward" in row]
    assert len(rows) == 1, "two steps, one sampling"
    parts = [rows[0][f"rewards/{name}:{tmp_path / 'corpus'}/mean"] for name in ("grc", "qir")]
    assert rows[0]["reward"] == pytest.approx(sum(parts), abs=1e-5)
    assert not (found.path / "watch.jsonl").exists()


def test_epochs_count_passes(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    found = run(config(tmp_path / "run", tiny_folder("idefics3"), epochs=2, watch="none"))
    assert max(row["step"] for row in found.metrics()) == 6, "two passes over six images, two a step"


@pytest.mark.parametrize("more", [{"max_steps": 50}, {"epochs": 2}])
def test_a_run_of_passes_is_not_extended(
    tiny_folder: Callable[[str], Path], tmp_path: Path, more: dict[str, Any]
) -> None:
    model = tiny_folder("idefics3")
    run(config(tmp_path / "run", model, epochs=1, watch="none"))
    with pytest.raises(RunError, match=f"a finished run with other settings .*{next(iter(more))}"):
        run(config(tmp_path / "run", model, **({"epochs": 1, "watch": "none"} | more)))


def test_a_batch_that_cannot_be_judged_does_not_silence_the_monitor(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "calls = []\n\n\ndef now_and_then(completions, **columns):\n    calls.append(1)\n"
        "    return [None if len(calls) % 2 else float(len(c)) for c in completions]\n"
    )
    reward = f"{tmp_path / 'mine.py'}:now_and_then"
    found = run(
        config(tmp_path / "run", tiny_folder("idefics3"), reward=reward, eval_steps=4, max_steps=4, watch="clip")
    )
    rows = [json.loads(line) for line in (found.path / "watch.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4] and rows[1]["reward"] is not None


def test_a_run_that_never_beats_its_start_says_so(
    tiny_folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(
        "calls = []\n\n\ndef falling(completions, **columns):\n    calls.append(1)\n"
        "    return [-float(len(calls))] * len(completions)\n"
    )
    run(config(tmp_path / "run", tiny_folder("idefics3"), max_steps=2, watch=f"{tmp_path / 'mine.py'}:falling"))
    assert "no step was better than the start" in caplog.text


def test_a_latent_mapper_of_another_prompt_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = tiny_folder("idefics3")
    captioner = Captioner.load(model, device="cpu")
    about = {"captioner_name": "m", "captioner_digest": captioner.base_digest(), "prompt": "Say it:"}
    Mapper(MapperConfig(width=4), captioner.core.config.text_config.hidden_size, 3, **about).save(tmp_path / "mapper")
    with pytest.raises(SettingError, match=r"fitted under the prompt 'Say it:', and the captioner is asked with"):
        run(config(tmp_path / "run", model, latent_mapper=tmp_path / "mapper"))


def test_a_preset_is_one_in_python_too(tmp_path: Path) -> None:
    more = {"preset": "cim", "corpus": tmp_path, "model": "m", "images": "i", "output": tmp_path}
    assert CaptionGRPOConfig(**more).num_generations == 5
    assert CaptionGRPOConfig(**more, num_generations=3).num_generations == 3


def test_what_is_rewarded_cannot_watch(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part of the reward"):
        run(config(tmp_path / "run", tiny_folder("idefics3"), reward="clip - 0.1*length", watch="clip"))
    with pytest.raises(ValueError, match="--eval-steps: 0 must be at least 1"):
        config(tmp_path / "other", tmp_path, eval_steps=0)
    assert PRESETS.keys() == {"captune", "cim"}


def test_what_a_reward_runs_on_is_missed_in_a_sentence(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("captune.scorers.text.health.Length.check", missing)
    flags = {"model": tiny_folder("idefics3"), "output": tmp_path / "run", "images": "storybook:train?n=16&seed=3"}
    command = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["grpo", *command, "--reward", "length", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "captune: Java is not installed" in said and "Traceback" not in said


def missing(scorer: Any) -> None:
    raise ScorerError("Java is not installed")


def test_c3_a_judge_that_stops_answering_ends_grpo_with_a_sentence(
    tmp_path: Path, tiny_folder, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "begun").touch()
    code = """
from pathlib import Path
from captune.errors import ScorerError
calls = []
def judged(completions, **columns):
    calls.append(len(completions))
    if len(calls) == 7 and Path(__file__).with_name("begun").exists():
        raise ScorerError("the judge at http://localhost:8000/v1 does not answer: start it again")
    return [float(len(text)) for text in completions]
"""
    (tmp_path / "judge.py").write_text(code)
    output = tmp_path / "run"
    flags = {
        "model": tiny_folder("idefics3"), "output": output, "images": "storybook:train?n=8&seed=3", "device": "cpu",
        "eval-images": "storybook:val?n=2", "max-steps": 6, "batch-size": 2, "num-generations": 2,
        "max-new-tokens": 4, "lora-r": 2, "eval-steps": 1, "early-stopping-patience": 0,
    }  # fmt: skip
    command = ["grpo", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
    assert main([*command, "--reward", f"{tmp_path}/judge.py:judged", "--accept-reward"]) == 1
    said = capsys.readouterr().err
    assert "http://localhost:8000/v1 does not answer" in said and "Traceback" not in said
    assert not (output / "finished.json").exists()
    kept = RunDir(output).checkpoints()[-1]  # of the steps before; the run resumes from it
    (tmp_path / "begun").unlink()
    assert main([*command, "--reward", f"{tmp_path}/judge.py:judged", "--accept-reward"]) == 0
    steps = [row["step"] for row in RunDir(output).metrics() if "loss" in row]
    assert kept.name == "checkpoint-2" and steps == [1, 2, 3, 4, 5, 6]
