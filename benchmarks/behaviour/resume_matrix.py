"""Kills every method at every file event of a small run, resumes it, and compares what it leaves behind byte for byte.

    python benchmarks/behaviour/resume_matrix.py --output benchmarks/behaviour/resume_matrix   # make resume-matrix
    python benchmarks/behaviour/resume_matrix.py --methods sft grpo --trials 20 --random 50 --seconds 600

A run is a child forked of a process that has imported everything. An audit hook counts its file events (open for
writing, rename, mkdir, remove, and what safetensors and torch write) in a first run. A trial runs the same settings,
kills itself with SIGKILL at event k, before it or with the file half written, and gives them again. Random kills come
from outside, at a random time. Compared are adapter, mapper, captions, scores, metrics and watch, times of day left
out; and the batches that the resumed run really trained on are counted: a silent restart gives the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

TIMES = re.compile(r"\w*(runtime|per_second|seconds|step_time)$")
LOOKED_AT = ("adapter", "mapper", "captions", "scores.json", "metrics.jsonl", "watch.jsonl")
RL = {"num_generations": 2, "max_new_tokens": 4}
FIT = {"mapper_samples": 2, "mapper_epochs": 2, "width": 8, "whitened": 0}
#: name -> (verb, settings, optimiser steps that a whole run takes)
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "sft": ("sft", {}, 6),
    "sft-logged-between": ("sft", {"max_steps": 40, "save_steps": 17, "group_by_length": True}, 40),
    "vizer-rounds": ("vizer", {**RL, **FIT, "max_steps": 3, "rounds": 2, "objective": "reward"}, 6),
    "vizer-latent": ("vizer", {**RL, **FIT, "objective": "latent"}, 6),
    "vizer-through": ("vizer", {**RL, **FIT, "objective": "straight_through", "beta": 0.1}, 6),
    "grpo": ("grpo", {**RL, "reward": "length", "eval_steps": 2, "early_stopping_patience": 0}, 6),
    "grpo-reused": (
        "grpo",
        {**RL, "reward": "length", "eval_steps": 3, "num_iterations": 2, "steps_per_generation": 2, "batch_size": 1},
        6,
    ),
    "scst": ("scst", {**RL, "beta": 0.1}, 6),
    "har": (
        "har",
        {"image_encoder": "storybook-clip", "language_model": "storybook-lm", "num_prefix_tokens": 2, "mle_steps": 3,
         "mle_batch_size": 2, "scst_steps": 3, "scst_batch_size": 2, **RL},
        6,
    ),
    "sc-captioner": ("sc-captioner", {**RL, "fact_source": "grammar"}, 6),
}  # fmt: skip
COMMON = {"lora_r": 2, "lora_alpha": 4, "save_steps": 2, "device": "cpu"}
SINGLE = {"max_steps": 6, "batch_size": 2, "warmup_steps": 0}


class Bench:
    """A model, images, and children that train on them.

    Args:
        work: a folder for everything.
    """

    def __init__(self, work: Path) -> None:
        import tiny
        import tiny_families
        import torchvision_shim

        torchvision_shim.install()
        import torch

        torch.set_num_threads(1)
        self.work = work
        self.model = tiny_families.idefics3(work / "model")
        words = ["a red ball", "two green fish and a small yellow bird", "a blue house on the beach", "my house"]
        lines = []
        for i, text in enumerate(words):
            tiny.picture(i, (32, 32)).save(work / f"{i}.png")
            lines.append({"image": f"{i}.png", "image_id": str(i), "references": [text, f"{text} again"]})
        for name, rows in (("train", lines), ("val", lines[:2])):
            (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.environ["PATH"] = ""  # no git: a run's commit is not looked at
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        from captune.cli.train import METHODS as KNOWN

        self.known = {verb: KNOWN[verb] for verb, *_ in METHODS.values()}
        from captune.inference import job

        job.caption_source = partial(job.caption_source, max_new_tokens=4)
        compile_once()
        gc.freeze()  # a child need not look at what is here

    def config(self, name: str, output: Path) -> Any:
        """The settings of a method's run."""
        verb, settings, _ = METHODS[name]
        method = self.known[verb]
        more = dict(COMMON) if verb == "har" else COMMON | SINGLE | {"model": str(self.model)}
        sources = {"images": str(self.work / "train.jsonl"), "eval_images": str(self.work / "val.jsonl")}
        return method.config(output=output, **(more | sources | settings))

    def start(self, name: str, output: Path, notes: Path, kill: tuple[int, str] | None = None) -> int:
        """Fork a run; `notes` receives its events, its batches and what it says. Returns its process's number."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            sink = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            unshare_locks()
            Events(str(output), sink, kill)
            count_batches(sink)
            import logging

            logging.basicConfig(level=logging.WARNING, format="SAID %(message)s", force=True)
            self.known[METHODS[name][0]].run(self.config(name, output))
            code = 0
            os.write(sink, f"MODULES {' '.join(sys.modules)}\n".encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os.write(2, b"")
            os._exit(code)

    def run(self, name: str, output: Path, kill: tuple[int, str] | None = None) -> tuple[int, str]:
        """Run a method to its end or its death; the exit status and what it noted."""
        notes = self.work / "notes"
        notes.unlink(missing_ok=True)
        status = os.waitpid(self.start(name, output, notes, kill), 0)[1]
        return os.waitstatus_to_exitcode(status), notes.read_text(errors="replace")


def unshare_locks() -> None:
    """Give this child locks of its own: tqdm's is shared among forked processes, and one that is killed keeps it."""
    import threading

    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def compile_once() -> None:
    """Keep what jinja2 compiles, for the children: a run's cards and pages are most of its time."""
    import jinja2
    import jinja2.environment

    compiled: dict[Any, Any] = {}
    compile = jinja2.environment.Environment.compile

    def once(self: Any, source: Any, name: Any = None, filename: Any = None, *args: Any, **kwargs: Any) -> Any:
        key = (source, name, filename, str(self.autoescape), str(sorted(self.filters)), args, str(kwargs))
        if key not in compiled:
            compiled[key] = compile(self, source, name, filename, *args, **kwargs)
        return compiled[key]

    jinja2.environment.Environment.compile = once  # type: ignore[method-assign]
    from captune.report import page
    from captune.runs import card  # noqa: F401

    with contextlib.suppress(Exception):
        page.render([], Path(os.devnull))
    from huggingface_hub import ModelCard, ModelCardData

    ModelCard.from_template(ModelCardData())


