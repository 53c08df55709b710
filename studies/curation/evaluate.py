"""Fine-tuning on alt texts as they are, filtered and in levels, at equal steps; facts on images of no training."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from captune.curation import curate
from captune.data import load_images
from captune.models.captioner import Captioner
from captune.models.condition import prompt_under
from captune.scorers import load_scorer
from captune.storybook.scorer import TYPES
from captune.training.sft import train as sft
from captune.utils.hashing import fingerprint, weights_digest
from studies._lib import evalset, runner
from studies._lib.evalset import Exam
from studies._lib.train import UNSAVED, clean

from . import tables
from .experiments import IMAGES, ROWS, STEPS, Set

SCORERS = ("cider", "storybook")
QUICK_IMAGES, QUICK = 40, {"max_steps": 2, "batch_size": 4}


def sources(seed: int, *, quick: bool = False) -> dict[str, str]:
    """The images of a seed."""
    return evalset.sources(200 + seed, quick=quick, test=300, val=300)


def clean_captions(source: str) -> dict[str, bool]:
    """{image_id: whether its caption states something and all of it is true}; the source has one caption an image."""
    rows = load_images(source, decode=False)
    counts = load_scorer("storybook").rows([texts[0] for texts in rows["references"]], scene=list(rows["scene"]))
    true, stated = counts[:, :-1].reshape(len(counts), len(TYPES), 4).sum(axis=1).T[:2]
    return dict(zip(rows["image_id"], ((stated > 0) & (true == stated)).tolist(), strict=True))


def auc(scores: np.ndarray, good: np.ndarray) -> float | None:
    """How often a good caption has a higher score than another, ties halved; None where all are of one kind."""
    from scipy.stats import rankdata

    n = int(good.sum())
    if not 0 < n < len(good):
        return None
    return float((rankdata(scores)[good].sum() - n * (n + 1) / 2) / (n * (len(good) - n)))


def noise(source: str, folder: Path | None) -> dict[str, Any]:
    """How a step's decisions agree with the known noise; without one, how much of it there is."""
    truth = clean_captions(source)
    figures: dict[str, Any] = {"captions": len(truth), "clean": sum(truth.values())}
    if folder is None:
        return figures
    (file,) = (folder / "decisions").glob("*.parquet")
    table = pq.read_table(file, columns=["image_id", "verdict", "score"]).to_pydict()
    good = np.array([truth[image_id] for image_id in table["image_id"]])
    kept = np.array(table["verdict"]) == "keep"
    both = int((good & kept).sum())
    figures |= {"kept": int(kept.sum()), "precision": both / max(1, kept.sum()), "recall": both / max(1, good.sum())}
    return figures | {"auc": auc(np.array(table["score"], dtype=float), good)}


class Study(runner.Study):
    name, about, threads = "curation", __doc__ or "", 1
    rows, default = ROWS, ("rows",)
    seeds = {"": (7, 8, 9), "choices": (1,)}  # noqa: RUF012

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.images = QUICK_IMAGES if args.quick else IMAGES
        if not (args.tables or args.export):
            self.digest = weights_digest(Captioner.load(args.bases[0]).core.state_dict())

    def sources(self, row: Set) -> dict[str, str]:
        split = "val" if row.section == "choices" else "test"
        return {split: sources(row.seed, quick=self.args.quick)[split]}

    def depends(self, row: Set) -> str:
        content = [self.digest, row.depends(), row.source(self.images), STEPS, row.seed, self.sources(row)]
        return fingerprint(json.dumps([*content, self.args.quick], sort_keys=True))

    def make(self, row: Set) -> dict[str, Any]:
        record: dict[str, Any] = {"source": row.source(self.images), "sources": self.sources(row)}
        work = self.args.work / "runs" / self.depends(row)
        shutil.rmtree(work, ignore_errors=True)
        curated = work / "set" if row.steps else None
        if curated:
            curate(record["source"], curated, row.steps, progress=False)
        if row.kind == "alt_text":
            record["noise"] = noise(record["source"], curated)
        if row.kind == "base":
            record["scores"] = self.scores(row, None)
            return record
        started = time.process_time()
        settings = {"max_steps": STEPS, **UNSAVED, **(QUICK if self.args.quick else {})}
        sft.run(
            sft.SFTConfig(
                model=row.base,
                images=str(curated / "captions.parquet") if curated else record["source"],
                eval_images="storybook:val?n=8",
                output=work / "sft",
                seed=row.seed,
                condition="level" if row.levels else None,
                **settings,
            )
        )
        record["training_seconds"] = round(time.process_time() - started, 1)
        clean(work)
        adapter = work / "sft/adapter"
        record["steps_trained"] = settings["max_steps"]
        if row.levels:
            record["levels"] = [self.scores(row, adapter, level) for level in range(row.levels)]
            record["scores"] = record["levels"][-1]  # NoC asks for the highest
        else:
            record["scores"] = self.scores(row, adapter)
        return record

    def scores(self, row: Set, adapter: Path | None, level: int | None = None) -> dict[str, dict[str, float]]:
        """{split: figures}, asked for a level where there are such."""
        prompt = None if level is None else prompt_under(adapter, f"level={level}")
        captioner = Captioner.load(row.base, adapter=adapter, prompt=prompt)
        exams = self.exams(self.sources(row), lambda source: Exam.of(source, SCORERS))
        return {split: exam.figures(exam.captions(captioner)) for split, exam in exams.items()}

    def write(self) -> list[Path]:
        return [tables.write(self.store.rows, self.args.results)]


main = Study.main
