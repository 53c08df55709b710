"""Run folders: what is written can be read back, is written in one step, and is not overwritten by accident."""

from __future__ import annotations

import importlib.machinery
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from captune.errors import RunError
from captune.runs import run_dir as runs
from captune.runs.card import model_card
from captune.runs.run_dir import RunDir
from captune.utils.versions import processor


@dataclass
class Config:
    model: str = "storybook"
    learning_rate: float = 1e-5
    output: Path = Path("runs/g")
    sizes: tuple[int, ...] = (1, 2)
    extra: dict[str, Any] = field(default_factory=dict)
    resume: bool = False


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "g").start(Config())


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))])
def test_a_folder_that_was_removed_since_is_made_and_locked_again(run: RunDir, gone: Any) -> None:
    gone(run.path)
    assert RunDir(run.path).start(Config()).config["model"] == "storybook"
    other = "import sys; from captune.utils.files import lock_folder; print(lock_folder(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", other, str(run.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def finish(run: RunDir) -> None:
    run.finish(run.card(method="ViZer", base="storybook", data="storybook:unlabelled"))


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 avx512f sse\n", "AMD EPYC avx512f"),
        ("model name : Other\nflags : fpu avx avx2\n", "Other avx2"),
        ("model name : Old\nflags : fpu\n", "Old"),
    ],
)
def test_the_processor_is_told_by_name_and_vectors(monkeypatch: pytest.MonkeyPatch, about: str, said: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: about)
    assert processor() == said


def test_config_and_versions_are_read_back(run: RunDir) -> None:
    expected = {
        "model": "storybook", "learning_rate": 1e-5, "output": "runs/g", "sizes": [1, 2], "extra": {}, "resume": False,
    }  # fmt: skip
    assert run.config == expected
    assert yaml.safe_load((run.path / "config.yaml").read_text())["learning_rate"] == 1e-5  # a number, not a text
    versions = run.versions
    assert versions["torch"] == torch.__version__
    assert versions["python"].startswith("3.")
    assert versions["captune"]
    assert versions["processor"] == processor() and processor().strip()
    assert versions["command"]


def test_metrics(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    run.log(step=1, loss=torch.tensor(0.5), rate=np.float32(0.25), note="warm-up")
    run.log(step=2, loss=float("nan"), counts=np.arange(2))
    assert run.metrics() == [
        {"step": 1, "loss": 0.5, "rate": 0.25, "note": "warm-up"},
        {"step": 2, "loss": None, "counts": [0, 1]},
    ]
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # killed while it wrote
    with caplog.at_level(logging.WARNING):
        run.log(step=2, loss=0.25)
    assert "cut off" in caplog.text
    run.log(step=3, loss=0.125)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    run.log(step=3.5, mapper_loss=0.75)
    run.rewind(step=2, keep="mapper_loss")
    assert [(row["step"], row.get("loss")) for row in run.metrics()] == [(1, 0.5), (2, 0.25), (3.5, None)]
    run.rewind(step=2)
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(1, 0.5), (2, 0.25)]


def test_a_run_with_other_settings_is_not_overwritten(run: RunDir) -> None:
    run.log(step=1, loss=1.0)
    finish(run)
    other = Config(learning_rate=2e-5)
    with pytest.raises(
        RunError, match="a finished run with other settings .learning_rate: 1e-05 then, 2e-05 now.*--overwrite"
    ):
        RunDir(run.path).start(other)
    assert run.finished
    assert run.metrics()
    RunDir(run.path).start(other, overwrite=True)
    assert not run.finished
    assert run.metrics() == []
    assert run.config["learning_rate"] == 2e-5


def test_the_same_settings_start_again_and_leave_other_files(run: RunDir) -> None:
    finish(run)
    (run.path / "checkpoint-20").mkdir()
    (run.path / "adapter").mkdir()
    run.captions("base").write_text("x")
    (run.path / "notes.txt").write_text("mine")
    RunDir(run.path).start(Config(output=Path("elsewhere"), resume=True))  # these two are no settings
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "notes.txt", "versions.json"]