class Events:
    """Counts a run's file events from now on, notes each, and kills the process at one.

    Args:
        folder: the run's; events elsewhere do not count.
        sink: a file's number that receives ``EVENT kind path`` lines.
        kill: (number of the event, how): ``before`` it, or ``torn``, with the file cut.
    """

    def __init__(self, folder: str, sink: int, kill: tuple[int, str] | None) -> None:
        self.folder, self.sink, self.kill, self.count = folder, sink, kill, 0
        import safetensors.torch
        import torch

        sys.addaudithook(self.hear)
        for module, name, place in ((safetensors.torch, "save_file", 1), (torch, "save", 1)):
            setattr(module, name, self.noting(getattr(module, name), place))
        for module in list(sys.modules.values()):  # `from safetensors.torch import save_file`
            if getattr(module, "__name__", "").startswith(("peft", "transformers", "captune")):
                for name in ("save_file", "safe_save_file"):
                    if name in vars(module):
                        setattr(module, name, safetensors.torch.save_file)

    def noting(self, save: Callable[..., Any], place: int) -> Callable[..., Any]:
        """Note a write that Python does not see, when it is done: ``torn`` leaves half of it."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            done = save(*args, **kwargs)
            path = args[place] if len(args) > place else next((kwargs[k] for k in ("filename", "f") if k in kwargs), "")
            self.happen("save", str(path))
            return done

        return noted

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Note what Python's audit says of a file."""
        if event == "open":
            path, mode, flags = args
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(c in (mode or "") for c in "wax+")
            if writes:
                kind = "append" if "a" in (mode or "") else "update" if "r" in (mode or "") else "open"
                self.happen(kind, path)  # an update cuts nothing when it opens
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            self.happen(event[3:], args[0])

    def happen(self, kind: str, path: Any) -> None:
        """Count an event of the run's folder; die where it is the one."""
        if isinstance(path, bytes | os.PathLike):
            path = os.fsdecode(os.fspath(path))
        if not isinstance(path, str) or not path.startswith(self.folder):
            return
        os.write(self.sink, f"EVENT {kind} {os.path.relpath(path, self.folder)}\n".encode())
        self.count += 1
        if self.kill is not None and self.count == self.kill[0] + 1:
            if self.kill[1] == "torn" and kind in ("open", "append", "save"):
                self.kill = None
                tear(kind, path)
            os.kill(os.getpid(), signal.SIGKILL)


