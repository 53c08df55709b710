"""Kills every method at every file event of a small run, resumes it, and compares what it leaves behind byte for byte.

    python benchmarks/behaviour/resume_matrix.py --output benchmarks/behaviour/resume_matrix   # make resume-matrix
    python benchmarks/behaviour/resume_matrix.py --methods sft grpo --states 20 --random 50 --seconds 600
    python benchmarks/behaviour/resume_matrix.py --join A.json B.json --output C              # parts of one table

A run is a child forked of a process that has imported everything. An audit hook counts its file events (open for
writing, rename, mkdir, remove, and what safetensors and torch write).

- *At events.* One run is copied at each event: its folder before the event, and with the file half written. That is
  what SIGKILL leaves there: what Python has not flushed is lost, what the system has is kept, locks end with the
  process. Each different copy is put back and the settings given again; equal copies (the events around a file that
  stays empty, say) are resumed once and counted for each of their kills. Times of files are put back too.
- *Checked by real kills.* For some copies of each method (``--checked``, by lot) a run kills itself with SIGKILL at
  that event: its folder has to hold the bytes of the copy, times of day and process numbers apart, and is resumed too.
- *At random.* A run is killed from outside at a random time, and given again.

Compared are adapter, mapper, captions, scores, metrics and watch, times of day left out; and the optimiser steps that
the resumed run really does are counted: a silent restart gives the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
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
PRELOADED = (
    "captune", "jinja2", "huggingface_hub", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "sentence_transformers"
)  # fmt: skip
PATIENCE = 180.0  # seconds after which a run counts as hanging
ACCEPT = {"accept_reward": True}  # of four images, or random weights
RL = {"num_generations": 2, "max_new_tokens": 4}
ENCODERS = "clip:storybook-clip + 0.5 * capture"
FIT = {"mapper_samples": 2, "mapper_epochs": 2, "width": 8, "whitened": 0}
#: name -> (verb, settings, optimiser steps that a whole run takes)
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "sft": ("sft", {}, 6),
    "sft-logged-between": ("sft", {"max_steps": 40, "save_steps": 17, "group_by_length": True}, 40),
    "vizer-rounds": ("vizer", {**RL, **FIT, **ACCEPT, "max_steps": 3, "rounds": 2, "objective": "reward"}, 6),
    "vizer-latent": ("vizer", {**RL, **FIT, "objective": "latent"}, 6),
    "vizer-through": ("vizer", {**RL, **FIT, "objective": "straight_through", "beta": 0.1}, 6),
    "grpo": ("grpo", {**RL, **ACCEPT, "reward": "length", "eval_steps": 2, "early_stopping_patience": 0}, 6),
    "grpo-reused": (
        "grpo",
        {**RL, **ACCEPT, "reward": "length", "eval_steps": 3, "num_iterations": 2, "steps_per_generation": 2,
         "batch_size": 1},
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
    # What scorers remember decides what is encoded together, and so the last bits of the reward.
    "scst-encoders": ("scst", {**RL, "reward": ENCODERS, "accept_reward": True, "batch_size": 3}, 6),
    "grpo-encoders": ("grpo", {**RL, "reward": ENCODERS, "accept_reward": True, "eval_steps": 2}, 6),
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
        import tqdm.std

        torch.set_num_threads(1)
        # tqdm's own lock is a semaphore that forks share: a child killed inside it would leave all others waiting.
        tqdm.std.tqdm.set_lock(threading.RLock())
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

    def start(
        self, name: str, output: Path, notes: Path, kill: tuple[int, str] | None = None, copies: Copies | None = None
    ) -> int:
        """Fork a run; `notes` receives its events, its steps and what it says. Returns its process's number."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            sink = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            Events(str(output), sink, kill, copies)
            count_batches(sink)
            import logging

            logging.basicConfig(level=logging.WARNING, format="SAID %(message)s", force=True)
            self.known[METHODS[name][0]].run(self.config(name, output))
            code = 0
            os.write(sink, f"\nMODULES {' '.join(sys.modules)}\n".encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os.write(2, b"")
            os._exit(code)

    def run(
        self, name: str, output: Path, kill: tuple[int, str] | None = None, copies: Copies | None = None
    ) -> tuple[int, str]:
        """Run a method to its end or its death; the exit status and what it noted."""
        notes = self.work / "notes"
        notes.unlink(missing_ok=True)
        child, status = self.start(name, output, notes, kill, copies), 0
        late = threading.Timer(PATIENCE, os.kill, (child, signal.SIGALRM))  # a status that nothing else gives
        late.start()
        try:
            status = os.waitpid(child, 0)[1]
        finally:
            late.cancel()
        said = notes.read_text(errors="replace")
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            said += f"\nhangs: not done after {PATIENCE:.0f} s"
        return os.waitstatus_to_exitcode(status), said


class Copies:
    """What a run's folder held at each of its events.

    Args:
        store: a folder for the files, by their digest.
        folder: the run's.
    """

    def __init__(self, store: Path, folder: Path) -> None:
        self.store, self.folder = store, folder
        store.mkdir(parents=True, exist_ok=True)

    def keep(self, number: int, how: str, torn: Callable[[dict[str, bytes]], None] | None = None) -> None:
        """Copy the folder as it is, with `torn` applied to {path: content}, as that of a kill."""
        files, folders = contents(self.folder), None
        if files is not None:
            folders = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_dir())
        times = {name: (self.folder / name).stat().st_mtime_ns for name in [*(files or ()), *(folders or ())]}
        if files is not None and torn is not None:
            torn(files)
        digests = {}
        for name, content in (files or {}).items():
            digest = digests[name] = hashlib.sha256(content).hexdigest()
            if not (self.store / digest).exists():
                (self.store / digest).write_bytes(content)
        state = {"files": digests if files is not None else None, "folders": folders}
        key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
        if not (self.store / f"{key}.json").exists():
            (self.store / f"{key}.json").write_text(json.dumps(state | {"times": times}))
        with (self.store / "kills.jsonl").open("a") as file:
            file.write(json.dumps([number, how, key]) + "\n")

    def kills(self) -> list[tuple[int, str, str]]:
        """(event, how, the copy's name) of each kill."""
        return [tuple(json.loads(line)) for line in (self.store / "kills.jsonl").read_text().splitlines()]

    def put_back(self, key: str) -> None:
        """Make the run's folder what it was."""
        state = json.loads((self.store / f"{key}.json").read_text())
        shutil.rmtree(self.folder, ignore_errors=True)
        if state["files"] is None:
            return
        self.folder.mkdir()
        for name in state["folders"]:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name, digest in state["files"].items():
            shutil.copyfile(self.store / digest, self.folder / name)
        for name in [*state["files"], *reversed(state["folders"])]:
            if name in state["times"]:
                os.utime(self.folder / name, ns=(state["times"][name],) * 2)