def test_resume_keeps_everything_and_tells_what_differs(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    run.log(step=1, loss=1.0)
    (run.path / "checkpoint-9").mkdir()
    (run.path / "checkpoint-10").mkdir()
    (run.path / "checkpoint-best").mkdir()
    with caplog.at_level(logging.WARNING):
        again = RunDir(run.path).start(Config(learning_rate=2e-5), resume=True, may_change=["learning_rate"])
    assert "learning_rate: 1e-05 then, 2e-05 now" in caplog.text
    assert again.metrics() == [{"step": 1, "loss": 1.0}]
    assert [path.name for path in again.checkpoints()] == ["checkpoint-9", "checkpoint-10"]
    with pytest.raises(RunError, match="model"):
        RunDir(run.path).start(Config(model="other"), resume=True, may_change=["learning_rate"])
    assert again.metrics()


def test_a_folder_that_is_not_a_run_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(RunError, match=r"is not a run folder but holds README\.md"):
        RunDir(tmp_path).start(Config())
    assert (tmp_path / "README.md").read_text() == "my project"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunDir(tmp_path / "file").start(Config())


def test_looking_touches_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "nowhere")
    assert (run.finished, run.metrics(), run.scores(), run.checkpoints()) == (False, [], {"rows": []}, [])
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.yaml"):
        _ = run.config
    assert not run.path.exists()


def test_a_crash_while_writing_leaves_the_old_file(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.add_scores("base", {"cider": {"values": {"cider_d": 0.5}}})
    before = (run.path / "scores.json").read_text()

    def crash(*_: Any) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="power"):
            run.add_scores("g", {"cider": {"values": {"cider_d": 0.6}}})
    assert (run.path / "scores.json").read_text() == before


def test_scores(run: RunDir, tmp_path: Path) -> None:
    result = SimpleNamespace(
        values={"cider_d": np.float64(0.5)},
        interval={"cider_d": (0.4, 0.6)},
        signature="cider|v1",
        n=5,
        per_caption=[1],
    )
    captions = run.captions("base model/1")
    assert captions == run.path / "captions" / "base-model-1.jsonl"
    run.add_scores("base", {"cider": result}, source="storybook:test", captions=captions, images_per_second=12.5)
    run.add_scores(
        "g", {"cider": {"values": {"cider_d": float("nan")}}}, role="zero", bad_images=[("a.jpg", "is empty")]
    )
    run.add_scores("base", {"cider": result}, source="storybook:ood", captions=tmp_path / "x.jsonl")
    scores = json.loads((run.path / "scores.json").read_text())
    assert scores["source"] == "storybook:test"
    assert scores["bad_images"] == [{"item": "a.jpg", "why": "is empty"}]
    base, g = scores["rows"]
    assert base == {
        "name": "base",
        "scores": {
            "cider": {"values": {"cider_d": 0.5}, "interval": {"cider_d": [0.4, 0.6]}, "signature": "cider|v1", "n": 5}
        },
        "captions": str(tmp_path / "x.jsonl"),
        "source": "storybook:ood",
    }
    assert g == {"name": "g", "scores": {"cider": {"values": {"cider_d": None}}}, "role": "zero"}
    with pytest.raises(RunError, match="needs values"):
        run.add_scores("x", {"cider": {"value": 3}})


