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

from captune.cli.main import main
from captune.errors import SettingError
from captune.runs.run_dir import RunDir
from captune.training.sharing import share
from captune.training.trainer import refuse_sharding

ROOT = Path(__file__).parents[2]
WORKER = """
import json, sys
import torchvision_shim
torchvision_shim.install()
from captune.cli.main import main
for command in json.load(open(sys.argv[1])):
    code = main(command)
    assert code == 0, (code, command)
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
}


def command(name: str, model: Path, output: Path, processes: int) -> list[str]:
    """The command of a run whose batch over all processes is four images."""
    verb, more = RUNS[name]
    settings = {**COMMON, "model": model, "output": output / name, "batch-size": 4 // processes, **more}
    words = [verb]
    for flag, value in settings.items():
        words += [f"--{flag}", *([] if value is True else [str(value)])]
    return words


def launch(commands: list[list[str]], folder: Path) -> str:
    """Run commands in two processes; returns what they said on stderr."""
    (folder / "worker.py").write_text(WORKER)
    (folder / "commands.json").write_text(json.dumps(commands))
    paths = [str(ROOT / "src"), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(folder / "worker.py"), str(folder / "commands.json")],
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
    said = launch([command(name, tiny_folder("idefics3"), folder, 2) for name in RUNS], folder)
    assert said.count("done: ") == len(RUNS)  # the first process speaks
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a9_two_processes_learn_what_one_learns(name: str, two: Path, tiny_folder: Any, tmp_path: Path) -> None:
    """Weights within 1e-5, scores and captions equal, every file written once."""
    assert main(command(name, tiny_folder("idefics3"), tmp_path, 1)) == 0
    ours, theirs = RunDir(two / name), RunDir(tmp_path / name)
    weights = load_file(theirs.adapter / "adapter_model.safetensors")
    found = load_file(ours.adapter / "adapter_model.safetensors")
    assert weights.keys() == found.keys()
    whole, other = (torch.cat([part[key].flatten() for key in weights]) for part in (weights, found))
    assert float((whole - other).norm() / whole.norm()) <= 1e-5
    names = [row["name"] for row in theirs.scores()["rows"]]
    assert [row["name"] for row in ours.scores()["rows"]] == names
    for row in names:
        assert ours.captions(row).read_bytes() == theirs.captions(row).read_bytes()
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
