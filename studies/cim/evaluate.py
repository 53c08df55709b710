"""The CIM study: captions of the evaluation images, and their scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from studies._lib import runner
from studies._lib.evalset import Exam, sources
from studies._lib.train import key_of

from . import detail, tables, verification
from .experiments import ROWS, Corpus, Spec
from .train import Workshop

# Nothing was tuned on test and ood; choices are made on val alone.
SOURCES, QUICK_SOURCES = (sources(91, quick=quick, test=500, ood=500, val=300) for quick in (False, True))
SCORERS = ("cider", "bleu", "storybook", "health", "clip")
KEPT = ("ablation", "sft")  # sections whose captions of the first seed are kept


def measure(spec: Spec, shop: Workshop, exams: dict[str, Exam], keep: Path | None) -> dict[str, Any]:
    """Trains if the row needs it, captions all exams, scores; `keep` takes the captions of the test images."""
    record: dict[str, Any] = {}
    adapter = None
    if spec.kind in ("sft", "grpo"):
        adapter, seconds = shop.adapter(spec)
        record["training_seconds"] = round(seconds, 1)
        record["rewards"] = curve(adapter.parent / "metrics.jsonl")
    captioner = shop.load(adapter)
    measures = shop.measures(Corpus()).values()  # the same for every row, whatever gallery it was trained on
    record["scores"] = {}
    for split, exam in exams.items():
        captions = shop.captions(spec, captioner, exam)
        scores = exam.judge(split, spec.kind, captions, measures, keep)
        record["scores"][split] = scores | {
            "species": {"values": verification.hierarchy(captions, exam.columns["scene"])}
        }
    record["sources"] = {split: exam.source for split, exam in exams.items()}
    return record


def curve(file: Path) -> dict[str, list[float]]:
    """{logged name: its values}: steps, rewards, KL and length of a run."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line for line in lines if "reward" in line]
    names = {"step": "step", "reward": "reward", "kl": "kl", "completions/mean_length": "length"}
    return {short: [round(line[name], 4) for line in lines if name in line] for name, short in names.items()}


class Study(runner.Study):
    name, about = "cim", __doc__ or ""
    rows, seeds = ROWS, {"": (7, 8, 9)}

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.shop = Workshop(args.bases[0], args.work, quick=args.quick)

    def sources(self, row: Spec) -> dict[str, str]:
        sources = QUICK_SOURCES if self.args.quick else SOURCES
        return {"val": sources["val"]} if row.section == "choices" else sources

    def depends(self, row: Spec) -> str:
        return key_of([self.shop.key(row), list(self.sources(row).values())])

    def make(self, row: Spec) -> dict[str, Any]:
        if row.kind == "detail":
            return detail.measure(row, self.shop)
        if row.kind == "verify":
            return verification.measure(row, self.shop)
        keep = None
        first = (self.args.seeds or self.seeds[""])[0]
        if row.section in KEPT and row.kind in ("greedy", "sft", "grpo") and row.seed == first:
            keep = self.captions_file(row.name)
        exams = self.exams(self.sources(row), lambda source: Exam.of(source, SCORERS))
        return measure(row, self.shop, exams, keep)

    def write(self) -> list[Path]:
        return tables.write(self.store.rows, self.args.results) if self.store.rows else []


main = Study.main
