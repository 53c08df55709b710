"""What the verbs have in common that train a small head on frozen encoders."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captune.cli.command import Command, echo, hide_loading_bars
from captune.cli.config import add_fields, build, check_sources
from captune.cli.train import ending_at_sigterm


def command(
    room: str, config: str, noun: str, said: Callable[[Path], str], *, summary: str, description: str, example: str
) -> Command:
    """Return the command of `captune VERB train`.

    Args:
        room: of `captune.training`; named and imported late, since what trains imports torch.
        config: the name of its settings, a dataclass in its `config`.
        noun: of what is made, for the last line.
        said: returns how good the folder is, a sentence.
        summary: one line for the list of verbs.
        description: for the verb's own help.
        example: a command line.
    """

    def settings() -> Any:
        return getattr(importlib.import_module(f"captune.training.{room}.config"), config)

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("action", choices=["train"], help="train one, or resume a training")
        parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of the settings below; flags win")
        required = " ".join(add_fields(parser, settings()))
        parser.usage = f"%(prog)s train [--config FILE] {required} [settings]"

    def run(args: argparse.Namespace) -> int:
        config = build(settings(), vars(args), args.config)
        check_sources(config)
        hide_loading_bars()
        with ending_at_sigterm():
            folder = importlib.import_module(f"captune.training.{room}.train").run(config).path
        echo(f"done: {said(folder)}")
        print(f"{noun}: {folder}")
        return 0

    return Command(
        summary=summary,
        description=description,
        example=example,
        add_arguments=add_arguments,
        run=run,
        reads_sources=True,
    )
