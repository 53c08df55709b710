"""What a row says about the evaluation images, and its scores."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import Spec
from tqdm.auto import tqdm
from training import Bench, key_of, write
from transformers import set_seed

from captune import storybook
from captune.data import CaptionWriter, load_images
from captune.evaluation.run import as_dict
from captune.evaluation.statistics import evaluate
from captune.models.captioner import Captioner
from captune.scorers import Scorer, load_scorer
from captune.scorers.image.vizer_mapper import ViZerScorer

# Test images of a seed that nothing was tuned on; choices are made on val alone.
SOURCES = {
    "test": "storybook:test?n=500&seed=1",
    "ood": "storybook:ood?n=500&seed=1",
    "val": "storybook:val?n=300&seed=5",
}
QUICK_SOURCES = {split: source.partition("?")[0] + "?n=20&seed=1" for split, source in SOURCES.items()}
NO_REFERENCES = ("storybook", "clip", "health")  # what judges the references themselves


@dataclass
class Exam:
    """The images of one source with what scorers need to know about them; scorers keep what they made of it."""

    split: str
    source: str
    columns: dict[str, list[Any]]
    scorers: list[Scorer]

    @classmethod
    def of(cls, split: str, source: str) -> Exam:
        rows = load_images(source)[:]
        columns = {name: list(rows[name]) for name in ("image_id", "image", "references", "scene")}
        names = ["cider", "bleu", "rouge", "storybook", "health"]
        if (storybook.model_path("storybook-clip") / "config.json").is_file():
            names.append("clip")
        return cls(split, source, columns, [load_scorer(name) for name in names])

    def score(self, captions: list[str], mapper: Scorer | None, *, only: tuple[str, ...] = ()) -> dict[str, Any]:
        """{scorer: {values, interval, signature}}; several captions per image, grouped, count as one corpus."""
        each = len(captions) // len(self.columns["image"])
        columns = {k: [v for v in column for _ in range(each)] for k, column in self.columns.items() if k != "image_id"}
        scorers = [s for s in self.scorers if not only or s.name in only] + ([mapper] if mapper else [])
        several = each > 1  # captions of one image are not independent: no interval
        results = evaluate(captions, columns, scorers, bootstrap=0 if several or self.split == "val" else 1000)
        return {name: rounded(as_dict(result)) for name, result in results.items()}


def rounded(score: dict[str, Any]) -> dict[str, Any]:
    values = {key: round(value, 5) for key, value in score["values"].items()}
    interval = {key: [round(low, 5), round(high, 5)] for key, (low, high) in score["interval"].items()}
    return {"values": values, **({"interval": interval} if interval else {}), "signature": score["signature"]}


def captions_of(
    captioner: Captioner, images: list[Any], *, name: str = "", batch_size: int = 64, **settings: Any
) -> list[str]:
    """Captions in the order of the images, `num_return_sequences` (1) for each."""
    captions: list[str] = []
    for at in tqdm(range(0, len(images), batch_size), desc=f"captions {name}", disable=None, leave=False):
        captions += captioner.generate(images[at : at + batch_size], **settings)
    return captions


def run(spec: Spec, bench: Bench, exams: list[Exam], keep: Path | None) -> dict[str, Any]:
    """Makes a row: trains if it has to, captions the images of all exams, scores.

    Args:
        keep: where to keep the captions of the test images.
    """
    record: dict[str, Any] = {}
    mapper = None
    if spec.kind in ("vizer", "sft"):
        adapter, mapper, seconds = bench.trained(spec)
        captioner = bench.load(adapter)
        record["training_seconds"] = round(seconds, 1)
    else:
        captioner = bench.load()
    judge = ViZerScorer(captioner=captioner, mapper=mapper or bench.judge(captioner))
    captioned = seconds = 0.0
    record["scores"] = {}
    for exam in exams:
        started = time.perf_counter()
        captions = written(spec, bench, captioner, exam, judge)
        seconds += time.perf_counter() - started
        captioned += len(captions)
        only = NO_REFERENCES if spec.kind == "references" else ()
        record["scores"][exam.split] = exam.score(captions, judge, only=only)
        if keep and exam.split == "test" and len(captions) == len(exam.columns["image_id"]):
            with CaptionWriter(keep, resume=False) as writer:
                pairs = zip(exam.columns["image_id"], captions, strict=True)
                writer.write({"image_id": image_id, "caption": caption} for image_id, caption in pairs)
    if spec.kind in ("greedy", "vizer", "sft"):
        record["images_per_second"] = round(captioned / seconds, 1)
    record["sources"] = {exam.split: exam.source for exam in exams}
    return record


def written(spec: Spec, bench: Bench, captioner: Captioner, exam: Exam, judge: Scorer) -> list[str]:
    """The captions of a row for the images of an exam."""
    images = exam.columns["image"]
    if spec.kind == "references":
        return [own[0] for own in exam.columns["references"]]
    if spec.kind == "opening":
        return captions_of(captioner, images, name=spec.name, forced_opening=spec.settings["text"])
    if spec.kind == "best_of":
        return best_of(spec, bench, captioner, exam, judge)
    return captions_of(captioner, images, name=spec.name)


def best_of(spec: Spec, bench: Bench, captioner: Captioner, exam: Exam, judge: Scorer) -> list[str]:
    """One of n samples per image, chosen by the model's own log-likelihood or the mapper; or all of them."""
    n, pick = spec.settings["n"], spec.settings["pick"]
    file = bench.work / "samples" / f"{key_of([bench.digest, exam.source, n, bench.seed])}.json"
    if not file.is_file():
        set_seed(bench.seed)
        made: dict[str, list[Any]] = {"captions": [], "mean": [], "total": []}
        for at in tqdm(range(0, len(exam.columns["image"]), 32), desc="samples", disable=None, leave=False):
            batch = exam.columns["image"][at : at + 32]
            settings = {"do_sample": True, "num_return_sequences": n, "return_logprob": True}
            captions, mean, total = captioner.generate(batch, **settings)
            made["captions"] += captions
            made["mean"] += mean.tolist()
            made["total"] += total.tolist()
        write(file, made)
    made = json.loads(file.read_text())
    if pick == "all":
        return made["captions"]
    if pick == "mapper":
        images = [image for image in exam.columns["image"] for _ in range(n)]
        scores = judge(made["captions"], image=images)
    else:
        scores = made[pick]
    return [made["captions"][max(range(at, at + n), key=scores.__getitem__)] for at in range(0, len(scores), n)]
