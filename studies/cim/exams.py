"""What a row says about the evaluation images, and its scores."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import Corpus, Spec
from tqdm.auto import tqdm
from transformers import set_seed
from workshop import Workshop, key_of, write

from captune.data import CaptionWriter, load_images
from captune.evaluation.run import as_dict
from captune.evaluation.statistics import evaluate
from captune.models.captioner import Captioner
from captune.scorers import Scorer, load_scorer
from captune.storybook.parser import parse
from captune.storybook.world import KINDS, Scene

# Nothing was tuned on test and ood; choices are made on val alone.
SOURCES = {
    "test": "storybook:test?n=500&seed=91",
    "ood": "storybook:ood?n=500&seed=91",
    "val": "storybook:val?n=300&seed=5",
}
QUICK_SOURCES = {split: source.partition("?")[0] + "?n=20&seed=91" for split, source in SOURCES.items()}
NO_REFERENCES = ("storybook", "health", "clip")  # what judges the references themselves


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
        return cls(split, source, columns, [load_scorer(n) for n in ("cider", "bleu", "storybook", "health", "clip")])

    def score(self, captions: list[str], measures: dict[str, Any], *, references: bool = True) -> dict[str, Any]:
        """{scorer: {values, interval, signature}}, the rewards' own figures and the species among them."""
        chosen = [s for s in self.scorers if references or s.name in NO_REFERENCES]
        bootstrap = 0 if self.split == "val" else 1000
        results = evaluate(captions, self.columns, [*chosen, *measures.values()], bootstrap=bootstrap)
        scores = {name: rounded(as_dict(result)) for name, result in results.items()}
        return scores | {"species": {"values": hierarchy(captions, self.columns["scene"])}}


def rounded(score: dict[str, Any]) -> dict[str, Any]:
    values = {key: round(value, 5) for key, value in score["values"].items()}
    interval = {key: [round(low, 5), round(high, 5)] for key, (low, high) in score["interval"].items()}
    return {"values": values, **({"interval": interval} if interval else {}), "signature": score["signature"]}


def told(caption: str, scene: Scene) -> tuple[int, int, int]:
    """Of the scene's things that have a sub-kind: how many there are, how many the caption names by their kind
    ("species"), and how many by their sub-kind too ("breed"), and by no other one."""
    stated = {(fact.type, fact.value) for fact in parse(caption) if fact.type in ("object", "subkind")}
    things = [thing for thing in scene.things if thing.subkind]
    kinds = [thing for thing in things if ("object", (thing.kind,)) in stated]
    breeds = [t for t in kinds if [s for s in KINDS[t.kind] if ("subkind", (t.kind, s)) in stated] == [t.subkind]]
    return len(things), len(kinds), len(breeds)


def hierarchy(captions: list[str], scenes: list[str]) -> dict[str, float]:
    """CIM's Table 1: the shares of kinds and of sub-kinds that can be told from the captions alone."""
    counts = [told(caption, Scene.from_json(scene)) for caption, scene in zip(captions, scenes, strict=True)]
    there, kinds, breeds = (sum(column) for column in zip(*counts, strict=True))
    return {"species_acc": round(kinds / there, 5), "breed_acc": round(breeds / there, 5)}


def captions_of(captioner: Captioner, images: list[Any], *, name: str = "", **settings: Any) -> list[str]:
    """Captions in the order of the images, `num_return_sequences` (1) for each."""
    captions: list[str] = []
    for at in tqdm(range(0, len(images), 64), desc=f"captions {name}", disable=None, leave=False):
        captions += captioner.generate(images[at : at + 64], **settings)
    return captions


def run(spec: Spec, shop: Workshop, exams: list[Exam], keep: Path | None) -> dict[str, Any]:
    """Makes a row: trains if it has to, captions the images of all exams, scores.

    Args:
        keep: where to keep the captions of the test images.
    """
    record: dict[str, Any] = {}
    captioner = None
    if spec.kind in ("sft", "grpo"):
        adapter, seconds = shop.adapter(spec)
        captioner = shop.load(adapter)
        record["training_seconds"] = round(seconds, 1)
        record["rewards"] = curve(adapter.parent / "metrics.jsonl")
    measures = shop.measures(Corpus())  # the same for every row, whatever gallery it was trained on
    record["scores"] = {}
    for exam in exams:
        captions = written(spec, shop, captioner or shop.load(), exam)
        record["scores"][exam.split] = exam.score(captions, measures, references=spec.kind != "references")
        if keep is not None and exam.split == "test":
            with CaptionWriter(keep, resume=False) as writer:
                pairs = zip(exam.columns["image_id"], captions, strict=True)
                writer.write({"image_id": image_id, "caption": caption} for image_id, caption in pairs)
    record["sources"] = {exam.split: exam.source for exam in exams}
    return record


def curve(file: Path) -> dict[str, list[float]]:
    """{logged name: its values}: steps, rewards, KL and length of a run."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line for line in lines if "reward" in line]
    names = {"step": "step", "reward": "reward", "kl": "kl", "completions/mean_length": "length"}
    return {short: [round(line[name], 4) for line in lines if name in line] for name, short in names.items()}


def written(spec: Spec, shop: Workshop, captioner: Captioner, exam: Exam) -> list[str]:
    """The captions of a row for the images of an exam."""
    images = exam.columns["image"]
    if spec.kind == "references":
        return [own[0] for own in exam.columns["references"]]
    if spec.kind == "opening":
        return captions_of(captioner, images, name=spec.name, forced_opening=spec.settings["text"])
    if spec.kind == "best_of":
        return best_of(spec, shop, captioner, exam)
    return captions_of(captioner, images, name=spec.name)


def best_of(spec: Spec, shop: Workshop, captioner: Captioner, exam: Exam) -> list[str]:
    """The one of n samples of each image that the model itself finds likeliest, by token or in all."""
    n, pick = spec.settings["n"], spec.settings["pick"]
    file = shop.work / "samples" / f"{key_of([shop.digest, exam.source, n, spec.seed])}.json"
    if not file.is_file():
        set_seed(spec.seed)
        made: dict[str, list[Any]] = {"captions": [], "mean": [], "total": []}
        started = time.perf_counter()
        for at in tqdm(range(0, len(exam.columns["image"]), 32), desc="samples", disable=None, leave=False):
            batch = exam.columns["image"][at : at + 32]
            captions, mean, total = captioner.generate(
                batch, do_sample=True, num_return_sequences=n, return_logprob=True
            )
            made["captions"] += captions
            made["mean"] += mean.tolist()
            made["total"] += total.tolist()
        write(file, {**made, "seconds": time.perf_counter() - started})
    made = json.loads(file.read_text())
    scores = made[pick]
    return [made["captions"][max(range(at, at + n), key=scores.__getitem__)] for at in range(0, len(scores), n)]
