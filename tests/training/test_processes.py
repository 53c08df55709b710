"""Several processes: two of them (gloo) learn what one learns from the same batch, and write what one writes.

All two-process runs are made by one launch of torchrun, in which each process is busy with one command after another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from captune.cli.main import COMMANDS, main
from captune.errors import SettingError
from captune.runs.run_dir import RunDir
from captune.training.sharing import share
from captune.training.trainer import refuse_sharding
from captune.utils import processes

ROOT = Path(__file__).parents[2]
WORKER = """
import json, sys
import torchvision_shim
torchvision_shim.install()
from captune.cli.main import COMMANDS, main
from captune.training import trainer
for command, cut in json.load(open(sys.argv[1])):
    class Cut(trainer.MetricsCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == cut:
                raise RuntimeError("cut")
    whole, trainer.MetricsCallback = trainer.MetricsCallback, Cut
    code = main(command)
    trainer.MetricsCallback = whole
    assert code == bool(cut), (code, command)
"""
# Nine images in batches of four: the last batch of a pass has one image, so that one of two processes has none.
COMMON = {
    "device": "cpu", "images": "storybook:train?n=9", "eval-images": "storybook:val?n=4", "max-steps": 4,
    "learning-rate": 1e-3, "warmup-steps": 0, "lora-r": 4, "lora-alpha": 8, "lora-dropout": 0.0, "save-steps": 2,
}  # fmt: skip
SAMPLED = {"num-generations": 3, "max-new-tokens": 6, "beta": 0.1}
MAPPER = {"mapper-epochs": 1, "mapper-samples": 2, "width": 8, "whitened": 0, "max-new-tokens": 6, "beta": 0.1}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"image-dropout": 0.3, "gradient-accumulation-steps": 2}),
    "sft by length": ("sft", {"group-by-length": True}),
    "scst": ("scst", {**SAMPLED, "reward": "length", "accept-reward": True}),
    "sc-captioner": ("sc-captioner", SAMPLED),
    "grpo": ("grpo", {**SAMPLED, "reward": "length", "accept-reward": True, "eval-steps": 2}),
    "vizer latent": ("vizer", {**MAPPER, "objective": "latent"}),
    "vizer straight_through": ("vizer", {**MAPPER, "objective": "straight_through"}),
    "vizer reward": (
        "vizer",
        {**MAPPER, "objective": "reward", "rounds": 2, "num-generations": 2, "max-steps": 2, "accept-reward": True},
    ),
    "har": (
        "har",
        {"image-encoder": "storybook-clip", "language-model": "storybook-lm", "num-prefix-tokens": 2, "mle-steps": 3,
         "scst-steps": 3, "num-generations": 3, "max-new-tokens": 6},
    ),
    "grpo reused": (
        "grpo",
        {**SAMPLED, "reward": "length", "accept-reward": True, "eval-steps": 3, "num-iterations": 2},
    ),
}  # fmt: skip
STAGES = ("model", "batch-size", "max-steps", "learning-rate", "warmup-steps")  # which har sets for each stage
CUT = {"sft": 3, "scst": 3, "grpo reused": 4, "vizer latent": 3}  # the step at which a run dies, one after a checkpoint


def command(name: str, model: Path, output: Path, processes: int) -> list[str]:
    """The command of a run whose batch over all processes is four images."""
    verb, more = RUNS[name]
    batch = 4 // processes
    settings = {**COMMON, "model": model, "output": output / name, "batch-size": batch, **more}
    if verb == "har":
        settings = {"mle-batch-size": batch, "scst-batch-size": batch} | settings
        settings = {flag: value for flag, value in settings.items() if flag not in STAGES}
    words = [verb]
    for flag, value in settings.items():
        words += [f"--{flag}", *([] if value is True else [str(value)])]
    return words


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DDP = str(ROOT / "recipes" / "processes" / "ddp.yaml")
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file", DDP, "--num_processes", "2",
              "--main_process_port", "0"]  # fmt: skip


def launch(
    commands: list[list[str]], folder: Path, launcher: list[str] = TORCHRUN, cut: dict[int, int] | None = None
) -> str:
    """Run commands in two processes.

    Args:
        commands: of captune.
        folder: the working directory.
        launcher: what starts the processes.
        cut: {place of a command: the step at which its training dies}.

    Returns:
        What was said.
    """
    (folder / "worker.py").write_text(WORKER)
    listed = [[command, (cut or {}).get(place, 0)] for place, command in enumerate(commands)]
    (folder / "commands.json").write_text(json.dumps(listed))
    paths = [str(ROOT / "src"), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(folder / "worker.py"), str(folder / "commands.json")],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-14000:]
    return done.stderr + done.stdout


@pytest.fixture(scope="module")
def two(tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs of two processes."""
    folder = tmp_path_factory.mktemp("two")
    whole = [command(name, tiny_folder("idefics3"), folder, 2) for name in RUNS]
    parts = [command(name, tiny_folder("idefics3"), folder / "cut", 2) for name in CUT]
    source, captions = "storybook:val?n=5", str(folder / "captions.jsonl")
    more = [
        ["caption", "--model", "storybook", "--images", source, "--output", captions, "--device", "cpu"],
        ["evaluate", captions, "--images", source, "--references", source, "--scorers", "cider,health"],
    ]
    cut = {len(whole) + place: step for place, step in enumerate(CUT.values())}
    said = launch([*whole, *parts, *more], folder, cut=cut)
    assert said.count("done: ") == len(RUNS)  # the first process speaks
    (folder / "said").write_text(said)
    return folder


@pytest.fixture(scope="module")
def resumed(two: Path, tiny_folder: Any) -> Path:
    """The folder with the runs that were cut, resumed by `accelerate launch`."""
    for name in CUT:
        assert RunDir(two / "cut" / name).steps_done(0) == CUT[name] - 1
    said = launch([command(name, tiny_folder("idefics3"), two / "cut", 2) for name in CUT], two, ACCELERATE)
    assert said.count("is resumed after step") == said.count("done: ") == len(CUT)
    return two / "cut"


@pytest.mark.parametrize("name", CUT)
def test_a9_two_processes_resume_to_the_same_bytes(name: str, two: Path, resumed: Path) -> None:
    """Each process from what it held itself: random numbers, rollouts, sums between log entries."""
    ours, whole = RunDir(resumed / name), RunDir(two / name)
    file = Path("adapter") / "adapter_model.safetensors"
    assert (ours.path / file).read_bytes() == (whole.path / file).read_bytes()
    losses = [[(row["step"], row.get("loss"), row.get("reward")) for row in run.metrics()] for run in (ours, whole)]
    assert losses[0] == losses[1]
    for row in whole.scores()["rows"]:
        assert ours.captions(row["name"]).read_bytes() == whole.captions(row["name"]).read_bytes()


def test_a9_captions_and_figures_are_made_once(two: Path, tmp_path: Path) -> None:
    """By the first process, under torchrun too."""
    lines = [json.loads(line) for line in (two / "captions.jsonl").read_text().splitlines()]
    ids = [line["image_id"] for line in lines]
    assert len(set(ids)) == len(ids) == 5 and all(line["caption"] for line in lines)
    assert not list(two.glob(".captions*.tmp"))
    assert (two / "said").read_text().lower().count("cider-d") == 1


@pytest.mark.parametrize("name", RUNS)
def test_a9_two_processes_learn_what_one_learns(name: str, two: Path, tiny_folder: Any, tmp_path: Path) -> None:
    """Weights within 3e-5, scores and captions equal, every file written once.

    Adam magnifies the last bits of small gradients, by processor: vizer's straight_through differs by 1.5e-5 on one.
    """
    assert main(command(name, tiny_folder("idefics3"), tmp_path, 1)) == 0
    ours, theirs = RunDir(two / name), RunDir(tmp_path / name)
    weights = load_file(theirs.adapter / "adapter_model.safetensors")
    found = load_file(ours.adapter / "adapter_model.safetensors")
    assert weights.keys() == found.keys()
    whole, other = (torch.cat([part[key].flatten() for key in weights]) for part in (weights, found))
    assert float((whole - other).norm() / whole.norm()) <= 3e-5
    names = [row["name"] for row in theirs.scores()["rows"]]
    assert [row["name"] for row in ours.scores()["rows"]] == names
    texts = [
        {str(p.relative_to(r.path)): p.read_bytes() for p in r.path.glob("**/captions/*.jsonl")} for r in (ours, theirs)
    ]
    assert texts[0] == texts[1] and texts[0]  # HAR's are in the folders of its stages
    scores = [{k: v["values"] for k, v in row["scores"].items()} for row in ours.scores()["rows"]]
    for mine, row in zip(scores, theirs.scores()["rows"], strict=True):
        for scorer, values in mine.items():
            assert values == pytest.approx(row["scores"][scorer]["values"], abs=1e-6)
    steps = [[row["step"] for row in run.metrics() if "loss" in row] for run in (ours, theirs)]
    assert steps[0] == steps[1]
    losses = [[row["loss"] for row in run.metrics() if "loss" in row] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert ours.finished and (ours.path / "report.html").is_file()


def test_a9_shares_hold_every_image_once() -> None:
    for images in range(12):
        for number in range(1, 6):
            parts = [list(share(range(images), rank, number)) for rank in range(number)]
            assert [image for part in parts for image in part] == list(range(images))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1 and len(parts[0]) == max(map(len, parts))


def test_a9_what_is_not_shared_waits_for_no_other_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A verb that trains in between, such as `captune demo`, would wait for processes that have ended."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    seen: list[int] = []
    doctor = COMMANDS["doctor"]._replace(run=lambda args: seen.append(processes.number()) or 0)
    monkeypatch.setitem(COMMANDS, "doctor", doctor)
    assert main(["doctor"]) == 0 and seen == [1] and processes.number() == 2
    monkeypatch.setenv("RANK", "1")
    assert main(["doctor"]) == 0 and seen == [1]


def test_a9_multinomial_draws_an_exponential_distribution() -> None:
    """What `SharedNoise` repeats for the rows of several processes."""
    probabilities = torch.rand(5, 300).softmax(-1)
    torch.manual_seed(3)
    expected = torch.multinomial(probabilities, 1)[:, 0]
    torch.manual_seed(3)
    assert torch.equal((probabilities / torch.empty(5, 300).exponential_(1)).argmax(-1), expected)


# -- configurations of accelerate

RECIPES = ROOT / "recipes" / "processes"


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed-zero2"])
def test_a9_configurations_are_what_accelerate_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as accelerate's plugin: there is no GPU to run them."""
    found = load_config_from_file(str(RECIPES / f"{name}.yaml"))
    assert found.num_processes == 8
    if name == "fsdp":
        for key, value in found.fsdp_config.items():
            monkeypatch.setenv(key.upper(), str(value).lower() if isinstance(value, bool) else str(value))
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    if name == "deepspeed-zero2":
        settings = {key: value for key, value in found.deepspeed_config.items() if value != "auto"}
        assert DeepSpeedPlugin(**settings).deepspeed_config["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(("stage", "fsdp"), [(3, False), (2, False), (0, True)])
def test_a9_sharded_weights_are_refused(stage: int, fsdp: bool) -> None:
    """The first process evaluates and saves whole weights; ZeRO 2 keeps them whole, where trl averages gradients."""
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    trainer: Any = SimpleNamespace(
        is_fsdp_enabled=fsdp, is_deepspeed_enabled=stage > 0, accelerator=SimpleNamespace(state=state)
    )
    with pytest.raises(SettingError, match="shards what this method reads whole"):
        refuse_sharding(trainer)
    if stage == 2:
        refuse_sharding(trainer, zero2=True)
