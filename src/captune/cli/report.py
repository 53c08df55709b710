"""`captune report`: run directories as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli.command import Command
from captune.errors import UsageError
from captune.utils.files import output_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune report`."""
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, in the order of the page")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from captune.report import render

    for folder in args.runs:
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a run directory, such as `captune vizer --output FOLDER` writes")
    print(render(args.runs, output_path(args.output, ".html", ".htm", what="reports")))
    return 0


COMMAND = Command(
    summary="make one HTML page out of run directories",
    description="Writes one self-contained page: example captions side by side, scores with intervals, training curves "
    "and settings.",
    example="captune report runs/g runs/sft --output report.html",
    add_arguments=add_arguments,
    run=run,
)
