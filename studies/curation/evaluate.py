"""Fine-tuning on alt texts as they are, filtered, rewritten and in levels; scorers against wrong-image captions."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from captune.curation import curate
from captune.data import load_images
from captune.models.captioner import Captioner
from captune.models.condition import prompt_under
from captune.scorers import load_scorer
from captune.storybook.scorer import TYPES
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.grpo.train import run as grpo
from captune.training.sft.train import SFTConfig
from captune.training.sft.train import run as sft
from captune.utils.files import replacing
from captune.utils.hashing import fingerprint, weights_digest
from studies._lib import evalset, runner
from studies._lib.evalset import Exam
from studies._lib.train import UNSAVED, clean

from . import tables, wrong
from .experiments import RAW, ROWS, Set, Wrong

SCORERS = ("cider", "storybook", "clip")
QUICK_IMAGES, QUICK = 40, {"max_steps": 2, "batch_size": 4}
QUICK_GRPO = {"num_generations": 2, "max_new_tokens": 8}
# Chosen in studies/vizer; as in studies/zero_label, 0.5 times the share of repeated 3-grams goes off.
GRPO = {"learning_rate": 2e-3, "warmup_steps": 5, "beta": 0.05, "watch": "none", "accept_reward": True}
REPETITION = " - 0.5*repetition"
BOILERPLATE = re.compile(r"<PERSON>|\b(my|photo|untitled|for sale)\b")


def sources(seed: int, *, quick: bool = False) -> dict[str, str]:
    """The images of a seed."""
    return evalset.sources(200 + seed, quick=quick, test=300)


def clean_captions(texts: list[str], scenes: list[str]) -> tuple[np.ndarray, dict[str, float]]:
    """(N,) whether a caption states something and all of it is true; figures of all of them together."""
    scorer = load_scorer("storybook")
    counts = scorer.rows(texts, scene=scenes)
    true, stated = counts[:, :-1].reshape(len(counts), len(TYPES), 4).sum(axis=1).T[:2]
    good = (stated > 0) & (true == stated)
    total = scorer.from_totals(counts.sum(axis=0), len(counts))
    facts = {key: round(float(total[key]), 5) for key in ("fact_precision", "fact_recall", "fact_f1")}
    return good, {"captions": len(texts), "distinct": len(set(texts)), "clean": round(float(good.mean()), 5), **facts}


def boilerplate(texts: list[str]) -> float:
    """The share of captions in the alt-text writer's words that describe nothing: "my favourite photo"."""
    return round(sum(bool(BOILERPLATE.search(text)) for text in texts) / len(texts), 5)


def first_captions(source: str) -> tuple[list[str], list[str]]:
    """The first caption of each image, and the scenes."""
    rows = load_images(source, decode=False).select_columns(["references", "scene"])
    return [texts[0] for texts in rows["references"]], list(rows["scene"])


def told_apart(source: str, folder: Path) -> float | None:
    """The AUC of a first step's scores: how often a clean caption of the source has a higher one than another."""
    scores = wrong.decisions(folder)["score"]
    good, _ = clean_captions(*first_captions(source))
    return wrong.auc(np.array(scores, dtype=float), good)


