"""`captune encoder train`: a pair of frozen encoders with trained heads, in place of a CLIP."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from captune.cli.command import Command, echo, hide_loading_bars
from captune.cli.config import add_fields, build
from captune.cli.train import ending_at_sigterm


def _settings() -> Any:
    """The settings, a dataclass; as with the methods, what trains is named, since reading it imports torch."""
    return importlib.import_module("captune.training.encoder.config").EncoderConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare a flag per setting."""
    parser.add_argument("action", choices=["train"], help="train a pair, or resume a training")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of the settings below; flags win")
    required = " ".join(add_fields(parser, _settings()))
    parser.usage = f"%(prog)s train [--config FILE] {required} [settings]"


def run(args: argparse.Namespace) -> int:
    """Train, print where the pair lies, and say how well it retrieves."""
    config = build(_settings(), vars(args), args.config)
    hide_loading_bars()
    with ending_at_sigterm():
        folder = importlib.import_module("captune.training.encoder.train").run(config).path
    from captune.models.encoders.pair import read_config

    recall = read_config(folder).recall
    echo(f"done: {recall.sentence if recall else folder}")
    print(f"encoder: {folder}")
    return 0


COMMAND = Command(
    summary="train heads that make a CLIP of two frozen encoders",
    description="`captune encoder train` trains two small heads, contrastively, that bring a frozen image encoder and "
    "a frozen text encoder together. The folder loads wherever a CLIP does (clip:FOLDER, self_retrieval:FOLDER, "
    "corpora), and states its recall on images that it has not seen. The same command resumes a stopped training.",
    example="captune encoder train --images captions.txt --image-encoder efficientnet-lite2 --output runs/pair",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
