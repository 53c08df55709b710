"""`captune arena`: blind battles between caption files, on a local page."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli.command import SEED, Command, add_serving_flags, echo, number, print_table
from captune.errors import UsageError
from captune.utils.files import output_path, replace_file
from captune.utils.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune arena`."""
    parser.add_argument("captions", nargs="*", type=Path, metavar="FILE", help="caption files, two or more")
    parser.add_argument("--images", metavar="SOURCE", help="where the images are (see below)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where votes are kept (default: arena.sqlite beside the first file)"
    )
    parser.add_argument(
        "--guidelines", type=Path, metavar="FILE", help="Markdown that raters are shown (default: ours)"
    )
    parser.add_argument(
        "--battles",
        type=number(int, 1, 10**6),
        metavar="N",
        help="for each rater (default: as many as there are images)",
    )
    parser.add_argument(
        "--repeat", action="store_true", help="show an image to a rater again, with two other captions of it"
    )
    parser.add_argument(
        "--overlap",
        type=number(float, 0, 1),
        default=0.2,
        metavar="SHARE",
        help="of a rater's battles that others judge too, which says how far raters agree (default: 0.2)",
    )
    parser.add_argument(
        "--rater-model",
        metavar="SPEC",
        help="let a model judge, as the scorer `preference` does, in place of the page: a model's name, a server, "
        "or storybook; a second run resumes",
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="print the results of a file of votes; no page")
    parser.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="of --results (default: table)"
    )
    parser.add_argument("--export", metavar="FILE", help="with --results: write every vote to this .csv")
    parser.add_argument("--seed", type=SEED, metavar="N", help="of sides and choices (default: others each time)")
    add_serving_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted, let a model judge, or print results."""
    if args.results is not None:
        return _print_results(args)
    if len(args.captions) < 2:
        raise UsageError("an arena needs two caption files or more: captune arena a.jsonl b.jsonl --images SOURCE")
    if args.images is None:
        raise UsageError("say where the images are: --images SOURCE")
    if args.export is not None:
        raise UsageError("--export goes with --results FILE; the page has votes.csv")
    if args.guidelines is not None and not args.guidelines.is_file():
        raise UsageError(f"--guidelines: {args.guidelines} is no file")
    output = args.output or args.captions[0].parent / "arena.sqlite"
    output = output_path(output, ".sqlite", ".db", what="votes")
    from captune.annotation import web  # first: without its packages nothing else is loaded
    from captune.annotation.arena import Arena, guidelines_of, rate, read_systems, site
    from captune.annotation.battles import Battles

    guidelines = guidelines_of(args.guidelines)
    images = web.ImagesById(args.images)
    systems, said = read_systems(args.captions, images)
    arena = Arena(
        Battles(output),
        systems,
        images,
        repeat=args.repeat,
        most=args.battles,
        overlap=args.overlap,
        seed=args.seed,
    )
    for sentence in said + arena.notes():
        echo(f"captune: {sentence}")
    if args.rater_model is not None:
        cast = rate(arena, args.rater_model)
        echo(f"captune: {counted(cast, 'vote')}, kept in {output}; captune arena --results {output}")
        return 0
    web.serve(
        site(arena, guidelines),
        host=args.host,
        port=args.port,
        announce=lambda link: print(
            f"The arena is open: {link}\nVotes are kept in {output}. Ctrl-C ends it.", flush=True
        ),
    )
    echo(f"captune: the votes are in {output}; captune arena --results {output}")
    return 0


def _print_results(args: argparse.Namespace) -> int:
    if args.captions or args.images or args.rater_model:
        raise UsageError("--results FILE prints what a file holds: leave out caption files, --images and --rater-model")
    export = None if args.export is None else output_path(args.export, ".csv", what="votes")
    import json

    from captune.annotation.battles import Battles, as_csv
    from captune.annotation.results import as_csv as rows_as_csv
    from captune.annotation.results import results, tables

    battles = Battles(args.results, new=False)
    if export is not None:
        replace_file(export, as_csv(battles.judgements()))
    found = results(battles)
    if args.format == "json":
        print(json.dumps(found, ensure_ascii=False, indent=1))
    elif args.format == "csv":
        print(rows_as_csv(found), end="")
    else:
        for table in tables(found):
            print_table(table)
    for note in found["notes"]:
        echo(f"captune: {note}")
    return 0


COMMAND = Command(
    summary="let people judge captions, two at a time and blind, on a local page",
    description="Serves a page on this machine that shows an image with two captions and asks which is better; whose "
    "they are is hidden. The next battle is the one that tells most. Results: strengths with intervals, length beside "
    "them, and how far raters agree. `captune correlate` reads the file of votes. Needs captune[annotate].",
    example="captune arena a.jsonl b.jsonl --images photos",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
