"""The main job on the embedded default, from first caption to report: what ``captune demo`` runs.

Every step is one that the command line offers for any model and any images.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from captune.caption_job import CaptionReport, caption_to_file
from captune.data.captions import replace_file
from captune.evaluation import evaluate_files
from captune.methods import sft, vizer
from captune.options import build
from captune.report import render

logger = logging.getLogger(__name__)

MODEL, UNLABELLED, LABELLED = "storybook", "storybook:unlabelled", "storybook:train"
CONTROLS = Path(__file__).parents[2] / "studies" / "vizer" / "results" / "controls.json"

# What the printed table shows: heading, scorer, key. The report has all of it.
COLUMNS = (
    ("CIDEr-D", "cider", "cider_d"),
    ("BLEU-4", "bleu", "bleu_4"),
    ("ROUGE-L", "rouge", "rouge_l"),
    ("CLIPScore", "clip", "clip_score"),
    ("mapper", "vizer", "vizer"),
    ("fact F1", "storybook", "fact_f1"),
    ("false/fact", "storybook", "hallucinated_per_fact"),
    ("words", "health", "words"),
)


def demo(output: Path, *, seed: int = 7, test: str = "storybook:test?n=500&seed=91") -> str:
    """Run everything below `output`; returns the table and the path of the page, as text."""
    # 1. Improve the captioner with unlabelled images; with a mapper fitted on references; and by plain supervision.
    zero = train(vizer, "ViZerConfig", output / "vizer", seed, images=UNLABELLED)
    gt = train(
        vizer, "ViZerConfig", output / "vizer-gt", seed, images=UNLABELLED, preset="paper", mapper_captions=LABELLED
    )
    supervised = train(sft, "SFTConfig", output / "sft", seed, images=LABELLED)

    # 2. Caption images that none of them has seen, before and after.
    adapters = {"base": None, "ViZer zero-label": zero, "ViZer GT (paper)": gt, "supervised": supervised}
    captioned = {
        name: caption_to_file(
            MODEL,
            test,
            output / "captions" / f"{name.split(' (')[0].lower().replace(' ', '-')}.jsonl",
            adapter=adapter and adapter / "adapter",
            overwrite=True,
        )
        for name, adapter in adapters.items()
    }

    # 3. Score the captions, and put the report together.
    rows = score(captioned, test, zero / "mapper")
    rows += controls()
    replace_file(output / "scores.json", json.dumps({"source": test, "rows": rows}, indent=1))
    page = render([output, zero, gt, supervised], output / "report.html")
    return f"{table(rows)}\n\n{page.resolve()}"


def train(module: Any, config: str, output: Path, seed: int, **settings: Any) -> Path:
    """One training run with a method's default settings, as `captune vizer` and `captune sft` do it."""
    flags = {"model": MODEL, "seed": seed, "output": output, "overwrite": True, **settings}
    return module.run(build(getattr(module, config), flags, presets=getattr(module, "PRESETS", None))).path


def score(captioned: dict[str, CaptionReport], test: str, mapper: Path) -> list[dict[str, Any]]:
    """Rows as scores.json has them, each system scored by every scorer on the images of `test`."""
    scorers = ["cider", "bleu", "rouge", "clip", f"vizer:{mapper}", "storybook", "health"]
    files = [result.output for result in captioned.values()]
    report = evaluate_files(files, references=test, scorers=scorers)
    rows = []
    for (name, result), scored in zip(captioned.items(), [report, *report["others"]], strict=True):
        rows.append(
            {
                "name": name,
                "scores": {spec.partition(":")[0]: values for spec, values in scored["scores"].items()},
                "captions": str(result.output.relative_to(result.output.parents[1])),
                "images_per_second": result.images_per_second,
            }
        )
    return rows


def controls() -> list[dict[str, Any]]:
    """The rows of the four controls, read from the committed study: they take longer than a demo may."""
    if not CONTROLS.is_file():
        logger.warning("the study's controls are not here (%s): their rows are left out", CONTROLS)
        return []
    return [row | {"role": "control"} for row in json.loads(CONTROLS.read_text(encoding="utf-8"))["rows"]]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, controls marked with a star."""
    lines = [["", *(heading for heading, *_ in COLUMNS), "images/s"]]
    for row in rows:
        cells = [row["name"] + (" *" if row.get("role") == "control" else "")]
        for _, scorer, key in COLUMNS:
            value = row["scores"].get(scorer, {}).get("values", {}).get(key)
            cells.append("-" if value is None else f"{value:.3f}")
        speed = row.get("images_per_second")
        lines.append([*cells, f"{speed:.0f}" if speed else "-"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
    if any(row.get("role") == "control" for row in rows):
        text += "\n* from the committed study (studies/vizer), not measured now"
    return text