def tear(kind: str, path: str) -> None:
    """Leave a file as a kill in the middle of its writing does."""
    if kind == "save":
        os.truncate(path, os.path.getsize(path) // 2)
    elif kind == "append":
        with open(path, "a") as file:
            file.write('{"step": 1, "lo')
    else:
        with open(path, "w"):
            pass


def count_batches(sink: int) -> None:
    """Note each optimiser step that is done from now on."""
    from transformers.trainer_callback import DefaultFlowCallback

    done = DefaultFlowCallback.on_step_end

    def on_step_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        os.write(sink, b"STEP\n")
        return done(self, *args, **kwargs)

    DefaultFlowCallback.on_step_end = on_step_end  # type: ignore[method-assign]


def without_times(value: Any) -> Any:
    """A value read of JSON, without its times."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not TIMES.match(key)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    """What a run left behind: {file: content}."""
    found: dict[str, Any] = {}
    for part in ("", "mle", "scst"):
        for name in LOOKED_AT:
            place = folder / part / name
            for path in sorted(place.rglob("*")) if place.is_dir() else [place] if place.exists() else []:
                if path.is_file():
                    text = path.read_bytes()
                    if path.suffix in (".json", ".jsonl"):
                        text = text.replace(str(folder).encode(), b"RUN")
                    key = str(path.relative_to(folder))
                    if path.suffix == ".jsonl" and path.name in ("metrics.jsonl", "watch.jsonl"):
                        found[key] = [without_times(json.loads(line)) for line in text.splitlines()]
                    else:
                        found[key] = without_times(json.loads(text)) if path.name == "scores.json" else text
    for path in folder.rglob("*"):  # nothing half done stays
        if path.name.endswith(".tmp") or path.name == ".clearing":
            found[f"left over: {path.relative_to(folder)}"] = True
    return found


def steps_left(name: str, folder: Path) -> int:
    """How many steps a run that resumes has to do, by its complete checkpoints."""
    from captune.runs.run_dir import RunDir

    verb, settings, total = METHODS[name]
    stages = [folder / "mle", folder / "scst"] if verb == "har" else [folder]
    if not (folder / "config.yaml").is_file() or (folder / ".clearing").exists():
        return total
    if RunDir(folder).finished:
        return 0
    each = total // len(stages)
    done = 0
    for stage in stages:
        begun = (stage / "config.yaml").is_file()
        done += each if RunDir(stage).finished else RunDir(stage).steps_done(settings.get("max_steps", 6)) * begun
    return total - done


def trial(bench: Bench, name: str, whole: dict[str, Any], die: Callable[[Path], None]) -> str:
    """Kill a run, give it again; "equal", or what differs."""
    output = bench.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    die(output)
    left = steps_left(name, output) if output.exists() else METHODS[name][2]
    restarts = left == METHODS[name][2] and (output / "config.yaml").is_file() and name != "har"  # its stages say it
    restarts = restarts and not (output / ".clearing").exists()
    code, said = bench.run(name, output)
    if code:
        return f"not resumed: {said.strip().splitlines()[-1]}"
    steps = said.count("STEP\n")
    if restarts and "training begins at step 0" not in said:
        return "restarted without a word"
    if steps != left:
        return f"{steps} steps were done, {left} were left"
    found = results(output)
    differing = sorted(key for key in whole.keys() | found.keys() if whole.get(key) != found.get(key))
    return f"differs: {', '.join(differing)}" if differing else "equal"


def main(argv: list[str] | None = None) -> int:
    """Run the trials that the time allows; 1 where one is not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--trials", type=int, help="kills at file events per method; default: at every event")
    parser.add_argument("--random", type=int, default=0, help="kills at a random time, over all methods")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    args = parser.parse_args(argv)
    began, luck = time.monotonic(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        table: dict[str, dict[str, Any]] = {}
        wholes, queues, lasted = {}, {}, {}
        for name in args.methods:
            before = time.monotonic()
            output = bench.work / "run"
            shutil.rmtree(output, ignore_errors=True)
            code, said = bench.run(name, output)
            lasted[name] = time.monotonic() - before
            if code:
                raise SystemExit(f"{name}: the whole run failed:\n{said[-3000:]}")
            for module in re.findall(r"^MODULES (.*)$", said, re.M)[0].split():  # so that later children need not
                if module.partition(".")[0] in ("captune", "jinja2", "huggingface_hub", "numpy", "pandas", "pyarrow"):
                    with contextlib.suppress(Exception):
                        importlib.import_module(module)
            assert said.count("STEP\n") == METHODS[name][2], f"{name}: {said.count('STEP')} steps"
            wholes[name] = results(output)
            events = re.findall(r"^EVENT (\w+) (.*)$", said, re.M)
            kills = [
                (k, how)
                for k, (kind, _) in enumerate(events)
                for how in (("before", "torn") if kind in ("open", "append", "save") else ("before",))
            ]
            luck.shuffle(kills)
            queues[name] = kills[: args.trials]
            table[name] = {"events": len(events), "kills": len(kills), "done": 0, "random": 0, "equal": 0, "faults": []}
            print(f"{name}: {len(events)} events, {len(kills)} kills, {lasted[name]:.1f} s", flush=True)

        def note(name: str, kind: str, what: str, verdict: str) -> None:
            table[name][kind] += 1
            table[name]["equal"] += verdict == "equal"
            if verdict != "equal":
                table[name]["faults"].append(f"{what}: {verdict}")
                print(f"{name}, {what}: {verdict}", flush=True)

        def by_event(name: str) -> None:
            kill = queues[name].pop()
            what: list[str] = []

            def die(output: Path) -> None:
                said = bench.run(name, output, kill)[1]
                lines = re.findall(r"^EVENT (.*)$", said, re.M)
                what.append(f"event {kill[0]} ({kill[1]} {lines[-1] if lines else '?'})")

            verdict = trial(bench, name, wholes[name], die)
            note(name, "done", what[0], verdict)

        def at_random(name: str) -> None:
            after = luck.uniform(0.0, 1.1 * lasted[name])

            def die(output: Path) -> None:
                child = bench.start(name, output, bench.work / "killed")
                time.sleep(after)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

            note(name, "random", f"after {after:.3f} s", trial(bench, name, wholes[name], die))

        randoms = args.random
        while any(queues.values()) or randoms > 0:  # the methods by turns, so that any part of it covers all
            for name in args.methods:
                if time.monotonic() - began > args.seconds:
                    queues, randoms = {}, 0
                    break
                if queues[name]:
                    by_event(name)
                if randoms > 0:
                    at_random(name)
                    randoms -= 1
            if args.output:
                write(table, args.output)
    print(page(table))
    return int(any(row["faults"] for row in table.values()))


def page(table: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        "# Kills and resumes",
        "",
        "Made by `make resume-matrix` (`benchmarks/behaviour/resume_matrix.py`). A kill is equal when the resumed run",
        "did just the steps that were left, and adapter, mapper, captions, scores, metrics, watch have the same bytes.",
        "",
        "| run | file events | kills there are | kills at events | random kills | equal | not equal or not resumed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        numbers = [row[key] for key in ("events", "kills", "done", "random", "equal")]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {len(row['faults'])} |")
    totals = [sum(row[key] for row in table.values()) for key in ("events", "kills", "done", "random", "equal")]
    lines.append(f"| all | {' | '.join(map(str, totals))} | {sum(len(row['faults']) for row in table.values())} |")
    return "\n".join(lines) + "\n"


def write(table: dict[str, dict[str, Any]], output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    output.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
