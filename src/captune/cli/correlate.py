"""`captune correlate`: scorers against human judgements of captions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from captune.cli.command import Command, add_scoring_flags, echo, hide_loading_bars, number
from captune.errors import UsageError
from captune.utils.files import output_path

SCORERS = "bleu,rouge,cider,length"
SHOWN = 20  # lines of a file that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune correlate`."""
    parser.add_argument(
        "judgements",
        type=Path,
        help="Flickr8k's ExpertAnnotations.txt or CrowdFlowerAnnotations.txt, CapArena's or FOIL's JSON, CLIPScore's "
        "JSON, Pascal-50S's folder, the votes of captune arena, or a CSV or JSONL file of your own "
        "(docs/human-judgements.md)",
    )
    parser.add_argument(
        "--scorers",
        default=SCORERS,
        metavar="A,B",
        help=f"comma-separated, or all; `captune scorers` lists them (default: {SCORERS})",
    )
    parser.add_argument(
        "--captions",
        nargs="+",
        default=[],
        metavar="FILE",
        help="where captions and references are, when the judgements name them by image: Flickr8k.token.txt, "
        "captions.txt, captions_val2014.json; several files of different images are read as one",
    )
    parser.add_argument("--images", metavar="SOURCE", help="where the images are, for scorers that look at them")
    parser.add_argument(
        "--published",
        default="auto",
        metavar="FILE",
        help="published figures to show beside ours: YAML, JSON or CSV with label, scorer, figure, value, source; "
        "none: show none (default: those that come with captune for the data)",
    )
    parser.add_argument(
        "--primary",
        choices=("tau_b", "tau_c", "spearman", "pairwise_accuracy", "agreement"),
        help="the figure that ranks and is tested (default: the one that papers print for the data)",
    )
    parser.add_argument(
        "--every-figure", action="store_true", help="a row for each figure of a scorer: BLEU-1, precision ..."
    )
    parser.add_argument(
        "--max-references",
        type=number(int, 1, 10_000),
        metavar="N",
        help="sample so many references of each caption (default: all; 5 for Pascal-50S)",
    )
    add_scoring_flags(parser, "resamples of images for intervals and tests")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result as an HTML page")


def run(args: argparse.Namespace) -> int:
    """Print the ranking; 1 where a scorer failed or an image could not be opened."""
    from captune.scorers import known, split_specs

    if not split_specs(args.scorers):
        raise UsageError(f"--scorers names no scorer; `captune scorers` lists them, and the default is {SCORERS}")
    for spec in split_specs(args.scorers) if args.scorers.strip() != "all" else ():
        known(spec)
    page = output_path(args.output, ".html", ".htm", what="pages") if args.output is not None else None
    from captune.evaluation.human import correlate, table

    hide_loading_bars()
    result = correlate(
        args.judgements,
        scorers=split_specs(args.scorers),
        captions=args.captions,
        images=args.images,
        published=None if args.published == "none" else args.published,
        primary=args.primary,
        every_figure=args.every_figure,
        max_references=args.max_references,
        bootstrap=args.bootstrap,
        seed=args.seed,
        cache=None if args.no_cache else args.cache,
    )
    problems = result["problems"]
    more = [f"and {len(problems) - SHOWN:,} more such lines"] * (len(problems) > SHOWN)
    for sentence in (*problems[:SHOWN], *more, *result["warnings"]):
        echo(f"warning: {sentence}")
    print(json.dumps(result, ensure_ascii=False, indent=1) if args.json else table(result))
    for spec, why in result["failed"].items():
        echo(f"{spec} failed: {why}")
    if page is not None:
        from captune.report.correlation import render

        echo(str(render(result, page)))
    return 1 if result["failed"] or result["bad_images"] else 0


COMMAND = Command(
    summary="rank scorers by their agreement with human judgements",
    description="Compares scorers with what people said about captions: Kendall's tau-b and tau-c, Spearman's rho and "
    "pairwise accuracy, with bootstrap intervals over images, tests between scorers and published figures beside ours.",
    example="captune correlate ExpertAnnotations.txt --captions captions.txt --scorers bleu,rouge,cider,sbert",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
