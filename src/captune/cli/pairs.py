"""`captune pairs`: preference pairs out of reviewed captions, an arena's votes, or scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli.command import Command, echo, number
from captune.errors import UsageError
from captune.utils.files import output_path
from captune.utils.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune pairs`."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="captions that were reviewed, an arena's .sqlite, a table of scores (with --by), or pairs; several are "
        "taken together",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help=".jsonl, or .parquet, which holds the images")
    parser.add_argument(
        "--images", metavar="SOURCE", help="where the images are (see below); without it, none are named"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the text beside the image (default: Describe this image.)")
    parser.add_argument(
        "--by", metavar="COLUMN", help="of a table of captune evaluate --per-image: the scorer that decides"
    )
    parser.add_argument(
        "--margin",
        type=number(float, 0, 1e12),
        default=0.0,
        metavar="X",
        help="with --by: the least difference that makes a pair (default: any)",
    )
    parser.add_argument(
        "--better", choices=("higher", "lower"), help="with --by: which scores are (default: as the scorer declares)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def run(args: argparse.Namespace) -> int:
    """Write the pairs."""
    path = output_path(args.output, ".jsonl", ".parquet", what="pairs")
    if path.exists() and not args.overwrite:
        raise UsageError(f"{path} is there already; pass --overwrite to replace it")
    if args.by is None and (args.margin or args.better):
        raise UsageError("--margin and --better go with --by COLUMN")
    from captune.annotation.pairs import PROMPT, check_images, pairs_of, write_pairs

    check_images(args.images, path)
    pairs = pairs_of(args.files, by=args.by, margin=args.margin, better=args.better)
    count = write_pairs(pairs, path, images=args.images, prompt=PROMPT if args.prompt is None else args.prompt)
    echo(f"{counted(count, 'pair')} written into {path}")
    if args.images is None:
        echo("captune: they name no images, which training a captioner needs: add --images SOURCE")
    return 0


COMMAND = Command(
    summary="preference pairs of reviewed captions, an arena's votes, or scores",
    description="Writes pairs of a chosen and a rejected caption of an image in the preference format that TRL's "
    "trainers read: what was corrected over what it was before, the winner of a battle over the loser, the caption "
    "with the best score over the one with the worst.",
    example="captune pairs captions.jsonl arena.sqlite --images photos --output pairs.parquet",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
