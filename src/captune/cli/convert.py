"""`captune convert`: captions from one format into another."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli.command import Command, echo
from captune.errors import UsageError

NAMES = "jsonl, coco, csv, parquet, metadata, webdataset or sidecars"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune convert`."""
    parser.add_argument(
        "captions",
        type=Path,
        metavar="FILE",
        help="a caption file of any format, or a folder with sidecars or metadata; with --images, of sidecars alone",
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="the file to write: .jsonl, .ndjson, .json (COCO results), .csv, .tsv, .parquet, metadata.jsonl, "
        "metadata.csv, .tar; - for standard output; or, with --format sidecars, a folder",
    )
    parser.add_argument("--from", dest="source_format", metavar="NAME", help=f"{NAMES} (default: by the file)")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="of the output, likewise; of a stream jsonl, csv, tsv, or text: a caption per line",
    )
    parser.add_argument(
        "--images",
        metavar="SOURCE",
        help="the images: .tar holds them, metadata names their files, sidecars stand in a tree like theirs; "
        "captions that are read from one of these get the ids of SOURCE",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args: argparse.Namespace) -> int:
    """Convert the captions."""
    from captune.data.caption_formats import output_format

    sidecars = args.format == "sidecars" or (args.format is None and Path(args.output).is_dir())
    chosen = None if sidecars else output_format(args.output, args.format)
    if not sidecars and chosen is not None and Path(args.output).exists() and not args.overwrite:
        raise UsageError(f"{args.output} is there already; pass --overwrite to replace it")
    if (sidecars or (chosen is not None and chosen.name == "webdataset")) and args.images is None:
        raise UsageError("say where the images are: --images SOURCE")
    from captune.inference.convert import convert

    report = convert(
        args.captions,
        args.output,
        source_format=args.source_format,
        format="sidecars" if sidecars else args.format,
        images=args.images,
        overwrite=args.overwrite,
    )
    echo(report)
    return 0


COMMAND = Command(
    summary="convert captions from one file format into another",
    description="Reads captions of any format that captune reads and writes them in any other, in one step: what is "
    "there is replaced with --overwrite only. No caption is changed; what a format cannot hold is said.",
    example="captune convert caps.jsonl photos/metadata.jsonl --images photos",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
