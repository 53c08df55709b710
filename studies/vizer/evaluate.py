"""The ViZer study: what captioners write of the evaluation images, see and state, and their scores."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch

from captune import storybook
from studies._lib import runner
from studies._lib.evalset import Exam, sources
from studies._lib.train import key_of

from . import probing, tables
from .experiments import BY_NAME, ROWS, Spec
from .train import Bench

# Test images of a seed that nothing was tuned on; choices are made on val alone.
SOURCES, QUICK_SOURCES = (sources(1, quick=quick, test=500, ood=500, val=300) for quick in (False, True))
PROBED = 200  # validation images of the section `learning`


def exam_of(source: str) -> Exam:
    clip = (storybook.model_path("storybook-clip") / "config.json").is_file()
    return Exam.of(source, ["cider", "bleu", "rouge", "storybook", "health", *["clip"] * clip])


def measure(spec: Spec, bench: Bench, exams: dict[str, Exam], keep: Path | None) -> dict[str, Any]:
    """Trains if the row needs it, captions all exams, scores; `keep` takes the captions of the test images."""
    record: dict[str, Any] = {}
    adapter = mapper = None
    if spec.trains:
        adapter, mapper, seconds = bench.trained(spec)
        record["training_seconds"] = round(seconds, 1)
    captioner = bench.load(adapter)
    judge = bench.judge(captioner, mapper)
    captioned = seconds = 0.0
    record["scores"] = {}
    for split, exam in exams.items():
        started = time.perf_counter()
        captions = bench.captions(spec, captioner, exam)
        seconds += time.perf_counter() - started
        captioned += len(captions)
        record["scores"][split] = exam.judge(split, spec.kind, captions, [judge], keep)
    if spec.trains or spec.kind == "greedy":
        record["images_per_second"] = round(captioned / seconds, 1)
    record["sources"] = {split: exam.source for split, exam in exams.items()}
    return record


def learn(spec: Spec, bench: Bench, exam: Exam) -> dict[str, Any]:
    """A row of the section `learning`: what a captioner of `main` sees, slot by slot, and states."""
    row = BY_NAME[spec.settings["row"]]
    captioner = bench.load(bench.trained(row)[0] if row.trains else None)
    images, scenes = exam.columns["image"][:PROBED], exam.columns["scene"][:PROBED]
    captions = Exam("", {"image": images}, {}).captions(captioner)
    slots = probing.probe(captioner, images, scenes)
    return {"slots": slots, "spoken": probing.spoken(captions, scenes), "source": exam.source}


class Study(runner.Study):
    name, about, several_bases = "vizer", __doc__ or "", True
    rows, seeds = ROWS, {"": (7,)}

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a study lives as long as its process
    def bench(self, base: str, seed: int) -> Bench:
        return Bench(base, seed, self.args.work, quick=self.args.quick)

    @property
    def sources(self) -> dict[str, str]:
        return QUICK_SOURCES if self.args.quick else SOURCES

    def depends(self, row: Spec) -> str:
        bench = self.bench(row.base, row.seed)
        behind = row.kind == "probe" and bench.key(BY_NAME[row.settings["row"]])
        return key_of([bench.key(row), self.sources, behind])

    def key(self, row: Spec) -> dict[str, Any]:
        return {**super().key(row), "base": Path(row.base).name}

    def make(self, row: Spec) -> dict[str, Any]:
        bench = self.bench(row.base, row.seed)
        torch.manual_seed(row.seed)
        exams = self.exams(self.sources, exam_of)
        if row.kind == "probe":
            return learn(row, bench, exams["val"])
        keep = self.captions_file(row.name, bench.label, row.seed) if row.section == "main" else None
        return measure(row, bench, exams, keep)

    def write(self) -> list[Path]:
        return tables.write(self.store.rows, self.args.results) if self.store.rows else []


main = Study.main