class Study(runner.Study):
    name, about, threads = "curation", __doc__ or "", 1
    rows, default = ROWS, ("rows", "levels", "wrong")
    seeds = {"": (7, 8, 9, 10, 11)}  # noqa: RUF012

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        if not (args.tables or args.export):
            self.digest = weights_digest(Captioner.load(args.bases[0]).core.state_dict())

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = super().parser()
        parser.add_argument("--texts", type=Path, nargs="+", help="Flickr8k's captions: tables of image,caption")
        parser.add_argument("--photos", type=Path, help="one of them, whose photographs lie beside it or in images/")
        parser.add_argument("--detector", type=Path, help="an ONNX detector of COCO's objects: yolox_nano.onnx")
        return parser

    def todo(self) -> list[Any]:
        """All rows but those whose data no flag names."""
        there = {"flickr8k": self.args.texts, "photos": self.args.photos and self.args.detector}
        rows = super().todo()
        lacking = sorted({row.name for row in rows if isinstance(row, Wrong) and not there.get(row.of, True)})
        if lacking:
            print("left out, for want of --texts, or of --photos and --detector:", "; ".join(lacking))
        return [row for row in rows if row.name not in lacking]

    def depends(self, row: Set | Wrong) -> str:
        if isinstance(row, Wrong):
            data = wrong.Data.of(row, self.args).depends()
        else:
            data = [row.pool(), sources(row.seed, quick=self.args.quick)]
        content = [self.digest, row.depends(), data, row.seed, self.args.quick]
        return fingerprint(json.dumps(content, sort_keys=True))

    def make(self, row: Set | Wrong) -> dict[str, Any]:
        if isinstance(row, Wrong):
            return wrong.judge(row, wrong.Data.of(row, self.args), self.args.work)
        record: dict[str, Any] = {"pool": row.pool(), "sources": sources(row.seed, quick=self.args.quick)}
        if row.kind == "base":
            return {**record, "scores": self.scores(row, None)}
        if row.kind == "reward":
            adapter, record["training_seconds"] = self.optimised(row)
            return {**record, "scores": self.scores(row, adapter)}
        record["sets"] = list(self.trained(row))
        if row.levels:
            adapter = self.folder(row) / "0/sft/adapter"
            record["levels"] = [self.scores(row, adapter, level) for level in range(row.levels)]
        return {**record, "scores": record["sets"][-1]["scores"]}

    def folder(self, row: Set) -> Path:
        return self.args.work / "runs" / self.depends(row)

    def pool(self, row: Set, n: int, skip: int = 0) -> str:
        """Images of the row's pool; it is drawn once, with references, alt texts, scenes, and who is no boilerplate."""
        drawn = row.pool().replace(f"n={max(row.images, n)}", f"n={QUICK_IMAGES}") if self.args.quick else row.pool()
        file = self.args.work / "pools" / f"{fingerprint(drawn)}.parquet"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                rows = load_images(drawn)
                plain = [float(not BOILERPLATE.search(text)) for text in rows["alt_text"]]
                rows.add_column("plain", plain).to_parquet(str(temporary))
        if self.args.quick:
            n, skip = QUICK_IMAGES, 0
        return f"{file}?n={n}&skip={skip}"

    def trained(self, row: Set) -> Any:
        """Yields, for each set of the row, what it is and what a captioner trained on it says."""
        work = self.folder(row)
        shutil.rmtree(work, ignore_errors=True)
        adapter = None
        for number, own in enumerate(row.sets):
            source = self.pool(row, own["n"], own["skip"]) + ("&caption=alt_text" if row.kind == "alt_text" else "")
            made: dict[str, Any] = {"name": own["name"]}
            started = time.process_time()
            if own["steps"]:
                steps = json.loads(json.dumps(own["steps"]).replace("{adapter}", str(adapter)))
                curate(source, work / f"{number}/set", steps, progress=False)
                made["curation_seconds"] = round(time.process_time() - started, 1)
                first = next(iter(own["steps"][0]))
                made["auc"] = None if first == "rewrite" else told_apart(source, work / f"{number}/set")
                source = str(work / f"{number}/set/captions.parquet")
            made["set"] = clean_captions(*first_captions(source))[1]
            started = time.process_time()
            adapter = self.sft(row, source, work / f"{number}/sft")
            made["training_seconds"] = round(time.process_time() - started, 1)
            yield {**made, "scores": self.scores(row, adapter)}
        clean(work)

    def sft(self, row: Set, images: str, output: Path) -> Path:
        settings = {"max_steps": row.max_steps, **UNSAVED, **(QUICK if self.args.quick else {})}
        condition = "level" if row.levels else None
        small = "storybook:val?n=8"  # what a run captions before and after, which counts for nothing
        config = {"images": images, "eval_images": small, "output": output, "seed": row.seed, "condition": condition}
        sft(SFTConfig(model=row.base, **config, **settings))
        return output / "adapter"

    def optimised(self, row: Set) -> tuple[Path, float]:
        """Trained by a reward on the pool's images, from the captioner of raw alt texts; the seconds without those."""
        (raw,) = (own for own in ROWS["rows"] if own.name == RAW)
        raw = replace(raw, seed=row.seed, base=row.base)
        start = self.folder(raw) / "0/sft/adapter"
        if not start.is_dir():
            start = self.sft(raw, self.pool(raw, raw.images) + "&caption=alt_text", self.folder(row) / "raw")
        settings = {**GRPO, "max_steps": row.max_steps, **UNSAVED, **(QUICK | QUICK_GRPO if self.args.quick else {})}
        output, started = self.folder(row) / "grpo", time.process_time()
        config = {"images": self.pool(row, row.images), "eval_images": "storybook:val?n=8", "seed": row.seed}
        config |= {"reward": row.reward + REPETITION, "adapter": start, "output": output}
        grpo(CaptionGRPOConfig(model=row.base, **config, **settings))
        clean(output)
        return output / "adapter", round(time.process_time() - started, 1)

    def scores(self, row: Set, adapter: Path | None, level: int | None = None) -> dict[str, dict[str, float]]:
        """{split: figures}, asked for a level where there are such: NoC asks for the highest."""
        wanted = row.levels - 1 if level is None else level
        prompt = prompt_under(adapter, f"level={wanted}") if row.levels else None
        captioner = Captioner.load(row.base, adapter=adapter, prompt=prompt)
        exams = self.exams(sources(row.seed, quick=self.args.quick), lambda source: Exam.of(source, SCORERS))
        said = {split: exam.captions(captioner) for split, exam in exams.items()}
        return {
            split: {**exams[split].figures(texts), "boilerplate": boilerplate(texts)} for split, texts in said.items()
        }

    def write(self) -> list[Path]:
        return [tables.write(self.store.rows, self.args.results)]


main = Study.main
