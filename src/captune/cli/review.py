"""`captune review`: a local page on which people correct, accept and reject captions."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from captune.cli.command import Command, add_serving_flags, echo, hide_loading_bars
from captune.errors import CaptionFileError, UsageError
from captune.utils.files import output_path, refuse_missing
from captune.utils.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune review`."""
    parser.add_argument("images", metavar="SOURCE", help="where the images are (see below)")
    parser.add_argument(
        "captions", type=Path, metavar="FILE", help="the caption file, JSON lines; it is changed as people edit"
    )
    parser.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="FILE",
        help="scores and flags to filter and sort by: what captune evaluate --per-image wrote, or any .csv, .jsonl or "
        ".parquet with image_id and columns of numbers or truths; may be given several times",
    )
    parser.add_argument(
        "--scorers",
        metavar="A,B",
        help="score the captions first, by these; `captune scorers` lists them. References are those of SOURCE",
    )
    parser.add_argument(
        "--export",
        metavar="FILE",
        help="show no page: write the accepted and corrected captions as a file of references (.jsonl) and end",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --export")
    add_serving_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted, or write the references."""
    from captune.scorers import known, split_specs

    specs = split_specs(args.scorers or "")
    if args.scorers is not None and not specs:
        raise UsageError("--scorers names no scorer; `captune scorers` lists them")
    for spec in specs:
        known(spec)
    refuse_missing(args.scores)
    if args.captions.is_dir():
        raise UsageError(
            f"{args.captions} is a folder: name the source of the images first, then the caption file; captions in "
            f"sidecars become one with: captune convert {args.captions} captions.jsonl --images {args.images}"
        )
    if args.overwrite and args.export is None:
        raise UsageError("--overwrite goes with --export FILE; captions are changed on the page")
    if args.export is not None:
        return _write_references(args)
    from captune.annotation import web  # first: without its packages nothing else is loaded
    from captune.annotation.edits import Edits
    from captune.annotation.review import Review, add_scores, columns_of, site

    images = web.ImagesById(args.images)
    with Edits(args.captions) as edits:
        if not edits.captions:
            raise CaptionFileError(f"{args.captions} holds no captions")
        columns = columns_of(edits, args.scores)
        if specs:
            add_scores(columns, _scored(args, specs), edits, "--scorers")
        review = Review(edits, images, columns)
        for notice in edits.notices:
            echo(f"captune: {notice}")
        web.serve(site(review), host=args.host, port=args.port, announce=lambda link: _announce(args, review, link))
    echo(f"done: {args.captions} has every correction; who changed what is in {edits.journal}")
    return 0


def _announce(args: argparse.Namespace, review: Any, link: str) -> None:
    counts = ", ".join(f"{count:,} {state}" for state, count in review.edits.counts().items() if count)
    echo(f"{counted(len(review.ids), 'caption')}: {counts}. Open the page in a browser; Ctrl-C ends it:")
    print(link, flush=True)


def _scored(args: argparse.Namespace, specs: list[str]) -> list[dict[str, Any]]:
    """Every caption with its scores."""
    from captune.data import load_references
    from captune.evaluation.run import evaluate_files

    hide_loading_bars()
    referenced = any(load_references(args.images).values())
    result = evaluate_files(
        [args.captions],
        references=args.images if referenced else None,
        images=args.images,
        scorers=specs,
        bootstrap=0,
        per_image=True,
    )
    for sentence in (*result["warnings"], *(f"{spec} failed: {why}" for spec, why in result["failed"].items())):
        echo(f"captune: {sentence}")
    rows: list[dict[str, Any]] = result["per_image"]
    return rows


def _write_references(args: argparse.Namespace) -> int:
    from captune.annotation.edits import Reviewed
    from captune.annotation.pairs import write_references

    path = output_path(args.export, ".jsonl", what="references")
    if path.exists() and not args.overwrite:
        raise UsageError(f"{path} is there already; pass --overwrite to replace it")
    reviewed = Reviewed(args.captions)
    count, folder = write_references(reviewed, path, images=args.images)
    left = len(reviewed.captions) - count
    echo(f"{counted(count, 'accepted or corrected caption')} written into {path}; {left:,} open or rejected left out")
    if folder is None:
        echo(f"the images of {args.images} are in no files of their own: {path} serves as references, not to train on")
    source = str(path) if folder is None else f"{path}?images={quote(folder)}"
    print(shlex.join(["captune", "evaluate", str(args.captions), "--references", source]))
    return 0


COMMAND = Command(
    summary="correct, accept and reject captions on a local page",
    description="Shows the captions of a file beside their images, on a page of this machine: search and filter, "
    "correct a caption in place, accept or reject it, by keyboard, several people by name, with undo and a history. An "
    "edit is on the disk before the page says so; the file is changed in one step. `captune pairs` makes preference "
    "pairs of what was corrected.",
    example="captune review photos captions.jsonl --scorers clip,length",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
