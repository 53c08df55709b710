"""`captune merge`: an adapter written into its base model's weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli.command import DTYPES, Command, echo, hide_loading_bars
from captune.errors import UsageError
from captune.utils.files import output_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune merge`."""
    parser.add_argument("--model", required=True, help="the base: a folder, a name on the hub, or storybook")
    parser.add_argument("--adapter", type=Path, required=True, metavar="FOLDER", help="such as runs/g/adapter")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the model folder to write")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="precision of the weights (default: auto, as saved)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


def run(args: argparse.Namespace) -> int:
    """Merge and print the folder."""
    from captune.models.captioner import Captioner

    folder = output_path(args.output, what="merged models", folder=True)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and a merged model is a folder of its own: name another --output")
    hide_loading_bars()
    captioner = Captioner.load(
        args.model, adapter=args.adapter, dtype=args.dtype, device="cpu", trust_remote_code=args.trust_remote_code
    )
    folder = captioner.merge(args.output)
    echo(f"done: {args.model} with {args.adapter} merged")
    print(f"model: {folder}")
    return 0


COMMAND = Command(
    summary="write an adapter into its model's weights",
    description="Merges a PEFT adapter into its base model and writes an ordinary transformers folder: "
    "from_pretrained and servers such as vLLM load it without PEFT. On the CPU; it needs memory for the whole model.",
    example="captune merge --model storybook --adapter runs/g/adapter --output models/mine",
    add_arguments=add_arguments,
    run=run,
)
