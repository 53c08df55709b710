"""Zero-label training against labels: `python studies/zero-label/run.py` runs what is missing and writes results/.

    python studies/zero-label/run.py                                  # all rows, seeds 7 to 11
    python studies/zero-label/run.py --seeds 7 8 --budget-minutes 120
    python studies/zero-label/run.py --rows "vizer reward" "clip reward"
    python studies/zero-label/run.py --tables                         # nothing is run
    python studies/zero-label/run.py --pace --model OTHER             # how long a step of each method takes: pace.json
    python studies/zero-label/run.py --choices --model OTHER          # the settings' choice, on val

Every finished row is a file of results/rows, with a hash of all that it depends on; it is not run again. A study that
was stopped goes on where it was: the row that was running starts afresh. Two processes may share the work: give them
different seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
import shutil
import sys
import time
from pathlib import Path

import contenders
import shown
import torch
import transformers
import trials
import verdicts
from measured import Exam, measure, sources
from tqdm.auto import tqdm

from captune.models.captioner import Captioner
from captune.utils.files import replace_file
from captune.utils.hashing import fingerprint, weights_digest
from captune.utils.versions import versions

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
PACE = HERE / "pace.json"
PACE_STEPS = 12


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rows = list(contenders.choices() if args.choices else contenders.rows())
        self.folder = args.results / ("choices" if args.choices else "rows")
        self.splits = ("val",) if args.choices else ("test", "ood")
        self.pace = {} if args.quick else contenders.read_pace(PACE)
        self.base = weights_digest(Captioner.load(args.model).core.state_dict())
        self.exams: dict[str, dict[str, Exam]] = {}
        self.slowest = 0.0
        self.failed: list[str] = []

    def exams_of(self, seed: int) -> dict[str, Exam]:
        """Those of the seed at work; val is kept."""
        wanted = sources(seed, quick=self.args.quick)
        self.exams = {source: exam for source, exam in self.exams.items() if source in wanted.values()}
        for source in wanted.values():
            if source not in self.exams:
                self.exams[source] = Exam.of(source)
        return {split: self.exams[source] for split, source in wanted.items()}

    def row(self, row: contenders.Row, seed: int) -> None:
        """Runs a row, unless it is there."""
        steps = (0, 0)
        if row.trains:
            steps = (2 * (row.kind == "sft" or row.supervised > 0), 2) if self.args.quick else row.steps(self.pace)
        wanted = sources(seed, quick=self.args.quick)
        depends = [self.base, row.depends(), steps, seed, wanted, contenders.REPETITION]
        key = fingerprint(json.dumps(depends, sort_keys=True))
        file = self.folder / f"{seed}-{re.sub(r'[^a-z0-9]+', '-', row.name.lower()).strip('-')}.json"
        if file.is_file() and json.loads(file.read_text())["hash"] == key:
            return
        started = time.perf_counter()
        adapter, seconds = None, {}
        if row.trains:
            run = self.args.work / "runs" / key
            trial = trials.Trial(row, self.args.model, seed, steps, run, quick=self.args.quick)
            adapter, seconds = trials.trained(trial, run)
        record = measure(row, self.args.model, adapter, self.exams_of(seed), seed, self.splits)
        known = {"name": row.name, "role": row.role, "seed": seed, "hash": key, "base": self.base, "steps": steps}
        file.parent.mkdir(parents=True, exist_ok=True)
        record = {**known, "seconds": seconds, "sources": {split: wanted[split] for split in self.splits}, **record}
        replace_file(file, json.dumps({**record, "settings": row.depends()}, indent=1, ensure_ascii=False) + "\n")
        self.slowest = max(self.slowest, time.perf_counter() - started)

    def run(self) -> str:
        """Runs what is missing; returns what is left to do, in words."""
        started = time.monotonic()
        chosen = [row for row in self.rows if not self.args.rows or row.name in self.args.rows]
        unknown = set(self.args.rows or ()) - {row.name for row in self.rows}
        if unknown:
            raise SystemExit(f"there is no row {sorted(unknown)}; there are {[row.name for row in self.rows]}")
        todo = [(row, seed) for seed in self.args.seeds for row in chosen]
        bar = tqdm(todo, desc="study", unit="row")
        for done, (row, seed) in enumerate(bar):
            bar.set_postfix_str(f"seed {seed}: {row.name}")
            if self.args.budget_minutes * 60 - (time.monotonic() - started) < self.slowest:
                return f"{len(todo) - done} rows are left: the budget is used up; run the same command again"
            try:
                self.row(row, seed)
            except Exception:  # the other rows do not depend on this one
                logger.exception("%s, seed %d failed; the study goes on", row.name, seed)
                self.failed.append(f"{row.name}, seed {seed}")
        if self.failed:
            return f"{len(self.failed)} of {len(todo)} rows failed: {'; '.join(self.failed)}"
        return f"all {len(todo)} rows are there"


def measure_pace(args: argparse.Namespace) -> None:
    """Writes how long a step of each method takes; one that `pace.json` has is not measured again."""
    known = json.loads(PACE.read_text()) if PACE.is_file() else {"seconds": {}}
    for row in contenders.rows():
        if row.trains and row.method not in known["seconds"] and row.name in (args.rows or [row.name]):
            folder = args.work / "pace"
            shutil.rmtree(folder, ignore_errors=True)
            known["seconds"][row.method] = trials.pace_of(row, args.model, folder, PACE_STEPS, quick=args.quick)
            known |= {"steps": PACE_STEPS, "machine": platform.platform(), "torch": torch.__version__}
            replace_file(PACE, json.dumps(known, indent=1) + "\n")
            print(row.method, known["seconds"][row.method], flush=True)


def write(args: argparse.Namespace) -> list[Path]:
    results, chosen = verdicts.read_all(args.results)
    if not results.rows:
        return []
    files = [
        verdicts.write(results, chosen, args.results / "tables.md"),
        shown.gap_plot(results, args.results / "gap.svg"),
        shown.examples(results, args.results / "examples.html"),
    ]
    return files


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook", help="the base; default: the shipped one")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 7 to 11 (1 with --choices)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these; default: all")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no row that would end later")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tables", action="store_true", help="only write tables, plot and examples again")
    what.add_argument("--pace", action="store_true", help="measure how long a step of each method takes")
    what.add_argument("--choices", action="store_true", help="run the choice of settings, on val")
    parser.add_argument("--results", type=Path, help="default: studies/zero-label/results")
    parser.add_argument("--work", type=Path, help="what can be made again; default: studies/zero-label/work")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # tiny settings, to try the script
    args = parser.parse_args(argv)
    place = HERE / "work" / "quick" if args.quick else HERE
    args.results = args.results or place / "results"
    args.work = args.work or (place if args.quick else HERE / "work")
    args.seeds = args.seeds or ([1] if args.choices else [7, 8, 9, 10, 11])
    return args


def start() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # so that processor time is the time of one core
    failed = False
    if args.pace:
        measure_pace(args)
    elif not args.tables:
        study = Study(args)
        print(study.run())
        failed = bool(study.failed)
        args.results.mkdir(parents=True, exist_ok=True)
        replace_file(args.results / "versions.json", json.dumps(versions(), indent=1) + "\n")
    for file in write(args):
        print(file)
    sys.exit(failed)


if __name__ == "__main__":
    start()
