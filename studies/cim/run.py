"""CIM's own evidence on storybook: `python studies/cim/run.py` runs what is missing, writes tables and plots.

    python studies/cim/run.py                                     # everything
    python studies/cim/run.py --only verification                 # one section
    python studies/cim/run.py --only ablation --seeds 7           # its first training seed
    python studies/cim/run.py --budget-minutes 60                 # start no row that would end later
    python studies/cim/run.py --only tables                       # nothing is run

Every finished row is a line of results/runs.jsonl, keyed by section, name, seed and a hash of all that it depends on;
it is not run again. A study that was killed goes on where it was: the row that was running starts afresh. Two rows
that come to the same settings are run once.
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

import detail
import exams
import summary
import transformers
import verification
from rows import SECTIONS, Spec, specs
from tqdm.auto import tqdm
from workshop import Workshop, key_of

from captune.utils.files import cut_torn_line, read_jsonl
from captune.utils.versions import versions

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
KEPT = ("ablation", "sft")  # sections whose captions of the first seed are kept


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


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.ledger = Ledger(args.results / "runs.jsonl")
        self.shop = Workshop(args.base, args.work, quick=args.quick)
        self.sources = exams.QUICK_SOURCES if args.quick else exams.SOURCES
        self.exams: dict[str, exams.Exam] = {}
        self.slowest = 0.0
        self.failed: list[str] = []

    def exam(self, split: str) -> exams.Exam:
        if split not in self.exams:
            self.exams[split] = exams.Exam.of(split, self.sources[split])
        return self.exams[split]

    def splits(self, spec: Spec) -> list[str]:
        return ["val"] if spec.section == "choices" else list(self.sources)

    def row(self, spec: Spec) -> None:
        """Runs a row, unless it is there; a row of another section with the same settings is taken over."""
        depends = key_of([self.shop.key(spec), [self.sources[split] for split in self.splits(spec)]])
        key = {"section": spec.section, "name": spec.name, "hash": depends, "seed": spec.seed}
        if self.ledger.find(key):
            return
        record = self.ledger.find({"hash": depends})
        if record is None:
            started = time.perf_counter()
            record = {**self.made(spec), "seconds": round(time.perf_counter() - started, 1)}
            self.slowest = max(self.slowest, record["seconds"])
        self.ledger.add({**record, **key, "kind": spec.kind, "role": spec.role, "settings": dict(spec.settings)})

    def made(self, spec: Spec) -> dict[str, Any]:
        if spec.kind == "detail":
            return detail.run(spec, self.shop)
        if spec.kind == "verify":
            return verification.run(spec, self.shop, self.args.results)
        keep = None
        if spec.section in KEPT and spec.kind in ("greedy", "sft", "grpo") and spec.seed == self.args.seeds[0]:
            named = "".join(c if c.isalnum() else "-" for c in spec.name)
            keep = self.args.results / "captions" / f"{named}.jsonl"
        return exams.run(spec, self.shop, [self.exam(split) for split in self.splits(spec)], keep)

    def run(self) -> str:
        """Runs what is missing; returns what is left to do, in words."""
        started = time.monotonic()
        seeds = tuple(self.args.seeds)
        todo = [spec for section in self.args.only if section in SECTIONS for spec in specs(section, seeds)]
        bar = tqdm(todo, desc="study", unit="row")
        for done, spec in enumerate(bar):
            bar.set_postfix_str(f"{spec.section}: {spec.name}, seed {spec.seed}")
            left = self.args.budget_minutes * 60 - (time.monotonic() - started)
            if left < self.slowest:
                return f"{len(todo) - done} rows are left: the budget is used up; run the same command again"
            try:
                self.row(spec)
            except Exception:  # the other rows do not depend on this one
                logger.exception("%s: %s failed; the study goes on", spec.section, spec.name)
                self.failed.append(f"{spec.section}: {spec.name}, seed {spec.seed}")
        if self.failed:
            return f"{len(self.failed)} of {len(todo)} rows failed: {'; '.join(self.failed)}"
        return f"all {len(todo)} rows are there"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="storybook", help="the captioner")
    parser.add_argument("--seeds", nargs="+", type=int, default=[7, 8, 9], help="of the training runs")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "tables"], default=list(SECTIONS), help="sections")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no row that would end later")
    parser.add_argument("--results", type=Path, default=None, help="default: studies/cim/results")
    parser.add_argument("--work", type=Path, default=None, help="what can be made again; default: studies/cim/work")
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
        for file in summary.write(study.ledger.rows, args.results):
            print(file)
    sys.exit(bool(study.failed))


if __name__ == "__main__":
    start()
