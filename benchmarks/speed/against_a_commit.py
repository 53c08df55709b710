"""Steps of sft, of ViZer's latent objective and of grpo, now and at an earlier commit, in turns on one machine.

    python -m benchmarks.speed.against_a_commit c094bf6 [--turns 12] [--output benchmarks/speed/against_a_commit]

The commit is checked out beside this tree (git worktree). One process of each tree runs the same command of captune on
the storybook captioner: same model, images, seed and settings, under the names that the tree gives them. The two take
turns of a few steps: a process waits at the end of its turn until the other one has had its own, and who goes first
alternates. A step is timed from the end of the step before it, so it holds everything that the training loop does:
reading and preprocessing images, sampling, rewards, loss, backward, checks, AdamW, log. Checkpoints and evaluations are
outside. `cpu` is the processor's time, which other work on the machine disturbs less than the clock's (`wall`).

Beside the times, which a busy machine moves by some per cent, stand two counts of a step that nothing moves: the
operators of torch that run (`torch.profiler`) and the calls of Python functions (`cProfile`), of four steps each.

What is compared is the median over the turns of the ratio of neighbouring turns. An interval is that of the median
(bootstrap, 95%): a step has grown where all of it lies above 1.01.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import _lib

ROOT = Path(__file__).resolve().parents[2]
COMMON = {
    "model": "storybook", "images": "storybook:train?n=64", "eval-images": "storybook:val?n=4", "device": "cpu",
    "max-steps": 100_000, "save-steps": 100_000, "learning-rate": 1e-5, "warmup-steps": 0, "batch-size": 8,
}  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "latent": ("vizer", {"objective": "latent", "mapper-epochs": 1, "mapper-samples": 1, "width": 32}),
    "grpo": (
        "grpo",
        {"reward": "length", "accept-reward": True, "num-generations": 4, "batch-size": 4, "max-new-tokens": 16,
         "eval-steps": 100_000},
    ),
}  # fmt: skip
FORMER = {"eval-images": "evaluation", "eval-steps": "watch-steps"}
WORKER = """
import sys, time
turn, argv = int(sys.argv[1]), sys.argv[2:]
from transformers.trainer_callback import DefaultFlowCallback
from captune.cli import main as cli
main = getattr(cli, "main", cli)
after, seen, last = DefaultFlowCallback.on_step_end, [], []
def on_step_end(self, args, state, control, **kwargs):
    if last:
        seen.append((time.process_time() - last[0], time.perf_counter() - last[1]))
    if not last or len(seen) == turn:
        print("TURN", *(sum(times) / len(seen) for times in zip(*seen)), file=sys.__stdout__, flush=True)
        seen.clear()
        if not sys.stdin.readline().strip():
            raise SystemExit
    last[:] = time.process_time(), time.perf_counter()
    return after(self, args, state, control, **kwargs)
DefaultFlowCallback.on_step_end = on_step_end
sys.exit(main(argv))
"""

COUNTER = """
import cProfile, json, os, pstats, sys
from torch.profiler import ProfilerActivity, profile
from transformers.trainer_callback import DefaultFlowCallback
from captune.cli import main as cli
after, step, running = DefaultFlowCallback.on_step_end, [0], []
def on_step_end(self, args, state, control, **kwargs):
    step[0] += 1
    if step[0] == 3:
        running.append(profile(activities=[ProfilerActivity.CPU]))
        running[0].__enter__()
    if step[0] == 7:
        running[0].__exit__(None, None, None)
        operators = sum(event.count for event in running[0].key_averages())
        running.append(cProfile.Profile())
        running[1].enable()
    if step[0] == 11:
        running[1].disable()
        calls = pstats.Stats(running[1]).total_calls
        print("COUNTS", running[2] / 4, calls / 4, file=sys.__stdout__, flush=True)
        os._exit(0)
    if step[0] == 7:
        running.append(operators)
    return after(self, args, state, control, **kwargs)
