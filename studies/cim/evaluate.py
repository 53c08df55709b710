"""The CIM study: what a row's captioner writes of the evaluation images, and its scores.

python -m studies cim                                     # everything
python -m studies cim --only verification                 # one section
python -m studies cim --only ablation --seeds 7           # its first training seed
python -m studies cim --budget-minutes 60                 # start no row that ends later
python -m studies cim --tables                            # nothing is run
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from captune.models.captioner import Captioner
from studies._lib import runner
from studies._lib.evalset import NO_REFERENCES, Exam, best, sources
from studies._lib.train import key_of, once

from . import detail, tables, verification
from .experiments import ROWS, SECTIONS, Corpus, Spec
from .train import Workshop

# Nothing was tuned on test and ood; choices are made on val alone.
SOURCES, QUICK_SOURCES = (sources(91, quick=quick, test=500, ood=500, val=300) for quick in (False, True))
SCORERS = ("cider", "bleu", "storybook", "health", "clip")
KEPT = ("ablation", "sft")  # sections whose captions of the first seed are kept


def measure(spec: Spec, shop: Workshop, exams: dict[str, Exam], keep: Path | None) -> dict[str, Any]:
    """Makes a row: trains if it has to, captions the images of all exams, scores.

    Args:
        keep: where to keep the captions of the test images.
    """
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
        captions = written(spec, shop, captioner, exam)
        only = NO_REFERENCES if spec.kind == "references" else ()
        scores = exam.score(captions, measures, only=only, bootstrap=0 if split == "val" else 1000)
        record["scores"][split] = scores | {
            "species": {"values": verification.hierarchy(captions, exam.columns["scene"])}
        }
        if keep is not None and split == "test":
            exam.keep(captions, keep)
    record["sources"] = {split: exam.source for split, exam in exams.items()}
    return record


def curve(file: Path) -> dict[str, list[float]]:
    """{logged name: its values}: steps, rewards, KL and length of a run."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line for line in lines if "reward" in line]
    names = {"step": "step", "reward": "reward", "kl": "kl", "completions/mean_length": "length"}
    return {short: [round(line[name], 4) for line in lines if name in line] for name, short in names.items()}


def written(spec: Spec, shop: Workshop, captioner: Captioner, exam: Exam) -> list[str]:
    """The captions of a row for the images of an exam."""
    if spec.kind == "references":
        return [refs[0] for refs in exam.columns["references"]]
    if spec.kind == "opening":
        return exam.captions(captioner, forced_opening=spec.settings["text"])
    if spec.kind == "best_of":  # of n samples the one that the model itself finds likeliest, by token or in all
        n, pick = spec.settings["n"], spec.settings["pick"]
        file = shop.work / "samples" / f"{key_of([shop.digest, exam.source, n, spec.seed])}.json"
        made = once(file, lambda: exam.samples(captioner, n, spec.seed, batch_size=32))
        return best(made["captions"], made[pick], n)
    return exam.captions(captioner)


class Study(runner.Study):
    name, about = "cim", __doc__ or ""
    sections, seeds = SECTIONS, {"": (7, 8, 9)}

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.shop = Workshop(args.bases[0], args.work, quick=args.quick)

    def sources(self, row: Spec) -> dict[str, str]:
        sources = QUICK_SOURCES if self.args.quick else SOURCES
        return {"val": sources["val"]} if row.section == "choices" else sources

    def rows(self, section: str) -> list[Spec]:
        return [row for row in ROWS if row.section == section]

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
            named = "".join(c if c.isalnum() else "-" for c in row.name)
            keep = self.args.results / "captions" / f"{named}.jsonl"
        sources = self.sources(row).items()
        return measure(row, self.shop, {k: self.exam(v, lambda v=v: Exam.of(v, SCORERS)) for k, v in sources}, keep)

    def write(self) -> list[Path]:
        return tables.write(self.store.rows, self.args.results) if self.store.rows else []


main = Study.main
