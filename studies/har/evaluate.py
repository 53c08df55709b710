"""HAR's stages and its baselines on one base: captions of images that nothing was trained or chosen on, and scores."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from captune.decoding.zerocap import ZeroCapModel
from captune.models.captioner import Captioner
from captune.models.encoders.clip import Encoder
from captune.scorers import load_scorer
from captune.scorers.reference.cider import Cider
from captune.storybook import Scene
from captune.storybook.clip import ClipConfig, build
from captune.storybook.grammar import reference
from captune.utils.files import replace_file
from captune.utils.hashing import fingerprint, weights_digest
from studies._lib import evalset, runner
from studies._lib.evalset import Exam

from . import tables, train
from .experiments import PARTS, ROWS, System

HELD_OUT = ClipConfig(seed=1)  # the shipped encoder is seed 0: other images, other weights, another tokenizer
SCORERS = ("cider", "bleu", "storybook", "clip", "health")
SHOWN = 4  # captions kept of each split
BATCH = 16  # images that are captioned at once; what a caption costs depends on it
SENTENCES = 40  # of a scene, for the consensus
TIMED = 64  # images for the time of a forward pass


def sources(seed: int, *, quick: bool = False) -> dict[str, str]:
    """The images of a seed. Other images for each seed, so that a spread over seeds is one over images too."""
    return evalset.sources(100 + seed, quick=quick, test=500, ood=200, val=300)


def held_out_encoder(work: Path, results: Path, *, quick: bool) -> Encoder:
    """An encoder that no row was trained with, guided by or picked by; built where it is missing (seven minutes)."""
    folder = work / "encoder"
    if not (folder / "build.json").is_file():
        config = ClipConfig(seed=1, num_images=64, look_steps=2, steps=2, batch_size=8, validation=20)
        build(config if quick else HELD_OUT, folder)
    encoder = Encoder.load(folder)
    log = json.loads((folder / "build.json").read_text())
    kept = {"digest": encoder.digest, **{key: log[key] for key in ("config", "figures")}}
    results.mkdir(parents=True, exist_ok=True)
    replace_file(results / "encoder.json", json.dumps(kept, indent=1) + "\n")
    return encoder


def write_captions(row: System, captioner: Any, exam: Exam, seed: int) -> list[str]:
    """A caption of each image."""
    set_seed(seed)
    return exam.captions(captioner, decoder=row.decoder, batch_size=BATCH)


def consensus(columns: dict[str, list[Any]]) -> list[str]:
    """What a captioner that sees everything would best write: of `SENTENCES` sentences that the grammar makes of
    the scene, the one that agrees best with all of them in CIDEr-D. The image's own references are not looked at."""
    cider, chosen = Cider().fit(columns["references"]), []
    for number, text in enumerate(columns["scene"]):
        scene = Scene.from_json(text)
        own = [reference(scene, random.Random(f"{number}/{place}")) for place in range(SENTENCES)]
        chosen.append(own[int(cider.rows(own, references=[own] * SENTENCES)[:, 0].argmax())])
    return chosen


@torch.no_grad()
def forward_seconds(captioner: Captioner, images: list[Any], captions: list[str]) -> float:
    """Processor seconds of one forward pass of a trained captioner over an image and its caption: the unit of cost."""
    turns = []
    for _ in range(3):
        started = time.process_time()
        for at in range(0, len(images), BATCH):
            batch = captioner.prepare(images[at : at + BATCH], captions[at : at + BATCH])
            batch.pop("caption_mask")
            captioner.model(**batch, use_cache=False)
        turns.append((time.process_time() - started) / len(images))
    return statistics.median(turns)


def measure(row: System, base: str, made: train.Trained, exams: dict[str, Exam], seed: int) -> dict[str, Any]:
    """{scores: {split: figures}, captions: {split: the first few}, cost: of a caption, on the first split}"""
    captioner: Any = None
    if row.captions == "frozen pair":
        captioner = ZeroCapModel.load(*PARTS.values())
    elif row.captions not in ("references", "consensus"):
        captioner = Captioner.load(made.model, adapter=made.adapter)
        captioner.merge_adapter()
    record: dict[str, Any] = {"scores": {}, "captions": {}}
    for split, exam in exams.items():
        columns = exam.columns
        if row.captions == "consensus":
            captions = consensus(columns)
        elif row.captions == "references":  # the first as the caption, judged by the other four
            captions = [refs[0] for refs in columns["references"]]
            columns = {**columns, "references": [refs[1:] for refs in columns["references"]]}
        else:
            images = columns["image"]
            write_captions(row, captioner, Exam("", {"image": images[:BATCH]}, {}), seed)  # to warm up
            started = time.process_time()
            captions = write_captions(row, captioner, exam, seed)
            seconds = (time.process_time() - started) / len(captions)
            if "cost" not in record:
                forward = forward_seconds(Captioner.load(base), images[:TIMED], captions[:TIMED])
                record["cost"] = {"seconds": round(seconds, 5), "forward_passes": round(seconds / forward, 2)}
        record["scores"][split] = exam.figures(captions, columns)
        record["captions"][split] = captions[:SHOWN]
    return record


class Study(runner.Study):
    name, about, threads = "har", __doc__ or "", 1
    rows, default = ROWS, ("rows",)
    seeds = {"": (7, 8, 9, 10, 11), "choices": (1,)}  # noqa: RUF012

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        if args.tables or args.export:
            return
        self.encoder = held_out_encoder(args.work, args.results, quick=args.quick)
        self.base = weights_digest(Captioner.load(args.bases[0]).core.state_dict())
        pair = ZeroCapModel.load(*PARTS.values())
        self.digests = [self.base, weights_digest(pair.model.state_dict()), self.encoder.digest]

    def sources(self, row: System) -> dict[str, str]:
        found = sources(row.seed, quick=self.args.quick)
        return {split: found[split] for split in (("val",) if row.section == "choices" else ("test", "ood"))}

    def depends(self, row: System) -> str:
        content = [self.digests, row.depends(), row.seed, list(self.sources(row).values())]
        return fingerprint(json.dumps(content, sort_keys=True))

    def make(self, row: System) -> dict[str, Any]:
        made = train.train(row, row.base, self.base, row.seed, self.args.work, quick=self.args.quick)
        sources, held_out = self.sources(row), load_scorer("clip:held-out", encoder=self.encoder)
        exams = self.exams(sources, lambda source: Exam.of(source, SCORERS, held_out=held_out))
        record = measure(row, row.base, made, exams, row.seed)
        return {"base": self.base, "training_seconds": made.seconds, "sources": sources, **record}

    def describe(self, row: System) -> dict[str, Any]:
        return {"settings": row.depends()}

    def write(self) -> list[Path]:
        return tables.write(self.args.results)


main = Study.main
