"""The ViZer study: `python studies/vizer/run.py` runs what is missing and writes tables and plots to results/.

    python studies/vizer/run.py                              # the shipped base
    python studies/vizer/run.py --bases storybook B C        # and two others: folders of captioners
    python studies/vizer/run.py --only main controls --budget-minutes 60
    python studies/vizer/run.py --only tables                # nothing is run

Every finished row is a line of results/runs.jsonl, keyed by section, name, base, seed and a hash of all that it
depends on; it is not run again. A study that was killed goes on where it was: the row that was running starts afresh.
Two rows that come to the same settings (the preset, in `main` and in `choices`) are run once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import table
import torch
import transformers
from measuring import QUICK_SOURCES, SOURCES, Exam, captions_of, run
from probing import probe, spoken
from study import MAIN_ROWS, ONE_BASE, SECTIONS, Spec, main, specs
from tqdm.auto import tqdm
from training import Bench, key_of

from captune.utils.files import cut_torn_line, read_jsonl
from captune.utils.versions import versions

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
PROBED = 200  # validation images of the section `learning`


class Ledger:
    """results/runs.jsonl: one line per finished row."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = read_jsonl(file) if file.is_file() else []

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.is_file():
            cut_torn_line(self.file)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self.rows.append(row)


def learn(spec: Spec, bench: Bench, exam: Exam) -> dict[str, Any]:
    """A row of the section `learning`: what a captioner of `main` sees, slot by slot, and says."""
    row = next(s for s in main() if s.name == spec.settings["row"])
    adapter = bench.trained(row)[0] if row.kind in ("vizer", "sft") else None
    captioner = bench.load(adapter)
    images, scenes = exam.columns["image"][:PROBED], exam.columns["scene"][:PROBED]
    captions = captions_of(captioner, images, name=spec.name)
    return {"slots": probe(captioner, images, scenes), "spoken": spoken(captions, scenes), "source": exam.source}


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.ledger = Ledger(args.results / "runs.jsonl")
        self.sources = QUICK_SOURCES if args.quick else SOURCES
        self.exams: dict[str, Exam] = {}
        self.slowest = 0.0
        self.failed: list[str] = []

    def exam(self, split: str) -> Exam:
        if split not in self.exams:
            self.exams[split] = Exam.of(split, self.sources[split])
        return self.exams[split]

    def row(self, spec: Spec, bench: Bench) -> None:
        """Runs a row, unless it is there; a row of another section with the same settings is taken over."""
        depends = key_of([bench.key(spec), self.sources, spec.kind == "probe" and self.rows_behind(spec, bench)])
        same = {"hash": depends, "base": bench.label}
        key = {"section": spec.section, "name": spec.name, **same, "seed": bench.seed}
        if self.ledger.find(key):
            return
        record = self.ledger.find(same)
        if record is None:
            started = time.perf_counter()
            torch.manual_seed(bench.seed)
            if spec.kind == "probe":
                record = learn(spec, bench, self.exam("val"))
            else:
                named = "".join(c if c.isalnum() else "-" for c in f"{spec.name}-{bench.label}-{bench.seed}")
                keep = self.args.results / "captions" / f"{named}.jsonl" if spec.section == "main" else None
                record = run(spec, bench, [self.exam(split) for split in self.sources], keep)
            record["seconds"] = round(time.perf_counter() - started, 1)
            self.slowest = max(self.slowest, record["seconds"])
        settings = {"kind": spec.kind, "role": spec.role, "reward": spec.reward, "settings": spec.settings}
        self.ledger.add({**record, **key, **settings})

    def rows_behind(self, spec: Spec, bench: Bench) -> str:
        return bench.key(next(s for s in main() if s.name == spec.settings["row"]))

    def run(self) -> str:
        """Runs what is missing; returns what is left to do, in words."""
        started = time.monotonic()
        todo = [
            (spec, bench)
            for section in self.args.only
            for number, base in enumerate(self.args.bases)
            for seed in self.args.seeds
            if section in SECTIONS and not (section in ONE_BASE and (number or seed != self.args.seeds[0]))
            for bench in [Bench(base, seed, self.args.work, quick=self.args.quick)]
            for spec in specs(section)
        ]
        bar = tqdm(todo, desc="study", unit="row")
        for done, (spec, bench) in enumerate(bar):
            bar.set_postfix_str(f"{spec.section}: {spec.name}, {bench.label}")
            left = self.args.budget_minutes * 60 - (time.monotonic() - started)
            if left < self.slowest:
                return f"{len(todo) - done} rows are left: the budget is used up; run the same command again"
            try:
                self.row(spec, bench)
            except Exception:  # the other rows do not depend on this one
                logger.exception("%s: %s on %s failed; the study goes on", spec.section, spec.name, bench.label)
                self.failed.append(f"{spec.section}: {spec.name} on {bench.label}")
        if self.failed:
            return f"{len(self.failed)} of {len(todo)} rows failed: {'; '.join(self.failed)}"
        return f"all {len(todo)} rows are there"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["storybook"], help="captioners; the first is the shipped one")
    parser.add_argument("--seeds", nargs="+", type=int, default=[7], help="of the training runs")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "tables"], default=list(SECTIONS), help="sections")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no row that would end later")
    parser.add_argument("--results", type=Path, default=None, help="default: studies/vizer/results")
    parser.add_argument("--work", type=Path, default=None, help="what can be made again; default: studies/vizer/work")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # tiny settings, to try the script
    args = parser.parse_args()
    place = HERE / "work" / "quick" if args.quick else HERE
    args.results = args.results or place / "results"
    args.work = args.work or (place if args.quick else HERE / "work")
    return args


def start() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    study = Study(args)
    print(study.run())
    if study.ledger.rows:
        (args.results / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")
        for file in table.write(study.ledger.rows, args.results, order=MAIN_ROWS):
            print(file)
    sys.exit(bool(study.failed))


if __name__ == "__main__":
    start()