DefaultFlowCallback.on_step_end = on_step_end
sys.exit(getattr(cli, "main", cli)(sys.argv[1:]))
"""


class Side:
    """A process of one tree that trains until it is told to wait.

    Args:
        tree: the folder of the sources.
        method: one of `METHODS`.
        output: the run's folder.
        steps: per turn.
    """

    def __init__(self, tree: Path, method: str, output: Path, steps: int) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1",
                            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        verb, more = METHODS[method]
        asked = [sys.executable, "-m", "captune", verb, "--help"]
        help = subprocess.run(asked, env=self.environment, capture_output=True, text=True, check=True).stdout
        known = self.known = set(re.findall(r"--[a-z0-9-]+", help))
        argv = [verb]
        for flag, value in {**COMMON, **more, "output": output}.items():
            name = next((name for name in (flag, FORMER.get(flag)) if name and f"--{name}" in known), None)
            if name is None and value is not True:  # a switch that the tree does not have does not apply to it
                raise SystemExit(f"{tree}: `captune {verb}` has no --{flag}")
            argv += [f"--{name}", *([] if value is True else [str(value)])] if name else []
        self.argv = argv
        command = [sys.executable, "-c", WORKER, str(steps), *argv]
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open while the process lives)
        self.process = subprocess.Popen(command, env=self.environment, stdin=-1, stdout=-1, stderr=self.said, text=True)
        self.wait()  # for the first step

    def wait(self) -> list[float]:
        """(cpu, wall) seconds of a step of the turn that ends now."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("TURN"):
                return [float(number) for number in line.split()[1:]]
        self.said.seek(0)
        raise SystemExit(f"{' '.join(self.process.args[3:])} ended:\n{self.said.read()[-2000:]}")  # type: ignore

    def turn(self) -> list[float]:
        """Have a turn."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.wait()

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def counts(self) -> list[float]:
        """(operators, calls) of a step, counted in a process of its own."""
        argv = [*self.argv, *(["--overwrite"] if "--overwrite" in self.known else [])]
        command = [sys.executable, "-c", COUNTER, *argv]
        said = subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout
        return [float(number) for number in said.rpartition("COUNTS")[2].split()]


def measure(method: str, trees: dict[str, Path], folder: Path, turns: int, steps: int) -> dict[str, Any]:
    """Both sides in turns."""
    sides = {name: Side(tree, method, folder / f"{method}-{name}", steps) for name, tree in trees.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    for turn in range(turns + 2):
        for name in list(sides) if turn % 2 else reversed(list(sides)):
            seconds = sides[name].turn()
            if turn >= 2:
                times[name].append(seconds)
    for side in sides.values():
        side.end()
    result: dict[str, Any] = {}
    counts = {name: side.counts() for name, side in sides.items()}
    for place, what in enumerate(("operators", "calls")):
        now, before = (counts[name][place] for name in ("now", "before"))
        result[what] = {"now": now, "before": before, "ratio": round(now / before, 4)}
    for place, what in enumerate(("cpu", "wall")):
        now, before = ([seconds[place] for seconds in times[name]] for name in ("now", "before"))
        ratios = [a / b for a, b in zip(now, before, strict=True)]
        luck = random.Random(0)
        medians = sorted(statistics.median(luck.choices(ratios, k=len(ratios))) for _ in range(2000))
        result[what] = {
            "seconds": {"now": round(statistics.median(now), 5), "before": round(statistics.median(before), 5)},
            "fastest": {"now": round(min(now), 5), "before": round(min(before), 5)},
            "ratio": round(statistics.median(ratios), 4),
            "interval": [round(medians[50], 4), round(medians[-51], 4)],
        }
    return result


def table(result: dict[str, Any]) -> str:
    """The page."""
    lines = [
        f"# Steps now and at {result['before'][:9]}",
        "",
        f"Medians of {result['turns']} turns of {result['steps']} steps, {result['threads']} thread, {result['cores']} "
        f"cores with a load of {result['load']}; torch {result['torch']}; now is {result['now'][:9]}. Made by "
        "`python -m benchmarks.speed.against_a_commit`; its head says what is measured.",
        "",
        "| step | operators, ratio | calls, ratio | cpu s, now | before | ratio (95% interval) | of the fastest turns "
        "| wall, ratio (95% interval) |",
        "|---|---:|---:|---:|---:|---|---:|---|",
    ]
    for name, found in result["methods"].items():
        cpu, wall = found["cpu"], found["wall"]
        fastest = cpu["fastest"]["now"] / cpu["fastest"]["before"]
        lines.append(
            f"| {name} | {found['operators']['ratio']:.4f} | {found['calls']['ratio']:.4f} | "
            f"{cpu['seconds']['now']:.4f} | {cpu['seconds']['before']:.4f} | {cpu['ratio']:.3f} "
            f"({cpu['interval'][0]:.3f} to {cpu['interval'][1]:.3f}) | {fastest:.3f} | {wall['ratio']:.3f} "
            f"({wall['interval'][0]:.3f} to {wall['interval'][1]:.3f}) |"
        )
    return "\n".join(lines) + "\n"


def git(*arguments: str) -> str:
    """What git says."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        git("worktree", "add", "--detach", str(folder / "before"), args.commit)
        try:
            trees = {"now": ROOT, "before": folder / "before"}
            found = {name: measure(name, trees, folder, args.turns, args.steps) for name in args.methods}
            result = {"now": git("rev-parse", "HEAD"), "before": git("rev-parse", args.commit), "turns": args.turns,
                      "steps": args.steps, **_lib.machine(), "threads": 1, "methods": found}  # fmt: skip
        finally:
            git("worktree", "remove", "--force", str(folder / "before"))
    _lib.write(result, table(result), args.output)


if __name__ == "__main__":
    main()
