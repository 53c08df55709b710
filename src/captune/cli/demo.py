"""The main job on the embedded default, from first caption to report: what ``captune demo`` runs.

Every step is one that the command line offers for any model and any images.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from captune.cli.config import build
from captune.data.schemes import scheme_of
from captune.evaluation.run import evaluate_files
from captune.report import render
from captune.runs.run_dir import RunDir
from captune.training import sft, vizer

logger = logging.getLogger(__name__)

MODEL, UNLABELLED, LABELLED = "storybook", "storybook:unlabelled", "storybook:train"
TEST = "storybook:test?n=500&seed=91"
# Of zero-label training; the preset has more of each, but a demonstration should take minutes.
SHORT = {"rounds": 1, "max_steps": 30, "mapper_samples": 2}
SCORERS = ("cider", "bleu", "rouge", "clip", "storybook", "health")
CONTROLS = Path(__file__).parents[2] / "studies" / "vizer" / "results" / "controls.json"

# What the printed table shows: heading, scorer, figure (none: the scorer's primary one). The report has every figure.
COLUMNS = (
    ("CIDEr-D", "cider", None),
    ("BLEU-4", "bleu", "bleu_4"),
    ("ROUGE-L", "rouge", None),
    ("CLIPScore", "clip", None),
    ("mapper", "vizer", None),
    ("fact F1", "storybook", "fact_f1"),
    ("false/fact", "storybook", "hallucinated_per_fact"),
    ("words", "health", "length"),
)


def demo(
    output: Path,
    *,
    model: str = MODEL,
    unlabelled: str = UNLABELLED,
    labelled: str = LABELLED,
    test: str = TEST,
    seed: int = 7,
) -> str:
    """Run everything below `output`; returns the table, the minutes it took and the path of the page, as text."""
    started = time.perf_counter()
    common = {"model": model, "seed": seed, "evaluation": test}
    # 1. Improve the captioner: with unlabelled images; with a mapper fitted on references; by plain supervision.
    #    Each run ends by captioning `test`, before and after.
    zero = train(vizer, "ViZerConfig", output / "vizer", **common, images=unlabelled, **SHORT)
    gt = train(
        vizer,
        "ViZerConfig",
        output / "vizer-gt",
        **common,
        images=unlabelled,
        preset="paper",
        mapper_captions=labelled,
    )
    supervised = train(sft, "SFTConfig", output / "sft", **common, images=labelled)

    # 2. Score all of them side by side, the mapper of the zero-label run included, and put the report together.
    systems = {name: run for run in (supervised, gt, zero) for name in captioned(run)}  # the base's comes from zero
    order = sorted(systems, key=lambda name: (name != "base", systems[name] is not zero, systems[name] is not gt))
    files = [systems[name].path / captioned(systems[name])[name]["captions"] for name in order]
    scorers = [name for name in SCORERS if name not in ("storybook", "clip") or name in scheme_of(test).scorers]
    scored = evaluate_files(files, references=test, images=test, scorers=[*scorers, f"vizer:{zero.mapper}"])
    together = RunDir(output).start({"method": "demo", **common}, overwrite=True)
    for name, file, report in zip(order, files, [scored, *scored["others"]], strict=True):
        scores = {spec.partition(":")[0]: score for spec, score in report["scores"].items()}
        row = captioned(systems[name])[name]
        speed, role = row.get("images_per_second"), row.get("role")
        together.add_scores(name, scores, role=role, source=test, captions=file, images_per_second=speed)
    for row in controls() if (model, unlabelled, labelled) == (MODEL, UNLABELLED, LABELLED) else []:
        together.add_scores(row["name"], row["scores"], role="control", source=row["source"])
    page = render([output, zero.path, gt.path, supervised.path], output / "report.html")
    minutes = (time.perf_counter() - started) / 60
    return f"{table(together.scores()['rows'])}\n\n{minutes:.1f} minutes; the page: {page.resolve()}"


def train(module: Any, config: str, output: Path, **settings: Any) -> RunDir:
    """One training run with a method's default settings, as `captune vizer` and `captune sft` do it."""
    flags = {"output": output, "overwrite": True, **settings}
    return module.run(build(getattr(module, config), flags, presets=getattr(module, "PRESETS", None)))


def captioned(run: RunDir) -> dict[str, dict[str, Any]]:
    """The rows of a run's scores.json, by name."""
    return {row["name"]: row for row in run.scores()["rows"]}


def controls() -> list[dict[str, Any]]:
    """The rows of the four controls, read from the committed study: they take longer than a demo may."""
    if not CONTROLS.is_file():
        logger.warning("the study's controls are not here (%s): their rows are left out", CONTROLS)
        return []
    content = json.loads(CONTROLS.read_text(encoding="utf-8"))
    return [{"source": content.get("source"), **row} for row in content["rows"]]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, controls marked with a star."""
    lines = [["", *(heading for heading, *_ in COLUMNS), "images/s"]]
    for row in rows:
        cells = [row["name"] + (" *" if row.get("role") == "control" else "")]
        for _, scorer, key in COLUMNS:
            values = row["scores"].get(scorer, {}).get("values", {})
            value = values.get(key or next(iter(values), ""))
            cells.append("-" if value is None else f"{value:.3f}")
        speed = row.get("images_per_second")
        lines.append([*cells, f"{speed:.0f}" if speed else "-"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
    sources = {str(row.get("source", "the same images")) for row in rows if row.get("role") == "control"}
    if sources:
        text += f"\n* from the committed study (studies/vizer) on {', '.join(sorted(sources))}, not measured now"
    return text
