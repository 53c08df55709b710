"""Zero-label training against labels: captions of images that nothing was trained or chosen on, and their scores."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from captune.models.captioner import Captioner
from captune.utils.files import replace_file
from captune.utils.hashing import fingerprint, weights_digest
from studies._lib import controls, evalset, runner
from studies._lib.evalset import Exam

from . import plots, tables, train
from .experiments import OPENINGS, PACE, REPETITION, ROWS, SCALES, SHOWN, Contender, read_pace

SCORERS = ("cider", "storybook", "clip", "health")
PACE_STEPS = 12
CONTROLS = ("opening", "best_of", "guidance")


def sources(seed: int, *, quick: bool = False) -> dict[str, str]:
    """The images of a seed. Other images for each seed, so that a spread over seeds is one over images too."""
    # 91 for the first seed, 7; seed 1 was used by `studies/vizer`
    return evalset.sources(84 + seed, quick=quick, test=500, ood=500, val=300)


def measure(
    row: Contender, model: str, adapter: Path | None, exams: dict[str, Exam], splits: Sequence[str]
) -> dict[str, Any]:
    """{scores: {split: figures}, captions: {split: the first few}, chosen: what a control chose on val}"""
    captioner = Captioner.load(model, adapter=adapter)
    record: dict[str, Any] = {}
    if row.kind in CONTROLS:
        record["chosen"] = choose(row, captioner, exams["val"])
    record |= {"scores": {}, "captions": {}}
    for split in splits:
        exam = exams[split]
        if row.kind == "references":  # the first as the caption, judged by all that does not read references
            captions = [refs[0] for refs in exam.columns["references"]]
        elif row.kind in CONTROLS:
            captions = controls.captions(row.kind, record["chosen"], captioner, exam, row.seed)
        else:
            captions = exam.captions(captioner)
        figures = exam.figures(captions)
        if row.kind == "references":
            figures = {key: value for key, value in figures.items() if key not in ("cider", "ref_clip")}
        record["scores"][split] = figures
        record["captions"][split] = captions[: SHOWN.get(split, 0)]
    return record


def choose(row: Contender, captioner: Captioner, val: Exam) -> str:
    """What a control says or does, chosen on val."""
    assert row.kind in CONTROLS
    return controls.choose(row.kind, captioner, val, row.seed, openings=OPENINGS, scales=SCALES)


class Study(runner.Study):
    name, about, threads = "zero_label", __doc__ or "", 1
    rows, default = ROWS, ("rows",)
    seeds = {"": (7, 8, 9, 10, 11), "choices": (1,)}  # noqa: RUF012

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.pace = {} if args.quick else read_pace()
        if not (args.tables or args.export):
            self.base = weights_digest(Captioner.load(args.bases[0]).core.state_dict())

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = super().parser()
        parser.add_argument("--pace", action="store_true", help="measure how long a step of each method takes")
        return parser

    def steps(self, row: Contender) -> tuple[int, int]:
        if not row.trains:
            return 0, 0
        if self.args.quick:
            return 2 * row.budget * (row.kind == "sft" or row.supervised > 0), 2 * row.budget
        return row.steps(self.pace)

    def sources(self, row: Contender) -> dict[str, str]:
        return sources(row.seed, quick=self.args.quick)

    def splits(self, row: Contender) -> tuple[str, ...]:
        return ("val",) if row.section == "choices" else ("test", "ood")

    def depends(self, row: Contender) -> str:
        content = [self.base, row.depends(), self.steps(row), row.seed, self.sources(row), REPETITION]
        return fingerprint(json.dumps(content, sort_keys=True))

    def make(self, row: Contender) -> dict[str, Any]:
        adapter, seconds = None, {}
        if row.trains:
            run = self.args.work / "runs" / self.depends(row)
            trial = train.Trial(row, row.base, row.seed, self.steps(row), run, quick=self.args.quick)
            adapter, seconds = train.trained(trial, run)
        sources, splits = self.sources(row), self.splits(row)
        exams = self.exams(sources, lambda source: Exam.of(source, SCORERS))
        record = measure(row, row.base, adapter, exams, splits)
        return {"seconds": seconds, "sources": {split: sources[split] for split in splits}, **record}

    def describe(self, row: Contender) -> dict[str, Any]:
        return {"role": row.role, "base": self.base, "steps": self.steps(row), "settings": row.depends()}

    def run(self) -> str:
        return self.measure_pace() if self.args.pace else super().run()

    def measure_pace(self) -> str:
        """Writes how long a step of each method takes; one that `pace.json` has is not measured again."""
        known = json.loads(PACE.read_text()) if PACE.is_file() else {"seconds": {}}
        folder = self.args.work / "pace"
        for row in ROWS["rows"]:
            if row.trains and row.method not in known["seconds"] and row.name in (self.args.rows or [row.name]):
                shutil.rmtree(folder, ignore_errors=True)
                pace = train.pace_of(row, self.args.bases[0], folder, PACE_STEPS, quick=self.args.quick)
                known["seconds"][row.method] = pace
                known |= {"steps": PACE_STEPS, "machine": platform.platform(), "torch": torch.__version__}
                replace_file(PACE, json.dumps(known, indent=1) + "\n")
                print(row.method, pace, flush=True)
        return f"the pace of {len(known['seconds'])} methods is known"

    def write(self) -> list[Path]:
        results, chosen = tables.read_all(self.args.results)
        plotted = {"gap.svg": plots.gap_plot, "examples.html": plots.examples}
        page = [tables.write(results, chosen, self.args.results / "tables.md")] if results.rows else []
        return page + [make(results, self.args.results / name) for name, make in plotted.items() if page]


main = Study.main
