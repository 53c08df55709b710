"""The study of photographs: HAR stage 1 on 500 captioned photos of Flickr8k.

    python -m studies photos --data flickr8k/captions.txt --texts flickr8k/captions_text_only.csv --only choices
    python -m studies photos --data flickr8k/captions.txt --texts flickr8k/captions_text_only.csv

The photographs are not part of the repository: splits.json names them, and results hold captions and figures only. A
study that was stopped resumes, and so does the training that was running.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.data import load_images
from captune.scorers import load_scorer
from captune.utils.hashing import fingerprint
from studies._lib import runner
from studies._lib.evalset import Exam

from . import tables, train
from .experiments import PARTS, ROWS, System

SCORERS = ("cider", "bleu", "health")
SHOWN = 20  # captions that a record keeps
FEW = 6  # images of a split in a quick run
QUICK = {"mle_steps": 2, "mle_batch_size": 2, "lora_r": 2, "lora_alpha": 4}
TINY = {"image_encoder": "storybook-clip", "language_model": "storybook-lm"}


def exam_of(source: str) -> Exam:
    rows = load_images(source)[:]
    columns = {name: list(rows[name]) for name in ("image_id", "image", "references")}
    return Exam(source, columns, {name: load_scorer(name) for name in SCORERS})


class Study(runner.Study):
    name, about = "photos", __doc__ or ""
    rows, default = ROWS, ("rows",)
    seeds = {"": (7, 8, 9), "choices": (1,)}  # noqa: RUF012

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        if not (args.tables or args.export or args.data):
            raise SystemExit("name the captions of the photos: --data flickr8k/captions.txt")
        self.splits: dict[str, str] = {}

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = super().parser()
        parser.add_argument("--data", type=Path, help="a caption table of the photos, these beside it or in images/")
        parser.add_argument("--texts", type=Path, help="captions without photos, for rows that read texts first")
        return parser

    def split(self, name: str) -> str:
        if name not in self.splits:
            self.splits[name] = train.split(self.args.data, name, self.args.work, FEW if self.args.quick else None)
        return self.splits[name]

    def settings(self, row: System) -> dict[str, Any]:
        settings = dict(row.settings)
        if settings.get("texts") == "given":
            if self.args.texts is None:
                raise SystemExit(f"{row.name}: name the captions without photos: --texts FILE")
            settings["texts"] = str(self.args.texts)
        if self.args.quick:
            settings |= QUICK | ({"text_steps": 1} if "texts" in settings else {})
        return settings

    def depends(self, row: System) -> str:
        content = [row.settings, row.images, row.seed, self.shown(row), self.args.quick]
        return fingerprint(json.dumps(content, sort_keys=True))

    def shown(self, row: System) -> str:
        """The split that a row is judged on."""
        return "choices" if row.section == "choices" else "test"

    def make(self, row: System) -> dict[str, Any]:
        run = self.args.work / "runs" / fingerprint(json.dumps([row.settings, row.images, row.seed], sort_keys=True))
        parts = TINY if self.args.quick else PARTS
        sources = {name: self.split(name) for name in (row.images, "choices", self.shown(row))}
        images = sources[row.images]
        captioner, seconds = train.train(parts, self.settings(row), images, sources["choices"], row.seed, run)
        (exam,) = self.exams({self.shown(row): sources[self.shown(row)]}, exam_of).values()
        captions = exam.captions(captioner, batch_size=16, max_new_tokens=40)
        exam.keep(captions, self.captions_file(row.section, row.name, row.seed))
        figures = {**exam.figures(captions), "distinct": len(set(captions)) / len(captions)}
        shutil.rmtree(run / "parts")  # half a gigabyte that the next row makes again
        named = dict(zip(exam.columns["image_id"][:SHOWN], captions[:SHOWN], strict=True))
        texts = f" --texts {self.args.texts.name}" if self.args.texts else ""  # file names alone: paths are the user's
        command = f"python -m studies {self.name} --data {self.args.data.name}{texts} --only {row.section}"
        return {
            "command": command,
            "training_seconds": seconds,
            "scores": {self.shown(row): figures},
            "captions": named,
        }

    def describe(self, row: System) -> dict[str, Any]:
        return {"settings": {"images": row.images, **row.settings}}

    def write(self) -> list[Path]:
        return tables.write(self.args.results)


def main(argv: Sequence[str]) -> int:
    return Study.main(argv)
