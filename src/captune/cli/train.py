"""The training methods as commands: each name of the registry ``captune.methods`` is a verb.

A package adds a method, and with it a verb, through an entry point that names an object with the attributes of
`captune.training.method.Method`: name, summary, description, example, config, run and presets.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from captune.cli.command import Command, echo, hide_loading_bars
from captune.cli.config import add_fields, build, check_sources
from captune.errors import UsageError
from captune.utils import processes
from captune.utils.registry import Registry

METHODS = Registry(
    "captune.methods",
    "method",
    {
        "vizer": "captune.training.vizer.config:METHOD",
        "grpo": "captune.training.grpo.config:METHOD",
        "sft": "captune.training.sft.config:METHOD",
        "scst": "captune.training.scst.config:METHOD",
        "har": "captune.training.har.config:METHOD",
        "sc-captioner": "captune.training.sc_captioner.config:METHOD",
    },
)

# For `captune --help`, which must not import a method: that imports torch. A test compares them with the methods' own.
SUMMARIES = {
    "vizer": "improve a captioner with unlabelled images (ViZer)",
    "grpo": "train a captioner with any scorer as the reward (GRPO)",
    "sft": "fine-tune a captioner on references (the supervised ceiling)",
    "scst": "self-critical training on references (SCST)",
    "har": "build a captioner of an image encoder and a language model (HAR)",
    "sc-captioner": "train a captioner to correct its own captions (SC-Captioner)",
}


def command(name: str, load: bool) -> Command:
    """Make a method's command; unless `load`, only its summary, without importing the method."""
    if not load:
        summary = SUMMARIES.get(name, "a method of another package")
        return Command(summary, "", "", lambda parser: None, lambda args: 2, reads_sources=True)
    method = METHODS[name]
    lacking = [part for part in ("summary", "description", "example", "config", "run") if not hasattr(method, part)]
    if lacking:
        raise UsageError(f"the method {name!r} of another package is no Method: it has no {' and no '.join(lacking)}")
    return Command(
        method.summary,
        method.description,
        method.example,
        partial(add_arguments, method),
        partial(run, method),
        reads_sources=True,
    )


def add_arguments(method: Any, parser: argparse.ArgumentParser) -> None:
    """Declare a flag per setting of the method; the usage line names the required ones only."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of the settings below; flags win")
    required = " ".join(add_fields(parser, method.config))
    parser.usage = f"%(prog)s [--config FILE] {required} [settings]"


def ending_at_sigterm() -> AbstractContextManager[None]:
    """Inside, SIGTERM ends the command with a sentence and 143; a trainer's loop saves a checkpoint first."""

    def end(*_: Any) -> None:
        echo("captune: stopped by SIGTERM; what is done is kept, and the same command resumes")
        raise SystemExit(processes.TERMINATED)

    return processes.on_sigterm(end)


def run(method: Any, args: argparse.Namespace) -> int:
    """Train, and print where the result lies."""
    config = build(method.config, vars(args), args.config, method.presets)
    check_sources(config)
    hide_loading_bars()
    with ending_at_sigterm():
        run_dir = method.run(config)
    if run_dir is None:
        raise UsageError(f"the method {method.name!r} returned no run directory; `run` must return a RunDir")
    folder = run_dir.path
    if processes.rank():
        return 0  # the first process says it
    echo(f"done: {folder}")
    print(f"adapter: {folder / 'adapter'}")
    if (folder / "model").is_dir():
        print(f"model: {folder / 'model'}")
    if (folder / "report.html").is_file():
        print(f"report: {folder / 'report.html'}")
    return 0
