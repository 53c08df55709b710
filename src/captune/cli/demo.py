"""`captune demo`: the main job on the embedded default, from the first caption to the report.

Every step is one that the command line offers for any model and any images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.cli.command import SEED, Command, hide_loading_bars, print_table
from captune.utils.files import output_path

if TYPE_CHECKING:
    from rich.table import Table

    from captune.runs import RunDir

DEFAULTS = {
    "model": "storybook",
    "unlabelled": "storybook:unlabelled",
    "labelled": "storybook:train",
    "test": "storybook:test?n=500&seed=91",
}
# Of zero-label training; the preset has more of each, but a demonstration should take minutes.
SHORT = {"rounds": 1, "max_steps": 30, "mapper_samples": 2}
# The rows of four controls, a copy of studies/vizer/results/controls.json: to train them takes longer than a demo may.
CONTROLS = Path(__file__).with_name("demo_controls.json")

# The printed table: scorer, figure. The report has every figure.
COLUMNS = (
    ("cider", "cider"),
    ("bleu", "bleu_4"),
    ("rouge", "rouge"),
    ("clip", "clip"),
    ("vizer", "vizer"),
    ("storybook", "fact_f1"),
    ("storybook", "hallucinated_per_fact"),
    ("health", "length"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune demo`."""
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="for the runs (default: runs/demo)"
    )
    parser.add_argument("--seed", type=SEED, default=7, metavar="N", help="random seed of the training (default: 7)")
    for flag, name, metavar, text in (
        ("--model", "model", "MODEL", "the captioner"),
        ("--images", "unlabelled", "SOURCE", "unlabelled images to learn from"),
        ("--labelled", "labelled", "SOURCE", "images with references, for ViZer_GT's mapper and for supervision"),
        ("--test", "test", "SOURCE", "images with references to evaluate on"),
    ):
        default = DEFAULTS[name]
        parser.add_argument(flag, dest=name, default=default, metavar=metavar, help=f"{text} (default: {default})")


def run(args: argparse.Namespace) -> int:
    """Train and evaluate, then print the table, the minutes it took and the path of the report."""
    output_path(args.output, what="runs", folder=True)
    hide_loading_bars()
    started = time.perf_counter()
    rows, page = demo(args.output, seed=args.seed, **{name: getattr(args, name) for name in DEFAULTS})
    print_table(table(rows))
    print(note(rows), end="")
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes; the report: {page.resolve()}")
    return 0


def demo(
    output: Path, *, model: str, unlabelled: str, labelled: str, test: str, seed: int
) -> tuple[list[dict[str, Any]], Path]:
    """Run everything below `output`.

    Args:
        output: receives a run directory per training, the scores and the report.
        model: the captioner to improve.
        unlabelled: the source that zero-label training learns from.
        labelled: the source with references for ViZer_GT's mapper and for supervision.
        test: the source to evaluate on.
        seed: of the training.

    Returns:
        The rows of scores.json and the path of the report.
    """
    from captune.data.schemes import scheme_of
    from captune.evaluation.run import evaluate_files
    from captune.report import render
    from captune.runs import RunDir

    common = {"model": model, "seed": seed, "eval_images": test}
    # 1. Improve the captioner: with unlabelled images; with a mapper fitted on references; by plain supervision.
    #    Each run ends by captioning `test`, before and after.
    zero = train("vizer", output / "vizer", **common, images=unlabelled, **SHORT)
    gt = train("vizer", output / "vizer-gt", **common, images=unlabelled, preset="paper", mapper_captions=labelled)
    supervised = train("sft", output / "sft", **common, images=labelled)

    # 2. Score all of them side by side, with the zero-label run's mapper too, and put the report together.
    systems = {name: run for run in (supervised, gt, zero) for name in captioned(run)}  # the base's comes from zero
    order = sorted(systems, key=lambda name: (name != "base", systems[name] is not zero, systems[name] is not gt))
    files = [systems[name].path / captioned(systems[name])[name]["captions"] for name in order]
    scorers = ["cider", "bleu", "rouge", *sorted(scheme_of(test).scorers), "health", f"vizer:{zero.mapper}"]
    scored = evaluate_files(files, references=test, images=test, scorers=scorers)
    together = RunDir(output).start({"method": "demo", **common}, overwrite=True)
    for name, file, report in zip(order, files, [scored, *scored["others"]], strict=True):
        row = captioned(systems[name])[name]
        scores = {spec.partition(":")[0]: score for spec, score in report["scores"].items()}
        together.add_scores(
            name,
            scores,
            role=row.get("role"),
            source=test,
            captions=file,
            images_per_second=row.get("images_per_second"),
        )
    if {"model": model, "unlabelled": unlabelled, "labelled": labelled}.items() <= DEFAULTS.items():
        for row in controls():
            together.add_scores(row["name"], row["scores"], role="control", source=row["source"])
    page = render([output, zero.path, gt.path, supervised.path], output / "report.html")
    return together.scores()["rows"], page


def train(method: str, output: Path, **settings: Any) -> RunDir:
    """Run a method with its default settings, as `captune METHOD` does."""
    from captune.cli.config import build
    from captune.cli.train import METHODS

    chosen = METHODS[method]
    return chosen.run(build(chosen.config, {"output": output, "overwrite": True, **settings}, presets=chosen.presets))


def captioned(run: RunDir) -> dict[str, dict[str, Any]]:
    """Return the rows of a run's scores.json by name."""
    return {row["name"]: row for row in run.scores()["rows"]}


def controls() -> list[dict[str, Any]]:
    """Return the rows of the four controls, with the source that each was evaluated on."""
    content = json.loads(CONTROLS.read_text(encoding="utf-8"))
    return [{"source": content.get("source"), **row} for row in content["rows"]]


def table(rows: list[dict[str, Any]]) -> Table:
    """Make the printed table; a star marks a control."""
    from rich.table import Table

    from captune.scorers.registry import label

    made = Table("", box=None, pad_edge=False)
    for heading in (*(label(scorer, figure) for scorer, figure in COLUMNS), "images/s"):
        made.add_column(heading, justify="right")
    for row in rows:
        cells = [row["name"] + (" *" if row.get("role") == "control" else "")]
        for scorer, figure in COLUMNS:
            value = row["scores"].get(scorer, {}).get("values", {}).get(figure)
            cells.append("-" if value is None else f"{value:.3f}")
        speed = row.get("images_per_second")
        made.add_row(*cells, f"{speed:.0f}" if speed else "-")
    return made


def note(rows: list[dict[str, Any]]) -> str:
    """Say where the controls come from; "" without controls."""
    sources = {str(row.get("source", "the same images")) for row in rows if row.get("role") == "control"}
    return f"* measured before (studies/vizer), on {', '.join(sorted(sources))}\n" if sources else ""


COMMAND = Command(
    summary="see the main job work on the embedded models, in minutes",
    description="Captions storybook images with the embedded captioner, improves it with unlabelled images, trains a "
    "supervised captioner for comparison, evaluates all of them and writes the report.",
    example="captune demo",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