def contents(folder: Path) -> dict[str, bytes] | None:
    """{path: content} of a folder's files; None where it is not there."""
    if not folder.is_dir():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def comparable(files: dict[str, bytes] | None) -> dict[str, Any] | None:
    """`contents` without times of day, process numbers, and digests of what holds such."""
    if files is None:
        return None
    found: dict[str, Any] = {}
    for name, content in files.items():
        value: Any = content
        if "report.html" in name:  # images per second, plots of the steps' times
            value = re.sub(rb"(?s)<svg.*?(</svg>|$)|\d+(\.\d+)?", b"N", content)
        elif name.endswith((".json", ".jsonl", ".tmp")):
            value = [without_times(_parsed(line)) for line in content.splitlines()]  # one of them may be torn
            with contextlib.suppress(ValueError):
                value = without_times(json.loads(content))
            if isinstance(value, dict) and "files" in value:  # a checkpoint's marker, with digests of such files
                value = {**value, "files": sorted(value["files"])}
        found[re.sub(r"\.\d+\.((discarded\.)?tmp)", r".PID.\1", name)] = value
    return found


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


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
        copies: receives the folder at each event.
    """

    def __init__(self, folder: str, sink: int, kill: tuple[int, str] | None, copies: Copies | None = None) -> None:
        self.folder, self.sink, self.kill, self.copies, self.count = folder, sink, kill, copies, 0
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
        if not isinstance(path, str) or os.path.commonpath((os.path.abspath(path), self.folder)) != self.folder:
            return
        # On a line of its own, whatever a progress bar has left.
        os.write(self.sink, f"\nEVENT {kind} {os.path.relpath(path, self.folder)}\n".encode())
        self.count += 1
        if self.copies is not None:
            self.copies.keep(self.count - 1, "before")
            if kind in TORN:
                name = os.path.relpath(path, self.folder)
                self.copies.keep(self.count - 1, "torn", partial(torn, kind, name))
        if self.kill is not None and self.count == self.kill[0] + 1:
            if self.kill[1] == "torn" and kind in TORN:
                self.kill = None
                name = os.path.basename(path)
                there = {name: Path(path).read_bytes()} if os.path.exists(path) else {}
                torn(kind, name, there)
                Path(path).write_bytes(there[name])
            os.kill(os.getpid(), signal.SIGKILL)


TORN = ("open", "append", "save")  # the events after which a file may be half written


def torn(kind: str, name: str, files: dict[str, bytes]) -> None:
    """Leave a file as a kill in the middle of its writing does."""
    before = files.get(name, b"")
    files[name] = {"save": before[: len(before) // 2], "append": before + b'{"step": 1, "lo', "open": b""}[kind]


def count_batches(sink: int) -> None:
    """Note each optimiser step that is done from now on."""
    from transformers.trainer_callback import DefaultFlowCallback

    done = DefaultFlowCallback.on_step_end

    def on_step_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        os.write(sink, b"\nSTEP\n")
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


def trial(bench: Bench, name: str, whole: dict[str, Any], die: Callable[[Path], str | None]) -> str:
    """Kill a run, give it again; "equal", or what differs.

    Args:
        bench: where.
        name: the method.
        whole: what a run without a kill leaves behind.
        die: leaves the folder of a killed run; returns what is wrong with it already.
    """
    output = bench.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    if (wrong := die(output)) is not None:
        return wrong
    left = steps_left(name, output) if output.exists() else METHODS[name][2]
    restarts = left == METHODS[name][2] and (output / "config.yaml").is_file() and name != "har"  # its stages say it
    restarts = restarts and not (output / ".clearing").exists()
    code, said = bench.run(name, output)
    if code:
        return f"not resumed: {(said.strip() or 'no word').splitlines()[-1]}"
    steps = said.count("STEP\n")
    if restarts and "training begins at step 0" not in said:
        return "restarted without a word"
    if steps != left:
        return f"{steps} steps were done, {left} were left"
    found = results(output)
    differing = sorted(key for key in whole.keys() | found.keys() if whole.get(key) != found.get(key))
    return f"differs: {', '.join(differing)}" if differing else "equal"


class Matrix:
    """The trials of some methods, and their table.

    Args:
        bench: where.
        names: the methods.
        luck: which copies, which real kills, when.
    """

    def __init__(self, bench: Bench, names: list[str], luck: random.Random) -> None:
        self.bench, self.luck = bench, luck
        self.output = bench.work / "run"
        self.rows: dict[str, dict[str, Any]] = {}
        self.wholes: dict[str, dict[str, Any]] = {}
        self.lasted: dict[str, float] = {}
        self.copies: dict[str, Copies] = {}
        self.kills: dict[str, dict[str, list[tuple[int, str]]]] = {}  # of each different copy
        self.events: dict[str, list[str]] = {}
        for name in names:
            self.begin(name)

    def begin(self, name: str) -> None:
        """Run a method to its end: for what it imports, for what it leaves behind, and to be copied."""
        said = self.end(name)
        for module in re.findall(r"^MODULES (.*)$", said, re.M)[0].split():
            if module.partition(".")[0] in PRELOADED:
                with contextlib.suppress(Exception):
                    importlib.import_module(module)
        if "captune.scene_graphs.wordnet" in sys.modules:
            from captune.scene_graphs.wordnet import wordnet

            wordnet()
        self.wholes[name] = results(self.output)
        copies = self.copies[name] = Copies(self.bench.work / "copies" / name, self.output)
        said = self.end(name, copies)
        self.events[name] = re.findall(r"^EVENT (.*)$", said, re.M)
        if results(self.output) != self.wholes[name]:
            raise SystemExit(f"{name}: two whole runs differ")
        kills = self.kills[name] = {}
        for number, how, key in copies.kills():
            kills.setdefault(key, []).append((number, how))
        self.rows[name] = {
            "events": len(self.events[name]),
            "kills": sum(map(len, kills.values())),
            "states": len(kills),
            **dict.fromkeys(("resumed", "done", "checked", "random", "equal"), 0),
            "faults": [],
        }
        row = self.rows[name]
        print(f"{name}: {row['events']} events, {row['kills']} kills, {row['states']} different folders", flush=True)

    def end(self, name: str, copies: Copies | None = None) -> str:
        """Run a method to its end; what it noted."""
        shutil.rmtree(self.output, ignore_errors=True)
        code, said = self.bench.run(name, self.output, copies=copies)
        if code or said.count("STEP\n") != METHODS[name][2]:
            raise SystemExit(f"{name}: the whole run failed:\n{said[-3000:]}")
        return said

    def note(self, name: str, kind: str, what: str, verdict: str, kills: int = 1) -> None:
        """Count a verdict."""
        row = self.rows[name]
        row[kind] += kills
        row["equal"] += kills * (verdict == "equal")
        if verdict != "equal":
            row["faults"].append(f"{what}: {verdict}")
            print(f"{name}, {what}: {verdict}", flush=True)

    def what(self, name: str, kill: tuple[int, str]) -> str:
        """A kill in words."""
        return f"event {kill[0]} ({kill[1]} {self.events[name][kill[0]]})"

    def from_copy(self, name: str, key: str) -> None:
        """Resume from a copy, for each of its kills."""
        kills = self.kills[name][key]
        verdict = trial(self.bench, name, self.wholes[name], lambda _: self.copies[name].put_back(key))
        self.rows[name]["resumed"] += 1
        self.note(name, "done", ", ".join(self.what(name, kill) for kill in kills), verdict, len(kills))

    def check(self, name: str, key: str) -> None:
        """Kill a run at an event: it has to leave the copy behind, and resume."""
        kill = self.luck.choice(self.kills[name][key])
        copies = self.copies[name]

        def die(output: Path) -> str | None:
            copies.put_back(key)
            expected = comparable(contents(output))
            shutil.rmtree(output, ignore_errors=True)
            code, said = self.bench.run(name, output, kill)
            if code != -signal.SIGKILL:
                return f"was not killed: {said[-200:]}"
            found = comparable(contents(output))
            if found == expected:
                return None
            if found is None or expected is None:
                return "the copy is not what a kill leaves: one of them has no folder"
            differing = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
            return f"the copy is not what a kill leaves: {', '.join(differing)}"

        self.note(
            name, "checked", f"a real kill at {self.what(name, kill)}", trial(self.bench, name, self.wholes[name], die)
        )

    def at_random(self, name: str) -> None:
        """Kill a run at some time, resume it."""
        if name not in self.lasted:
            before = time.monotonic()
            self.end(name)
            self.lasted[name] = time.monotonic() - before
            shutil.rmtree(self.output)
        after = self.luck.uniform(0.0, 1.1 * self.lasted[name])

        def die(output: Path) -> None:
            child = self.bench.start(name, output, self.bench.work / "killed")
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

        self.note(name, "random", f"after {after:.3f} s", trial(self.bench, name, self.wholes[name], die))


def main(argv: list[str] | None = None) -> int:
    """Run the trials that the time allows; 1 where one is not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--states", type=int, help="different copies per method to resume from; default: all")
    parser.add_argument("--matching", default="", help="only copies of events that a regular expression finds")
    parser.add_argument("--checked", type=int, default=10, help="copies per method that a real kill checks")
    parser.add_argument("--random", type=int, default=0, help="kills at a random time, over all methods")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--join", nargs="+", type=Path, help="add up the JSON files of several parts instead")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    args = parser.parse_args(argv)
    if args.join:
        result = join([json.loads(path.read_text(encoding="utf-8")) for path in args.join])
        write(result, args.output)
        return 0
    made_with = versions()  # with git, before the bench hides it
    began, luck = time.monotonic(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Bench(Path(folder)), args.methods, luck)
        result = {"parts": [{"with": made_with, "matching": args.matching, "runs": matrix.rows}]}
        queues, checks = {}, {}
        for name in args.methods:
            keys = [
                key
                for key, kills in matrix.kills[name].items()
                if any(re.search(args.matching, matrix.what(name, kill)) for kill in kills)
            ]
            luck.shuffle(keys)
            queues[name] = keys[: args.states]
            checks[name] = keys[: args.checked]
        randoms = args.random
        while any(queues.values()) or any(checks.values()) or randoms > 0:  # by turns: a part of it covers all methods
            for name in args.methods:
                if time.monotonic() - began > args.seconds:
                    queues, checks, randoms = {}, {}, 0
                    break
                if checks[name]:
                    matrix.check(name, checks[name].pop())
                if queues[name]:
                    matrix.from_copy(name, queues[name].pop())
                if randoms > 0:
                    matrix.at_random(name)
                    randoms -= 1
            if args.output:
                write(result, args.output)
    print(page(result))
    return int(any(row["faults"] for row in matrix.rows.values()))


