"""HAR's stages and its baselines on one base: `python studies/har/run.py` runs what is missing and writes results/.

    python studies/har/run.py                                  # all rows, seeds 7 to 11
    python studies/har/run.py --seeds 7 8 --budget-minutes 30
    python studies/har/run.py --rows base SFT "SFT + SCST"
    python studies/har/run.py --tables                         # nothing is run
    python studies/har/run.py --choices --model OTHER          # the settings' choice, on val

Every finished row is a file of results/rows, with a hash of all that it depends on; it is not run again. A study that
was stopped goes on where it was: the training that was running starts afresh. Two processes may share the work: give
them different seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from pathlib import Path

import comparison
import measures
import systems
import torch
import transformers
from tqdm.auto import tqdm

from captune.decoding.zerocap import FrozenPair
from captune.models.captioner import Captioner
from captune.utils.files import replace_file
from captune.utils.hashing import fingerprint, weights_digest
from captune.utils.versions import versions

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rows = systems.choices if args.choices else systems.rows
        self.folder = args.results / ("choices" if args.choices else "rows")
        self.splits = ("val",) if args.choices else ("test", "ood")
        self.encoder = measures.held_out_encoder(args.work, args.results, quick=args.quick)
        self.base = weights_digest(Captioner.load(args.model).core.state_dict())
        pair = FrozenPair.load(*measures.PARTS.values())
        self.depends = [self.base, weights_digest(pair.model.state_dict()), self.encoder.digest]
        self.exams: dict[str, measures.Exam] = {}
        self.slowest = 0.0
        self.failed: list[str] = []

    def exams_of(self, seed: int) -> dict[str, measures.Exam]:
        wanted = {split: measures.sources(seed, quick=self.args.quick)[split] for split in self.splits}
        self.exams = {source: exam for source, exam in self.exams.items() if source in wanted.values()}
        for source in wanted.values():
            if source not in self.exams:
                self.exams[source] = measures.Exam.of(source, self.encoder)
        return {split: self.exams[source] for split, source in wanted.items()}

    def row(self, row: systems.Row, seed: int) -> None:
        """Runs a row, unless it is there."""
        wanted = measures.sources(seed, quick=self.args.quick)
        depends = [self.depends, row.depends(), seed, [wanted[split] for split in self.splits]]
        key = fingerprint(json.dumps(depends, sort_keys=True))
        file = self.folder / f"{seed}-{re.sub(r'[^a-z0-9]+', '-', row.name.lower()).strip('-')}.json"
        if file.is_file() and json.loads(file.read_text())["hash"] == key:
            return
        started = time.perf_counter()
        made = measures.train(row, self.args.model, self.base, seed, self.args.work, quick=self.args.quick)
        record = measures.measure(row, self.args.model, made, self.exams_of(seed), seed)
        known = {"name": row.name, "seed": seed, "hash": key, "base": self.base, "training_seconds": made.seconds}
        file.parent.mkdir(parents=True, exist_ok=True)
        record = {**known, "sources": {split: wanted[split] for split in self.splits}, **record}
        replace_file(file, json.dumps({**record, "settings": row.depends()}, indent=1, ensure_ascii=False) + "\n")
        self.slowest = max(self.slowest, time.perf_counter() - started)

    def run(self) -> str:
        """Runs what is missing; returns what is left to do, in words."""
        started = time.monotonic()
        named = {row.name for seed in self.args.seeds for row in self.rows(seed)}
        if unknown := set(self.args.rows or ()) - named:
            raise SystemExit(f"there is no row {sorted(unknown)}; there are {sorted(named)}")
        wanted = self.args.rows or named
        todo = [(row, seed) for seed in self.args.seeds for row in self.rows(seed) if row.name in wanted]
        for done, (row, seed) in enumerate(tqdm(todo, desc="study", unit="row")):
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


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook", help="the base; default: the shipped one")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 7 to 11 (1 with --choices)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these; default: all")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no row that would end later")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tables", action="store_true", help="only write tables and plots again")
    what.add_argument("--choices", action="store_true", help="run the choice of settings, on val")
    parser.add_argument("--results", type=Path, help="default: studies/har/results")
    parser.add_argument("--work", type=Path, help="what can be made again; default: studies/har/work")
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
    if not args.tables:
        study = Study(args)
        print(study.run())
        failed = bool(study.failed)
        replace_file(args.results / "versions.json", json.dumps(versions(), indent=1) + "\n")
    for file in comparison.write(args.results):
        print(file)
    sys.exit(failed)


if __name__ == "__main__":
    start()
