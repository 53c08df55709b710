"""Trains a row with the commands' own functions, captions images that nothing was trained or chosen on, and scores.

Time is the processor time of this process; with one thread (`run.py` sees to it) that is the time of one core.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from systems import TRAIN, Row, Stage
from tqdm.auto import tqdm
from transformers import set_seed

from captune.data import load_images
from captune.decoding import load_decoder
from captune.decoding.zerocap import FrozenPair
from captune.evaluation.statistics import evaluate
from captune.models.captioner import Captioner
from captune.models.encoders.clip import Encoder
from captune.scorers import Scorer, load_scorer
from captune.scorers.reference.cider import Cider
from captune.storybook import Scene
from captune.storybook.clip import ClipConfig, build
from captune.storybook.grammar import reference
from captune.training import har, scst, sft
from captune.utils.files import replace_file
from captune.utils.hashing import fingerprint

PARTS = {"language_model": "storybook-lm", "image_encoder": "storybook-clip"}
HELD_OUT = ClipConfig(seed=1)  # the shipped encoder is seed 0: other pictures, other weights, another tokenizer
SHOWN = 4  # captions kept of each split
BATCH = 16  # pictures that are captioned at once; what a caption costs depends on it
SENTENCES = 40  # of a scene, for the consensus
TIMED = 64  # pictures for the time of a forward pass
QUICK = {
    "sft": {"max_steps": 2, "batch_size": 4},
    "scst": {"max_steps": 2, "batch_size": 4, "max_new_tokens": 8},
    "har": {"mle_steps": 2, "mle_batch_size": 4, "scst_steps": 2, "scst_batch_size": 4, "max_new_tokens": 8},
}


def sources(seed: int, *, quick: bool = False) -> dict[str, str]:
    """The images of a seed. Other images for each seed, so that a spread over seeds is one over images too."""
    n, few, held = (12, 12, 12) if quick else (500, 200, 300)
    number = 100 + seed  # 107 for the first seed, 7: not used elsewhere
    return {
        "test": f"storybook:test?n={n}&seed={number}",
        "ood": f"storybook:ood?n={few}&seed={number}",
        "val": f"storybook:val?n={held}&seed=5",
    }


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


@dataclass
class Exam:
    """Images with what scorers need to know about them; scorers keep what they made of them."""

    source: str
    columns: dict[str, list[Any]]
    scorers: dict[str, Scorer]

    @classmethod
    def of(cls, source: str, encoder: Encoder) -> Exam:
        images = load_images(source)[:]
        columns = {name: list(images[name]) for name in ("image", "references", "scene")}
        scorers = {name: load_scorer(name) for name in ("cider", "bleu", "storybook", "clip", "health")}
        return cls(source, columns, {**scorers, "held_out": load_scorer("clip:held-out", encoder=encoder)})

    def score(self, captions: list[str], columns: dict[str, list[Any]]) -> dict[str, float]:
        """Every figure of every scorer by its name: "cider", "fact_f1", "clip", "held_out_clip", ..."""
        figures: dict[str, float] = {}
        for name, scorer in self.scorers.items():
            (result,) = evaluate(captions, columns, [scorer], bootstrap=0).values()
            prefix = "held_out_" if name == "held_out" else ""
            figures |= {f"{prefix}{key}": round(float(value), 5) for key, value in result.values.items()}
        return figures


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    model: str  # a folder, or a name
    adapter: Path | None
    seconds: list[float]  # of each stage


def train(row: Row, base: str, digest: str, seed: int, work: Path, *, quick: bool) -> Trained:
    """Runs the stages that were not run for another row already; what an unfinished one left is removed.

    `digest` is that of the base's weights.
    """
    made = Trained(base, None, [])
    for place, stage in enumerate(row.training):
        past = [[own.method, own.settings] for own in row.training[: place + 1]]
        run = work / "runs" / fingerprint(json.dumps([digest, seed, quick, past], sort_keys=True))
        done = run / "seconds.json"
        if not done.is_file():
            shutil.rmtree(run, ignore_errors=True)
            started = time.process_time()
            run_stage(stage, made, run, seed, quick=quick)
            for left in list(run.glob("**/checkpoint-*")):
                shutil.rmtree(left)
            replace_file(done, json.dumps(round(time.process_time() - started, 1)) + "\n")
        model = str(run / "captioner") if stage.method == "har" else base
        made = Trained(model, run / "adapter", [*made.seconds, json.loads(done.read_text())])
    if row.captions == "first stage":
        made.adapter = None
    return made


def run_stage(stage: Stage, before: Trained, run: Path, seed: int, *, quick: bool) -> None:
    """What the command of that name does, on few validation images, since the study has images of its own."""
    settings: dict[str, Any] = {"images": f"{TRAIN}?n=24" if quick else TRAIN, "evaluation": "storybook:val?n=16"}
    settings |= {"output": run, "seed": seed, "save_steps": 10**6, "overwrite": True}
    settings |= {**stage.settings, **(QUICK[stage.method] if quick else {})}
    if stage.method == "har":
        har.run(har.HARConfig(**PARTS, **settings))
    elif stage.method == "sft":
        sft.run(sft.SFTConfig(model=before.model, **settings))
    else:
        scst.run(scst.SCSTConfig(model=before.model, adapter=before.adapter, **settings))


# -- captions and what they cost ---------------------------------------------------------------------------------------


def say(row: Row, captioner: Any, images: list[Any], seed: int) -> list[str]:
    """A caption of each image."""
    decoder = load_decoder(row.decoder) if row.decoder else None
    set_seed(seed)
    captions: list[str] = []
    for at in tqdm(range(0, len(images), BATCH), desc="captions", disable=None, leave=False):
        batch = images[at : at + BATCH]
        captions += decoder(captioner, batch) if decoder else captioner.generate(batch)
    return captions


def consensus(columns: dict[str, list[Any]]) -> list[str]:
    """What a captioner that sees everything would do best to say: of `SENTENCES` sentences that the grammar makes of
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


def measure(row: Row, base: str, made: Trained, exams: dict[str, Exam], seed: int) -> dict[str, Any]:
    """{scores: {split: figures}, captions: {split: the first few}, cost: of a caption, on the first split}"""
    captioner: Any = None
    if row.captions == "frozen pair":
        captioner = FrozenPair.load(*PARTS.values())
    elif row.captions not in ("references", "consensus"):
        captioner = Captioner.load(made.model, adapter=made.adapter)
        captioner.merge_adapter()
    record: dict[str, Any] = {"scores": {}, "captions": {}}
    for split, exam in exams.items():
        columns = exam.columns
        if row.captions == "consensus":
            captions = consensus(columns)
        elif row.captions == "references":  # the first as the caption, judged by the other four
            captions = [own[0] for own in columns["references"]]
            columns = {**columns, "references": [own[1:] for own in columns["references"]]}
        else:
            say(row, captioner, columns["image"][:BATCH], seed)  # to warm up
            started = time.process_time()
            captions = say(row, captioner, columns["image"], seed)
            seconds = (time.process_time() - started) / len(captions)
            if "cost" not in record:
                forward = forward_seconds(Captioner.load(base), columns["image"][:TIMED], captions[:TIMED])
                record["cost"] = {"seconds": round(seconds, 5), "forward_passes": round(seconds / forward, 2)}
        record["scores"][split] = exam.score(captions, columns)
        record["captions"][split] = captions[:SHOWN]
    return record
