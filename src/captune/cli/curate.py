"""`captune curate`: a captioned set in, a better one out; and each operation as a verb of its own."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from captune.cli.command import COUNT, SEVERAL, Command, echo, hide_loading_bars, print_table
from captune.cli.config import add_fields, build
from captune.curation.registry import OPERATIONS, SUMMARIES
from captune.errors import UsageError
from captune.inference.engines import ray_engine
from captune.utils.registry import nearest
from captune.utils.wording import counted


def _add_common(parser: argparse.ArgumentParser, *, engine: bool = True) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the curated set and its record")
    parser.add_argument("--limit", type=COUNT, metavar="N", help="use only the first N images")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="jsonl, parquet, coco, csv, tsv, metadata or webdataset (default: jsonl where the images are files, which "
        "are named and not copied, else parquet, which holds them)",
    )
    parser.add_argument(
        "--workers",
        type=SEVERAL,
        metavar="N",
        help="processes that share scoring, encoding and captioning (default: 1; with Ray one for each GPU, else 2)",
    )
    if engine:
        parser.add_argument("--engine", choices=["process", "ray"], help="ray: the workers are those of Ray")
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of a Ray cluster, or auto (default: this machine)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best available)")
    parser.add_argument("--overwrite", action="store_true", help="replace another curation in --output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune curate`."""
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="images with captions (see below)")
    parser.add_argument(
        "--steps",
        type=Path,
        required=True,
        metavar="FILE",
        help="a YAML list of operations with their settings, such as '- filter: {by: clip, keep: 0.3}'",
    )
    _add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Apply the steps of a file."""
    from captune.curation.registry import read_steps

    if len(args.source) > 1:
        raise UsageError(nearest(args.source[0], OPERATIONS, "operation"))
    return _curate(args.source[0], read_steps(args.steps), args, args.engine)


def _run_operation(name: str, kind: Any, args: argparse.Namespace) -> int:
    flags, engine = vars(args), getattr(args, "engine", None)
    if _has_engine(kind):
        by_ray, own = ray_engine(engine)
        flags, engine = {**flags, "engine": own}, "ray" if by_ray else None
    return _curate(args.source, [(name, build(kind, flags))], args, engine)


def _has_engine(kind: Any) -> bool:
    """Whether an operation has an engine of its own, as `rewrite` has; its flag names Ray, too."""
    return "engine" in {field.name for field in dataclasses.fields(kind)}


def _curate(source: str, steps: list[tuple[str, Any]], args: argparse.Namespace, engine: str | None) -> int:
    from captune.curation.run import curate

    hide_loading_bars()
    report = curate(
        source,
        args.output,
        steps,
        limit=args.limit,
        format=args.format,
        engine=engine or "process",
        workers=args.workers,
        address=args.ray_address,
        device=args.device,
        overwrite=args.overwrite,
    )
    _say(report, args.output)
    return 0


def _say(report: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    table = Table("step", "in", "keep", "drop", "change", "move", "split", "out", "images", box=None, pad_edge=False)
    for record in report["records"]:
        counts = [record[key] for key in ("captions in", "keep", "drop", "change", "move", "split", "captions out")]
        table.add_row(record["step"], *(f"{count:,}" for count in (*counts, record["images out"])))
    print_table(table)
    for record in report["records"]:
        for reason, count in record["reasons"].items():
            echo(f"{record['step']}: {count:,} {reason}")
    if without := report["in"]["images without a caption"]:
        echo(f"not in the set: {counted(without, 'image')} of the source without a caption")
    if "no images" in report["in"]:
        echo(f"captune: the set names no images ({report['in']['no images']})")
    root = report["out"].get("image folder")
    print(f"set: {folder / report['out']['file']}{f'?images={quote(root)}' if root else ''}")


def operation(name: str) -> Command:
    """Return the command of one operation.

    Args:
        name: of the registry.
    """
    kind = OPERATIONS[name]
    lines = (kind.__doc__ or "").strip().splitlines()

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("source", metavar="SOURCE", help="images with captions (see below)")
        _add_common(parser, engine=not _has_engine(kind))
        add_fields(parser, kind)

    return Command(
        summary=lines[0] if lines else "",
        description=" ".join(line.strip() for line in lines)
        + " One step of `captune curate`; every caption that it changes or drops is kept in decisions/, with the "
        "reason.",
        example=kind.example,
        add_arguments=add,
        run=partial(_run_operation, name, kind),
        reads_sources=True,
    )


COMMAND = Command(
    summary="filter, de-duplicate, reassign, rewrite, level and split the captions of a set",
    description="Applies a list of steps to the captions of a source and writes what is left as a source again, with "
    "a record of what became of every caption and why. The same command resumes what was stopped. Each operation is a "
    "verb of its own, `captune curate OPERATION SOURCE`: "
    + "; ".join(f"{name}: {summary[0].lower()}{summary[1:].rstrip('.')}" for name, summary in SUMMARIES.items())
    + ".",
    example="captune curate storybook:train?caption=alt_text --steps steps.yaml --output runs/curated",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
