"""`captune evaluate`: caption files against references and images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from captune.cli.command import Command, add_scoring_flags, echo, hide_loading_bars
from captune.errors import UsageError
from captune.utils.files import output_path

SCORERS = "bleu,rouge,cider,health"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune evaluate`."""
    parser.add_argument(
        "captions",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="caption files of any format that captune convert reads, and folders of captions",
    )
    parser.add_argument("--references", metavar="SOURCE", help="where the references are (see below)")
    parser.add_argument(
        "--images",
        metavar="SOURCE",
        help="where the images are, when --references has none; captions in sidecars, metadata and .tar get its ids",
    )
    parser.add_argument(
        "--scorers",
        metavar="A,B",
        help="comma-separated, or all; `captune scorers` lists them, and weighted sums such as 'cider + 0.5*rouge' are "
        f"scorers too (default: {SCORERS}; health alone where there are no references)",
    )
    parser.add_argument("--paired", action="store_true", help="test each further file against the first, by image")
    add_scoring_flags(parser, "resamples for intervals and paired tests: no p-value is below 1 / (N + 1)")
    parser.add_argument(
        "--format",
        choices=("table", "markdown", "latex", "csv", "json"),
        default="table",
        help="what is printed (default: table)",
    )
    parser.add_argument("--json", action="store_true", help="--format json")
    parser.add_argument(
        "--per-image", metavar="FILE", help="write every caption with its own scores: .csv, .jsonl or .parquet"
    )


def run(args: argparse.Namespace) -> int:
    """Score the files and print the result; 1 where a scorer failed or an image could not be opened."""
    from captune.scorers import known, split_specs

    if args.paired and len(args.captions) < 2:
        raise UsageError("--paired needs at least two caption files: captune evaluate a.jsonl b.jsonl --paired ...")
    if args.scorers is None:
        args.scorers = SCORERS if args.references is not None else "health"
        if args.references is None:
            echo(f"captune: without --references only health is measured; with them, {SCORERS}")
    if not split_specs(args.scorers):
        raise UsageError(f"--scorers names no scorer; `captune scorers` lists them, and the default is {SCORERS}")
    for spec in split_specs(args.scorers) if args.scorers.strip() != "all" else ():
        known(spec)
    if args.per_image is not None:
        output_path(args.per_image, ".csv", ".jsonl", ".parquet", what="scores")
    from captune.evaluation import table as printed
    from captune.evaluation.run import evaluate_files

    hide_loading_bars()
    result = evaluate_files(
        args.captions,
        references=args.references,
        images=args.images,
        scorers=split_specs(args.scorers),
        bootstrap=args.bootstrap,
        seed=args.seed,
        paired=args.paired,
        cache=None if args.no_cache else args.cache,
        per_image=args.per_image is not None,
    )
    if args.per_image is not None:
        printed.write_rows(result.pop("per_image"), args.per_image)
    for warning in result["warnings"]:
        echo(f"warning: {warning}")
    chosen = "json" if args.json else args.format
    if chosen == "json":
        print(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        print(printed.FORMATS[chosen](result))
    for spec, why in result["failed"].items():
        echo(f"{spec} failed: {why}")
    return 1 if result["failed"] or result["bad_images"] else 0


COMMAND = Command(
    summary="score caption files, with intervals and paired tests",
    description="Scores captions, made by captune or by anything else, against references and images. Captions and "
    "references are matched by image_id; what does not match is reported. An image without a reference is left out of "
    "the scorers that need references, and named.",
    example="captune evaluate caps.jsonl --references storybook:test --scorers cider,storybook,clip",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
