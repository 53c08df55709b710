"""`captune report`: run directories, caption files, or a curated set, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli.command import Command
from captune.errors import UsageError
from captune.utils.files import output_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directories, or caption files and folders of captions, in the order of the page; or the folder of a "
        "curated set",
    )
    parser.add_argument("--images", metavar="SOURCE", help="the images of caption files, and references (see below)")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    output = output_path(args.output, ".html", ".htm", what="reports")
    for path in args.runs:
        if not path.exists():
            raise UsageError(
                f"{path} is neither a run directory, such as `captune vizer --output FOLDER` writes, nor a caption file"
            )
    from captune.data.caption_formats import holds_captions
    from captune.report import curation, render, render_files
    from captune.report.reading import is_run

    folders = [
        path
        for path in args.runs
        if path.is_dir() and (is_run(path) or curation.is_curated(path) or not holds_captions(path))
    ]
    if folders and len(folders) < len(args.runs):
        raise UsageError(f"{folders[0]} is a run directory, and others are caption files: make a page of each kind")
    if folders and args.images is not None:
        raise UsageError("--images is for caption files: a run directory names its source itself")
    if curated := [path for path in folders if curation.is_curated(path)]:
        if len(args.runs) > 1:
            raise UsageError(f"{curated[0]} is a curated set, which has a page of its own: name it alone")
        print(curation.render(curated[0], output))
        return 0
    print(render(args.runs, output) if folders else render_files(args.runs, output, source=args.images))
    return 0


COMMAND = Command(
    summary="make one HTML page out of run directories, of caption files, or of a curated set",
    description="Writes one self-contained page: example captions side by side, scores with intervals, and of runs "
    "training curves and settings. Of caption files the first is what the others are compared with; they are scored "
    "by bleu, rouge, cider and health where --images has references, by health alone otherwise. Of a folder of "
    "`captune curate` the page shows what went where, with examples of each decision, and scores before and after.",
    example="captune report runs/g runs/sft --output report.html",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
