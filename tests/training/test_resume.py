"""Nothing finished is lost: kills, cut files, full disks, signals, two writers; the steps really done are counted."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.trainer_callback import DefaultFlowCallback

from captune.errors import CaptuneError, RunError
from captune.runs import run_dir as runs
from captune.runs.checkpoints import newest
from captune.runs.run_dir import RunDir
from captune.training import trainer as training
from captune.training.grpo.train import CaptionGRPOConfig
from captune.training.grpo.train import run as run_grpo
from captune.training.scst.config import SCSTConfig
from captune.training.scst.train import run as run_scst
from captune.training.sft.train import SFTConfig, run
from captune.utils.files import remove_leftovers
from captune.utils.memory import remembers

pytestmark = pytest.mark.usefixtures("no_report")


class Cut(RuntimeError):
    """What stops a run in the middle."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimiser steps that are really done, by number."""
    seen: list[int] = []
    done = DefaultFlowCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        seen.append(state.global_step)
        return done(self, args, state, control, **kwargs)

    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", on_step_end)
    return seen


@pytest.fixture
def config(tiny_folder: Any, source: str, tmp_path: Path) -> Any:
    """`config("name")`: six steps of supervised fine-tuning with a checkpoint after every second."""

    def make(name: str, **settings: Any) -> SFTConfig:
        small: dict[str, Any] = {"max_steps": 6, "batch_size": 2, "lora_r": 2, "lora_alpha": 4, "warmup_steps": 0}
        small |= {"save_steps": 2, "model": str(tiny_folder("idefics3")), "images": source, "eval_images": source}
        return SFTConfig(output=tmp_path / name, device="cpu", **(small | settings))

    return make


def cut(settings: Any, step: int, monkeypatch: pytest.MonkeyPatch, run: Any = run) -> RunDir:
    """A run that dies at the end of a step."""

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            run(settings)
    return RunDir(settings.output)


def weights(run_dir: RunDir) -> bytes:
    return (run_dir.adapter / "adapter_model.safetensors").read_bytes()


def losses(run_dir: RunDir) -> list[Any]:
    return [(row["step"], row.get("loss"), row.get("train_loss")) for row in run_dir.metrics()]


