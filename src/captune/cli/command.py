"""What every command of the command line is made of, and how it speaks.

Answers go to stdout, progress and warnings to stderr. A command imports what it needs when it runs, so that no command
waits for another's libraries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from captune.errors import redact

if TYPE_CHECKING:
    from rich.table import Table

SOURCES = """
Images and references are named by a source: a folder (searched recursively), a COCO or Karpathy JSON file,
Flickr8k/30k text or CSV, JSONL, parquet, webdataset shards, the name of a dataset on the Hugging Face hub, or the
embedded world: storybook:train, :unlabelled, :val, :test, :ood. storybook:test?n=500&seed=92 draws 500 new images;
quote it in a shell."""


class Command(NamedTuple):
    """One verb of the command line.

    Attributes:
        summary: one line for `captune --help`.
        description: a paragraph for the command's own help.
        example: a whole command line.
        add_arguments: declares the flags.
        run: does the work and returns the exit code.
        reads_sources: whether the help ends with what a SOURCE is.
    """

    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], Any]
    run: Callable[[argparse.Namespace], int]
    reads_sources: bool = False


def number(kind: type, at_least: float, at_most: float) -> Callable[[str], Any]:
    """Return what reads a flag's number, and refuses one that is out of range, infinite, or written oddly."""

    def read(text: str) -> Any:
        from pydantic import Field

        from captune.utils.spec import convert

        try:
            return convert(text, Annotated[kind, Field(ge=at_least, le=at_most)])
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from problem

    return read


# The upper ends are far beyond what anyone uses: they catch a slip before it costs a day.
COUNT = number(int, 1, 10**9)  # of images
SEVERAL = number(int, 1, 10_000)  # of what is in memory at once
SEED = number(int, 0, 2**32 - 1)
CACHE = "~/.cache/captune/scores"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_scoring_flags(parser: argparse.ArgumentParser, resamples: str) -> None:
    """Declare the flags of what scores captions: resampling, its seed, and the cache.

    Args:
        parser: receives the flags.
        resamples: what `--bootstrap` counts.
    """
    parser.add_argument(
        "--bootstrap",
        type=number(int, 0, 100_000),
        default=1000,
        metavar="N",
        help=f"{resamples} (default: 1000)",
    )
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="random seed of the resampling (default: 0)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(CACHE),
        metavar="FOLDER",
        help=f"keeps the results of costly scorers, by content (default: {CACHE})",
    )
    parser.add_argument("--no-cache", action="store_true", help="score everything again and keep nothing")


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of what serves a page."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to serve; at an address that other machines reach, the link holds a token (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=number(int, 0, 65535), default=0, metavar="N", help="(default: a free one)")


def echo(sentence: str) -> None:
    """Print something for the person, not for a pipe."""
    print(redact(sentence), file=sys.stderr)


def print_table(table: Table) -> None:
    """Print a table of rich: as wide as the terminal, or unwrapped and without colours where stdout is no terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 1000, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def hide_loading_bars() -> None:
    """Hide transformers' bars for reading and writing weights; those of downloads, training and captioning stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
