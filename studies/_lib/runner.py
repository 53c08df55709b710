"""Runs the rows of a study that are missing, one after the other, within a budget of time; a failure stops no other.

A finished row is not run again: it is known by its name, seed and a hash of all that its result depends on. A study
that was stopped resumes; the row that was running starts again. A row that comes to the same settings as one of
another section is taken over from it.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
import yaml
from tqdm.auto import tqdm

from captune.utils.versions import command_line

from .rows import COMMON, Row, expand
from .store import Store, provenance, slug

logger = logging.getLogger(__name__)
STUDIES = Path(__file__).parents[1]


class Study:
    """A study: which rows there are, what each depends on, and how it is made."""

    name: ClassVar[str]
    about: ClassVar[str]
    default: ClassVar[tuple[str, ...] | None] = None  # sections that run unless others are named; None: all
    threads: ClassVar[int | None] = None  # 1: processor time is the time of one core
    bases: ClassVar[Sequence[str]] = ("storybook",)  # captioners unless others are named; (): it makes its own
    several_bases: ClassVar[bool] = False  # whether it takes more than one
    rows: ClassVar[dict[str, list[Any]]]  # {section: its rows}
    seeds: ClassVar[dict[str, Sequence[int]]]  # {section: default seeds}; "" is that of all others

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.store = Store(args.results, self.rows)
        self.made: dict[str, Any] = {}
        self.slowest = 0.0
        self.failed: list[str] = []

    def depends(self, row: Any) -> str:
        """A hash of all that the row's result depends on."""
        raise NotImplementedError

    def make(self, row: Any) -> dict[str, Any]:
        """Trains where the row needs it, captions and scores."""
        raise NotImplementedError

    def describe(self, row: Any) -> dict[str, Any]:
        """The settings that go into the row's record."""
        return {key: value for key, value in vars(row).items() if key not in COMMON}

    def key(self, row: Row) -> dict[str, Any]:
        """By what a finished row is known."""
        return {"section": row.section, "name": row.name, "seed": row.seed, "hash": self.depends(row)}

    def exams(self, sources: dict[str, str], make: Callable[[str], Any]) -> dict[str, Any]:
        """{split: evaluation set}, each made once; those of other sources are forgotten."""
        self.made = {source: self.made.get(source) or make(source) for source in sources.values()}
        return {split: self.made[source] for split, source in sources.items()}

    def captions_file(self, *names: Any) -> Path:
        """Where the captions of a row are kept."""
        named = "".join(c if c.isalnum() else "-" for c in "-".join(map(str, names)))
        return self.args.results / "captions" / f"{named}.jsonl"

    def todo(self) -> list[Any]:
        """All rows that the command asks for, finished or not."""
        rows: list[Any] = []
        for section in self.args.only:
            seeds = self.args.seeds or self.seeds.get(section, self.seeds[""])
            rows += expand(self.rows[section], seeds, self.args.bases)
        names = {row.name for row in rows}
        if unknown := set(self.args.rows or ()) - names:
            raise SystemExit(f"there is no row {sorted(unknown)}; there are {sorted(names)}")
        return [row for row in rows if not self.args.rows or row.name in self.args.rows]

    def row(self, row: Any) -> None:
        """Runs a row unless it is finished."""
        key = self.key(row)
        if self.store.find(key):
            return
        record = self.store.find({name: key[name] for name in ("hash", "base") if name in key})
        if record is None:
            started = time.perf_counter()
            made = self.make(row)
            seconds = time.perf_counter() - started
            self.slowest = max(self.slowest, seconds)
            record = {**provenance(command_line(), seconds), **made}
        self.store.add({**record, **self.describe(row)}, key)

    def run(self) -> str:
        """Runs what is missing; returns what is left to do, in words."""
        started, todo = time.monotonic(), self.todo()
        bar = tqdm(todo, desc="study", unit="row")
        for done, row in enumerate(bar):
            section = "" if row.section == "rows" else f"{row.section}: "
            label = ", ".join(filter(None, [f"{section}{row.name}", f"seed {row.seed}", Path(row.base).name]))
            bar.set_postfix_str(label)
            if self.args.budget_minutes * 60 - (time.monotonic() - started) < self.slowest:
                return f"{len(todo) - done} rows are left: the budget is used up; run the same command again"
            try:
                self.row(row)
            except Exception:  # the other rows do not depend on this one
                logger.exception("%s failed; the study continues", label)
                self.failed.append(label)
        if self.failed:
            return f"{len(self.failed)} of {len(todo)} rows failed: {'; '.join(self.failed)}"
        return f"all {len(todo)} rows are there"

    def export(self, folder: Path) -> list[Path]:
        """Writes what `captune METHOD --config` takes: a file for each row that is one run of a command."""
        files = []
        for row in self.todo():
            for method, settings in row.runs().items():
                file = folder / f"{slug(row.section, row.name)}.{method}.yaml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
                files.append(file)
        return files

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"python -m studies {cls.name}",
            description=cls.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if cls.bases:
            flags = ("--bases", "--base", "--model")
            nargs, what = ("+", "captioners") if cls.several_bases else (1, "the captioner")
            parser.add_argument(*flags, nargs=nargs, default=cls.bases, help=f"{what} (default: the shipped one)")
        else:
            parser.set_defaults(bases=[""])
        parser.add_argument("--seeds", nargs="+", type=int, help=f"of the training runs; default: {cls.seeds['']}")
        parser.add_argument("--only", nargs="+", choices=[*cls.rows, "tables"], help="sections")
        parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these; default: all")
        parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no row that ends later")
        parser.add_argument("--tables", action="store_true", help="only write tables and plots again")
        parser.add_argument("--export", type=Path, metavar="FOLDER", help="only write rows as files for --config")
        parser.add_argument("--results", type=Path, help=f"default: studies/{cls.name}/results")
        parser.add_argument("--work", type=Path, help=f"what can be made again; default: studies/{cls.name}/work")
        parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # tiny settings, to try the study
        return parser

    @classmethod
    def arguments(cls, argv: Sequence[str]) -> argparse.Namespace:
        args = cls.parser().parse_args(argv)
        work = STUDIES / cls.name / "work" / ("quick" if args.quick else "")
        args.results = args.results or (work if args.quick else STUDIES / cls.name) / "results"
        args.work = args.work or work
        args.tables |= "tables" in (args.only or ())
        args.only = [section for section in args.only or cls.default or cls.rows if section != "tables"]
        return args

    def write(self) -> list[Path]:
        """Writes tables and plots of what is there."""
        raise NotImplementedError

    @classmethod
    def main(cls, argv: Sequence[str]) -> int:
        args = cls.arguments(argv)
        logging.basicConfig(level=logging.WARNING)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if cls.threads:
            torch.set_num_threads(cls.threads)
        study = cls(args)
        if args.export:
            print(*study.export(args.export), sep="\n")
            return 0
        if not args.tables:
            print(study.run())
        print(*study.write(), sep="\n")
        return int(bool(study.failed))