def versions() -> dict[str, Any]:
    """What the trials are made with."""
    from captune.utils.versions import versions

    names = ("python", "torch", "transformers", "trl", "peft", "accelerate", "git_commit")
    return {name: value for name, value in versions().items() if name in names}


COUNTED = {
    "events": "file events",
    "kills": "kills there are",
    "states": "different folders",
    "done": "kills resumed",
    "checked": "checked by a real kill",
    "random": "random kills",
    "equal": "equal",
}


def join(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the parts of several results together; those of one commit and of the same events are added up."""
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for part in (part for result in results for part in result["parts"]):
        joined = parts.setdefault((part["with"]["git_commit"], part["matching"]), {**part, "runs": {}})["runs"]
        for name, row in part["runs"].items():
            known = joined.setdefault(name, {**row, **dict.fromkeys(ADDED, 0), "faults": []})
            if any(known[key] != row[key] for key in ("events", "kills", "states")):
                raise SystemExit(f"{name}: the parts do not have the same events")
            for key in (*ADDED, "faults"):
                known[key] = known[key] + row[key]
    for part in parts.values():
        part["runs"] = {name: part["runs"][name] for name in METHODS if name in part["runs"]}
    return {"parts": list(parts.values())}


ADDED = ("resumed", "done", "checked", "random", "equal")


def page(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# Kills and resumes",
        "",
        "Made by `make resume-matrix` (`benchmarks/behaviour/resume_matrix.py`). A kill is equal when the resumed run",
        "did just the steps that were left, and adapter, mapper, captions, scores, metrics, watch have the same bytes.",
        "",
        "The folder of a run is copied at each of its file events, before it and with the file half written: what",
        "SIGKILL leaves there. Each different copy is resumed from once and counts for all of its kills. Some are",
        "checked: a run killed at that event has to leave the copy's bytes (but for times of day and process numbers),",
        "and is resumed as well. Random kills come from outside, at a random time.",
    ]
    for part in result["parts"]:
        lines += ["", *table(part)]
    return "\n".join(lines) + "\n"


def table(part: dict[str, Any]) -> list[str]:
    """One commit's table."""
    made, runs = part["with"], part["runs"]
    libraries = ", ".join(f"{name} {made[name]}" for name in ("torch", "transformers", "trl", "peft"))
    only = f" Only events that match `{part['matching']}`." if part["matching"] else ""
    lines = [
        f"## Commit {str(made['git_commit'])[:9]}",
        "",
        f"{libraries}.{only}",
        "",
        f"| run | {' | '.join(COUNTED.values())} | not equal or not resumed |",
        f"|---|{'---|' * len(COUNTED)}---|",
    ]
    for name, row in runs.items():
        lines.append(f"| {name} | {' | '.join(str(row[key]) for key in COUNTED)} | {len(row['faults'])} |")
    totals = [sum(row[key] for row in runs.values()) for key in COUNTED]
    lines.append(f"| all | {' | '.join(map(str, totals))} | {sum(len(row['faults']) for row in runs.values())} |")
    if part.get("note"):
        lines += ["", part["note"]]
    if faults := [f"- {name}, {fault}" for name, row in runs.items() for fault in row["faults"]]:
        lines += ["", "Not equal or not resumed:", "", *faults]
    return lines


def write(result: dict[str, Any], output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
