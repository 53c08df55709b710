"""What a row says about images that nothing was trained or chosen on, and its scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import OPENINGS, SCALES, Row
from tqdm.auto import tqdm
from transformers import set_seed

from captune.data import load_images
from captune.decoding import load_decoder
from captune.evaluation.statistics import evaluate
from captune.models.captioner import Captioner
from captune.scorers import Scorer, load_scorer

SCORERS = ("cider", "storybook", "clip", "health")
SHOWN = {"test": 8, "ood": 4}  # images of the examples page: the first ones of the first seed


def sources(seed: int, *, quick: bool = False) -> dict[str, str]:
    """The images of a seed. Other images for each seed, so that a spread over seeds is one over images too."""
    number = 84 + seed  # 91 for the first seed, 7; seed 1 was used by `studies/vizer`
    n = 12 if quick else 500
    few = 12 if quick else 300
    return {
        "test": f"storybook:test?n={n}&seed={number}",
        "ood": f"storybook:ood?n={n}&seed={number}",
        "val": f"storybook:val?n={few}&seed=5",
    }


@dataclass
class Exam:
    """Images with what scorers need to know about them; scorers keep what they made of them."""

    source: str
    columns: dict[str, list[Any]]
    scorers: list[Scorer]

    @classmethod
    def of(cls, source: str) -> Exam:
        rows = load_images(source)[:]
        columns = {name: list(rows[name]) for name in ("image", "references", "scene")}
        return cls(source, columns, [load_scorer(name) for name in SCORERS])

    def score(self, captions: list[str]) -> dict[str, float]:
        """Every figure of every scorer, by its name: "cider", "fact_f1", "length", ..."""
        results = evaluate(captions, self.columns, self.scorers, bootstrap=0)
        figures: dict[str, float] = {}
        for result in results.values():
            for key, value in result.values.items():
                figures.setdefault(key, round(float(value), 5))
        return figures

    def generate(self, captioner: Captioner, **settings: Any) -> list[Any]:
        """Per batch of 64 what `Captioner.generate` returns."""
        images = self.columns["image"]
        batches = tqdm(range(0, len(images), 64), desc="captions", disable=None, leave=False)
        return [captioner.generate(images[at : at + 64], **settings) for at in batches]

    def captions(self, captioner: Captioner, **settings: Any) -> list[str]:
        return [text for batch in self.generate(captioner, **settings) for text in batch]

    def guided(self, captioner: Captioner, decoder: str) -> list[str]:
        """What a decoder makes of the captioner as it is."""
        decode, images = load_decoder(decoder), self.columns["image"]
        batches = tqdm(range(0, len(images), 64), desc=decoder, disable=None, leave=False)
        return [text for at in batches for text in decode(captioner, images[at : at + 64])]

    def best_of(self, captioner: Captioner, seed: int, n: int = 8) -> dict[str, list[str]]:
        """One of n samples per image: that of the highest mean, or total, log-likelihood under the captioner."""
        set_seed(seed)
        made = self.generate(captioner, do_sample=True, num_return_sequences=n, return_logprob=True)
        texts = [text for batch, _, _ in made for text in batch]
        chosen = {}
        for name, place in (("mean", 1), ("total", 2)):
            scores = [score for batch in made for score in batch[place].tolist()]
            best = (max(range(at, at + n), key=scores.__getitem__) for at in range(0, len(texts), n))
            chosen[name] = [texts[i] for i in best]
        return chosen


def measure(
    row: Row, model: str, adapter: Path | None, exams: dict[str, Exam], seed: int, splits: tuple[str, ...]
) -> dict[str, Any]:
    """{scores: {split: figures}, captions: {split: the first few}, chosen: what a control chose on val}"""
    captioner = Captioner.load(model, adapter=adapter)
    record: dict[str, Any] = {}
    if row.kind in ("opening", "best_of", "guidance"):
        record["chosen"] = chosen = choose(row, captioner, exams["val"], seed)
    record |= {"scores": {}, "captions": {}}
    for split in splits:
        exam = exams[split]
        if row.kind == "references":  # the first as the caption, judged by all that does not read references
            captions = [own[0] for own in exam.columns["references"]]
        elif row.kind == "opening":
            captions = exam.captions(captioner, forced_opening=chosen)
        elif row.kind == "best_of":
            captions = exam.best_of(captioner, seed)[chosen]
        elif row.kind == "guidance":
            captions = exam.guided(captioner, chosen)
        else:
            captions = exam.captions(captioner)
        figures = exam.score(captions)
        if row.kind == "references":
            figures = {key: value for key, value in figures.items() if key not in ("cider", "ref_clip")}
        record["scores"][split] = figures
        record["captions"][split] = captions[: SHOWN.get(split, 0)]
    return record


def choose(row: Row, captioner: Captioner, val: Exam, seed: int) -> str:
    """The opening, the likelihood, or the scale of guidance, whose captions have the highest CIDEr-D on val."""
    if row.kind == "guidance":
        said = {f"cfg:{scale:g}": val.guided(captioner, f"cfg:{scale:g}") for scale in SCALES}
    elif row.kind == "opening":
        said = {text: val.captions(captioner, forced_opening=text) for text in OPENINGS}
    else:
        said = val.best_of(captioner, seed)
    return max(said, key=lambda name: val.score(said[name])["cider"])