def test_a_run_is_not_resumed_on_other_images(config: Any, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = run(config("whole")), cut(config("run"), 5, monkeypatch)
    file = Path(source)
    text = file.read_text()
    file.write_text(text.replace("ball", "kite", 1))
    assert file.read_text() != text
    with pytest.raises(RunError, match="checkpoint-4 was trained with other images, references or columns"):
        run(config("run"))
    file.write_text(text)
    assert (
        weights(run(config("run"))) == weights(whole) and not broken.path.joinpath("incomplete-checkpoint-4").exists()
    )


def test_a_run_is_not_resumed_on_other_pixels(config: Any, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(config("run"), 5, monkeypatch)
    file = next(path for path in sorted(Path(source).parent.rglob("*")) if path.suffix in (".png", ".jpg"))
    Image.new("RGB", (33, 47), "red").save(file)
    with pytest.raises(RunError, match="checkpoint-4 was trained with other images, references or columns"):
        run(config("run"))


def test_a_run_is_not_resumed_on_another_base(
    config: Any, tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_folder("idefics3"), tmp_path / "base")
    cut(config("run", model=str(base)), 5, monkeypatch)
    weights = load_file(base / "model.safetensors")
    save_file({name: value * 1.05 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="checkpoint-4 was trained with other weights of the base"):
        run(config("run", model=str(base)))


def test_a_run_is_not_resumed_on_other_texts(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("image,caption\nx.jpg,a red ball\ny.jpg,a blue cube\n")
    cut(config("run", texts=str(texts), text_steps=2), 5, monkeypatch)
    texts.write_text("image,caption\nx.jpg,a red ball\ny.jpg,a green cube\n")
    with pytest.raises(RunError, match="checkpoint-4 was trained with other texts"):
        run(config("run", texts=str(texts), text_steps=2))


@pytest.mark.parametrize("method", ["scst", "grpo"])
def test_a_run_is_not_resumed_on_another_reward(
    method: str, tiny_folder: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, kind = {"scst": (run_scst, SCSTConfig), "grpo": (run_grpo, CaptionGRPOConfig)}[method]
    reward = tmp_path / "reward.py"
    code = "def mine(completions, **columns):\n    return [{}float(len(text)) for text in completions]\n"
    reward.write_text(code.format(""))
    settings: dict[str, Any] = {"max_steps": 6, "batch_size": 2, "lora_r": 2, "lora_alpha": 4, "save_steps": 2}
    settings |= {"num_generations": 2, "max_new_tokens": 4, "accept_reward": True, "reward": f"{reward}:mine"}
    settings |= {"model": str(tiny_folder("idefics3")), "images": source, "device": "cpu", "gate_images": 2}
    config = kind(output=tmp_path / "run", **settings)
    cut(config, 5, monkeypatch, train)
    reward.write_text(code.format("-"))
    with pytest.raises(RunError, match="checkpoint-4 was trained with other rewards"):
        train(config)
    reward.write_text(code.format(""))
    assert train(config).finished


def test_a_run_that_resumes_keeps_the_versions_that_it_began_with(
    config: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = cut(config("run"), 3, monkeypatch)
    recorded = broken.versions
    assert "earlier" not in recorded
    for number, torch_then in enumerate(("2.0.0", "2.1.0")):
        (broken.path / "versions.json").write_text(json.dumps(broken.versions | {"torch": torch_then}))
        last = cut(config("run"), 5, monkeypatch) if not number else run(config("run"))
        assert f"was begun with torch {torch_then}, and is resumed with torch {recorded['torch']}" in caplog.text
    assert last.versions == recorded | {"earlier": "torch 2.0.0; torch 2.1.0"}


# -- A1: complete or ignored


@pytest.mark.parametrize(
    "damage",
    ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
     "0-accumulated.json", "complete.json"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a1_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    config: Any, steps: list[int], monkeypatch: pytest.MonkeyPatch, caplog: Any, damage: str, how: str
) -> None:
    whole = run(config("whole"))
    broken = cut(config("run"), 5, monkeypatch)
    file = broken.path / "checkpoint-4" / damage
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    steps.clear()
    resumed = run(config("run"))
    assert steps == [3, 4, 5, 6]
    assert f"checkpoint-4 is incomplete and set aside as incomplete-checkpoint-4: {damage}" in caplog.text.replace(
        "it has no valid ", ""
    )
    assert weights(resumed) == weights(whole) and losses(resumed) == losses(whole)


def test_a1_a_checkpoint_of_an_earlier_version_is_taken(
    config: Any, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no marker; nor has the run's versions.json a format, and its settings have their former names."""
    whole = run(config("whole", train_all_weights=False))
    old = cut(config("run"), 5, monkeypatch)
    for checkpoint in old.checkpoints():
        (checkpoint / "complete.json").unlink()
    recorded = {name: value for name, value in old.versions.items() if name != "format"}
    (old.path / "versions.json").write_text(json.dumps(recorded))
    settings = old.config
    settings["evaluation"] = settings.pop("eval_images")
    settings["full"] = settings.pop("train_all_weights")
    del settings["group_by_length"]  # younger than the run
    (old.path / "config.yaml").write_text(yaml.safe_dump(settings))
    steps.clear()
    resumed = run(config("run"))
    assert steps == [5, 6] and weights(resumed) == weights(whole)
    assert resumed.config["eval_images"] == whole.config["eval_images"] and "evaluation" not in resumed.config


def test_a1_reused_rollouts_are_part_of_a_checkpoint(
    tiny_folder: Any, source: str, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(name: str) -> CaptionGRPOConfig:
        small = {"max_steps": 6, "batch_size": 1, "num_generations": 2, "max_new_tokens": 3, "lora_r": 2}
        small |= {
            "reward": "length",
            "accept_reward": True,
            "eval_steps": 3,
            "num_iterations": 2,
            "steps_per_generation": 2,
        }
        small |= {"watch": "none", "save_steps": 3, "warmup_steps": 0, "eval_images": source}
        model = str(tiny_folder("idefics3"))
        return CaptionGRPOConfig(model=model, images=source, output=tmp_path / name, device="cpu", **small)

    monkeypatch.setattr("captune.training.grpo.train.finish_run", lambda config, run_dir, *args, **_: run_dir)
    broken = cut(settings("run"), 5, monkeypatch, run_grpo)
    (broken.path / "checkpoint-3" / "0-rollouts.json").unlink()
    steps.clear()
    run_grpo(settings("run"))
    assert steps == [1, 2, 3, 4, 5, 6]


# -- A2, A3, A4: just the steps that are left


def test_a2_a_kill_after_the_last_step_trains_no_more(
    config: Any, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config("whole"))

    def die(*args: Any, **kwargs: Any) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("captune.training.sft.train.finish_run", die)
        with pytest.raises(Cut):
            run(config("run"))
    steps.clear()
    resumed = run(config("run"))
    assert steps == [] and weights(resumed) == weights(whole) and losses(resumed) == losses(whole)


def test_a3_grpo_resumes_and_its_readme_says_nothing(
    tiny_folder: Any, source: str, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"max_steps": 4, "batch_size": 2, "num_generations": 2, "max_new_tokens": 3, "lora_r": 2}
    small |= {"reward": "length", "eval_steps": 1, "watch": "none", "save_steps": 1, "eval_images": source}
    small |= {"accept_reward": True}
    settings = CaptionGRPOConfig(
        model=str(tiny_folder("idefics3")), images=source, output=tmp_path / "run", device="cpu", **small
    )
    broken = cut(settings, 3, monkeypatch, run_grpo)
    assert not (broken.path / "README.md").exists() and not broken.finished
    (broken.path / "README.md").write_text("# Model Card for run\n\ntrained with TRL")  # an earlier version let it be
    assert not broken.finished
    steps.clear()
    monkeypatch.setattr("captune.training.grpo.train.finish_run", lambda config, run_dir, *args, **_: run_dir)
    run_grpo(settings)
    assert steps == [3, 4]


def test_a_run_that_resumes_has_no_more_patience_than_one_that_was_not_cut(
    tiny_folder: Any, source: str, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"max_steps": 9, "batch_size": 2, "num_generations": 2, "max_new_tokens": 3, "lora_r": 2}
    small |= {"reward": "length", "eval_steps": 1, "watch": "repetition", "save_steps": 1, "eval_images": source}
    small |= {"accept_reward": True, "early_stopping_patience": 3, "learning_rate": 1e-12}  # nothing gets better
    monkeypatch.setattr("captune.training.grpo.train.finish_run", lambda config, run_dir, *args, **_: run_dir)
    model = str(tiny_folder("idefics3"))
    whole, broken = (
        CaptionGRPOConfig(model=model, images=source, output=tmp_path / name, device="cpu", **small) for name in "ab"
    )
    run_grpo(whole)
    uncut, steps[:] = list(steps), []
    assert 2 < len(uncut) < 9
    cut(broken, 3, monkeypatch, run_grpo)
    steps.clear()
    run_grpo(broken)
    assert steps[-1] == uncut[-1]


def test_a4_a_finished_run_says_so_and_is_extended_by_more_steps(config: Any, steps: list[int], caplog: Any) -> None:
    first = run(config("run"))
    (first.path / "report.html").write_text("kept")
    before, steps[:] = weights(first), []
    again = run(config("run"))
    assert steps == [] and weights(again) == before and again.finished
    assert "already finished: a larger --max-steps extends it" in caplog.text
    longer = run(config("run", max_steps=8))
    assert steps == [7, 8] and weights(longer) != before and longer.finished
    steps.clear()
    with pytest.raises(RunError, match="max_steps: 8 then, 6 now"):
        run(config("run"))
    for checkpoint in longer.checkpoints():
        (checkpoint / "complete.json").unlink()
    with pytest.raises(RunError, match=r"no complete checkpoint to be extended from.*--adapter"):
        run(config("run", max_steps=9))
    assert longer.finished and steps == []


# -- A5: settings are written when the checks have passed


def test_a5_a_refused_start_leaves_nothing_that_blocks_the_right_one(
    config: Any, source: str, tmp_path: Path, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"max_steps": 1, "batch_size": 2, "num_generations": 2, "max_new_tokens": 3, "eval_images": source}
    small |= {"model": str(tiny_folder("idefics3")), "images": source, "output": tmp_path / "run", "device": "cpu"}
    with pytest.raises(CaptuneError):
        run_grpo(CaptionGRPOConfig(reward="judge:http://127.0.0.1:9", watch="none", **small))
    assert [path.name for path in (tmp_path / "run").iterdir()] == []
    monkeypatch.setattr("captune.training.grpo.train.finish_run", lambda config, run_dir, *args, **_: run_dir)
    assert run_grpo(CaptionGRPOConfig(reward="length", accept_reward=True, watch="none", **small)).metrics()


def test_a5_settings_alone_can_be_replaced(tmp_path: Path) -> None:
    RunDir(tmp_path).start({"rate": 1})
    assert RunDir(tmp_path).start({"rate": 2}).config == {"rate": 2}
    RunDir(tmp_path).log(step=1, loss=1.0)
    with pytest.raises(RunError, match="rate: 2 then, 3 now"):
        RunDir(tmp_path).start({"rate": 3})


def test_a5_a_kill_while_a_run_starts_leaves_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever file it dies, the same command starts, and so does another one while nothing is done."""
    write = runs.replace_file
    for dies_at in range(4):
        folder = tmp_path / str(dies_at)
        RunDir(folder).start({"rate": 1}).log(step=1, loss=1.0)
        count = iter(range(10))

        def dying(path: Path, text: str, count: Iterator[int] = count, last: int = dies_at) -> None:
            if next(count) == last:
                raise Cut
            write(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(runs, "replace_file", dying)
            with pytest.raises(Cut) if dies_at < 3 else pytest.MonkeyPatch.context():
                RunDir(folder).start({"rate": 2}, overwrite=True)
        again = RunDir(folder).start({"rate": 2}, resume=dies_at > 0, overwrite=dies_at == 0)
        assert again.config == {"rate": 2} and again.metrics() == [] and again.versions


def test_a5_overwrite_replaces_only_a_run(tmp_path: Path) -> None:
    (tmp_path / "captions").mkdir()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(RunError, match=r"not a run folder but holds captions, README\.md"):
        RunDir(tmp_path).start({"rate": 1}, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "mine" and (tmp_path / "captions").is_dir()


# -- A6: one writer


def test_a6_one_process_writes_a_run_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = "from captune.runs.run_dir import RunDir; import sys, os; RunDir(sys.argv[1]).start({}); "
    wait = "print('ready', flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code + wait, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with pytest.raises(RunError, match="is being written by another process"):
            RunDir(tmp_path / "run").start({})
        other.kill()
    RunDir(tmp_path / "run").start({})
    RunDir(tmp_path / "run").start({})  # this process has it


# -- A7: a full disk


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError(
    "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")])  # fmt: skip
def test_a7_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(
    config: Any, steps: list[int], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole = run(config("whole"))
    save, count = torch.save, iter(range(99))

    def full(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(file) and next(count) == 1:
            Path(file).write_bytes(b"PK")
            raise error
        save(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"checkpoint-4 could not be saved: .*MB are free.* resumes from checkpoint-2"):
        run(config("run"))
    assert [path.name for path in RunDir(config("run").output).checkpoints()] == ["checkpoint-2"]
    steps.clear()
    resumed = run(config("run"))
    assert steps == [3, 4, 5, 6] and weights(resumed) == weights(whole) and losses(resumed) == losses(whole)


# -- A8: metrics, left-over files, SIGTERM


def test_a8_metrics_are_those_of_an_uncut_run(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut before the first checkpoint, and between two log entries (every second step) at odd checkpoints."""
    more = {"max_steps": 40, "save_steps": 15}
    whole = run(config("whole", **more))
    for step in (3, 16, 31):
        cut(config("run", **more), step, monkeypatch)
    (RunDir(config("run").output).path / ".config.yaml.77.tmp").write_text("torn")
    resumed = run(config("run", **more))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 21
    assert not list(resumed.path.rglob("*.tmp"))


def test_a8_a_finished_run_keeps_no_half_written_report(config: Any) -> None:
    done = run(config("run"))
    (done.path / "report.html").unlink(missing_ok=True)
    (done.path / ".report.html.77.tmp").write_text("<html")
    assert run(config("run")).done
    assert not list(done.path.rglob("*.tmp"))


def test_a8_what_a_kill_left_in_a_rounds_checkpoint_goes(tmp_path: Path) -> None:
    (tmp_path / "round-2" / "checkpoint-2").mkdir(parents=True)
    torn = tmp_path / "round-2" / "checkpoint-2" / ".complete.json.77.tmp"
    torn.write_text("{")
    mine = tmp_path / "round-2" / "notes.tmp"
    mine.write_text("mine")
    remove_leftovers(tmp_path)
    assert not torn.exists() and mine.exists()


def test_a8_what_was_remembered_before_a_checkpoint_changes_nothing_after_it(
    config: Any, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What scorers and encoders remember decides what they encode together, and so the last bits of a reward."""
    at: list[int] = []

    class Memory:
        def clear(self) -> None:
            at.append(len(steps))

    memory = Memory()
    remembers(memory)
    run(config("run"))
    assert at == [0, 2, 4, 6]  # when training begins, and at every checkpoint


def test_a8_sigterm_saves_and_ends_with_143(
    config: Any, steps: list[int], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    whole = run(config("whole"))

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(SystemExit) as end:
            run(config("run"))
    assert end.value.code == 143 and "stopped by SIGTERM: step 3 is saved" in caplog.text
    last = newest(config("run").output)
    assert last is not None and last.name == "checkpoint-3"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    steps.clear()
    resumed = run(config("run"))
    assert steps == [4, 5, 6] and weights(resumed) == weights(whole) and losses(resumed) == losses(whole)


def test_every_setting_that_was_renamed_has_its_former_name() -> None:
    from captune.training.lifecycle import former_settings

    for field in dataclasses.fields(CaptionGRPOConfig):
        for alias in field.metadata.get("aliases", ()):
            assert former_settings(CaptionGRPOConfig, {alias: 1})[field.name] == 1