def test_model_card(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.add_scores("base", {"cider": {"values": {"cider_d": 0.25}}}, source="storybook:test")
    run.add_scores("g", {"cider": {"values": {"cider_d": 0.5}}, "health": {"values": {"words": 9}}})
    card = run.card(method="ViZer, latent", base="org/base-model", data="./photos", command="captune vizer --seed 7")
    run.finish(card)
    text = (run.path / "README.md").read_text()
    assert f"--model org/base-model --adapter {run.adapter} " in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "org/base-model"
    assert head["library_name"] == "peft"
    table = "| | base | g |\n|---|---|---|\n| cider_d | 0.250 | 0.500 |\n| words | – | 9.000 |"
    for part in ("# g\n", "ViZer, latent", "`./photos`", table, "Licence"):
        assert part in text
    assert "captune vizer --seed 7" in text
    (model,) = head["model-index"]
    assert model["name"] == "g"
    assert [(r["dataset"]["name"], [(m["type"], m["value"]) for m in r["metrics"]]) for r in model["results"]] == [
        ("storybook:test", [("cider_d", 0.5), ("words", 9)])
    ]
    assert "base_model" not in run.card(method="m", base="storybook", data="d")
    (tmp_path / "org/base-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # where the same name is a folder's
    assert "base_model" not in run.card(method="m", base="org/base-model", data="d").split("---")[1]
    assert "rewarded" not in text and "`storybook:test`.\n" in text


def test_the_card_says_what_was_rewarded_and_on_how_many_images(run: RunDir) -> None:
    judged = {"cider": {"values": {"cider": 0.5}, "n": 100}, "clip": {"values": {"clip": 0.3}, "n": 98}}
    run.add_scores("base", judged, source="photos")
    run.add_scores("g", judged, rewarded=["cider"])
    card = run.card(method="SCST", base="b", data="d")
    assert "| cider (rewarded) | 0.500 | 0.500 |" in card and "| clip | 0.300" in card
    metrics = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    assert [metric["type"] for metric in metrics] == ["clip"]
    assert "`photos`, 98 to 100 images." in card and "no evidence of better captions" in card


def test_a_run_resumed_by_another_number_of_processes_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = RunDir(tmp_path / "g").start(Config())
    assert begun.versions["processes"] == 1
    (begun.path / "versions.json").write_text(json.dumps(begun.versions | {"processes": 2}))
    again = RunDir(tmp_path / "g").start(Config(), resume=True)
    assert "begun with processes 2, and is resumed with processes 1" in caplog.text
    assert again.versions["processes"] == 1 and "processes 2" in again.versions["earlier"]


def test_two_runs_leave_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for place in ("a", "b"):
        run = RunDir(tmp_path / place / "g").start(Config(), command="captune vizer")
        run.log(step=1, loss=0.5)
        run.add_scores("g", {"cider": {"values": {"cider_d": 0.5}}}, captions=run.captions("g"))
        finish(run)
        contents.append({path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()})
        card = contents[-1].pop("README.md").decode()
        contents[-1]["card"] = card.replace(str(run.adapter), "ADAPTER").encode()  # which it says how to load
        assert card.count(str(run.adapter)) == 1
    assert contents[0] == contents[1]


def test_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/bin/captune", "vizer", "--images", "storybook:test?n=5&seed=1"])
    assert runs.command_line() == "captune vizer --images 'storybook:test?n=5&seed=1'"
    monkeypatch.setattr("sys.argv", ["/x/captune/__main__.py", "doctor"])
    for name in ("captune", "studies"):
        module = SimpleNamespace(__spec__=importlib.machinery.ModuleSpec(f"{name}.__main__", None))
        monkeypatch.setitem(sys.modules, "__main__", module)
        assert runs.command_line() == f"python -m {name} doctor"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_commit_is_of_captunes_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.utils import versions

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    module = tmp_path / "versions.py"
    monkeypatch.setattr(versions, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert versions.git_commit() is None  # no repository
    git("init", "-q")
    module.write_text("x = 1\n")
    assert versions.git_commit() is None  # somebody else's repository, which does not track captune
    git("add", "versions.py")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert versions.git_commit() == commit
    module.write_text("x = 2\n")
    assert versions.git_commit() == f"{commit}+changes"


@pytest.mark.parametrize("evil", ["x\n# Hacked", "x\n```\nrm -rf ~\n```", "`x` | [y](z) <b>", "x\r\n---\nlicense: mit"])
def test_c2_no_name_breaks_out_of_the_model_card(evil: str) -> None:
    card = model_card(
        name=evil, adapter=evil, method=evil, base=evil, data=evil, command=f"captune {evil}", versions={},
        source=evil, trained=evil, figures={evil: {evil: 0.5}}, description=evil,
    )  # fmt: skip
    whole = model_card(
        name="n", adapter="n", method="n", base="n", data="n", command="n", versions={}, source="n", trained="n",
        figures={"n": {"n": 0.5}}, description="n",
    )  # fmt: skip

    def outside(text: str) -> str:  # of metadata, fences and code spans
        text = text.split("\n---\n", 1)[1]
        text = re.sub(r"^(```+)\n.*?^\1$", "", text, flags=re.M | re.S)
        return re.sub(r"(`+)[^\n]*?\1", "", text.replace("\\`", ""))

    headings = [re.findall("^#+ .*", outside(text), re.M)[1:] for text in (card, whole)]
    assert headings[0] == headings[1]
    assert "license" not in yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert card.count("\n|") == whole.count("\n|") and not re.search(r"(?<!\\)<b>", outside(card))


def test_a_long_name_is_cut_and_stays_its_own(run: RunDir) -> None:
    reward = "clip:/" + "a/very/long/path/" * 30
    files = [run.captions(f"GRPO: {reward}{end}") for end in ("x", "y", "\u00fc" * 300)]
    assert len(set(files)) == 3 and run.captions(f"GRPO: {reward}x") == files[0]
    for file in files:
        file.with_name(f".{file.name}.settings.json.{2**22}.tmp").write_text("fits")
    assert run.captions("base").name == "base.jsonl"
