"""The images that a study's captions are judged on, and what scorers make of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import set_seed

from captune.data import CaptionWriter, load_images
from captune.decoding import load_decoder
from captune.evaluation.run import as_dict
from captune.evaluation.statistics import Result, evaluate
from captune.scorers import Scorer, load_scorer

NO_REFERENCES = ("storybook", "clip", "health")  # what judges the references themselves


@dataclass
class Exam:
    """The images of one source with what scorers need to know about them; scorers keep what they made of it."""

    source: str
    columns: dict[str, list[Any]]
    scorers: dict[str, Scorer]

    @classmethod
    def of(cls, source: str, scorers: Iterable[str], **loaded: Scorer) -> Exam:
        rows = load_images(source)[:]
        columns = {name: list(rows[name]) for name in ("image_id", "image", "references", "scene")}
        return cls(source, columns, {**{name: load_scorer(name) for name in scorers}, **loaded})

    def score(
        self, captions: list[str], more: Iterable[Scorer] = (), *, only: Sequence[str] = (), bootstrap: int = 1000
    ) -> dict[str, Any]:
        """{scorer: {values, interval, signature}}, by the set's scorers (or some of them) and more.

        Several captions of an image, grouped, count as one corpus; they are not independent, so there is no interval.
        """
        each = len(captions) // len(self.columns["image"])
        columns = {name: [v for v in column for _ in range(each)] for name, column in self.columns.items()}
        scorers = [scorer for name, scorer in self.scorers.items() if not only or name in only]
        results = evaluate(captions, columns, [*scorers, *more], bootstrap=0 if each > 1 else bootstrap)
        return {name: rounded(as_dict(result)) for name, result in results.items()}

    def figures(self, captions: list[str], columns: dict[str, list[Any]] | None = None) -> dict[str, float]:
        """{figure: value} of every scorer: cider, fact_f1, ...; those of the scorer `held_out` begin with its name."""
        figures: dict[str, float] = {}
        for name, result in self.results(captions, columns).items():
            prefix = "held_out_" if name == "held_out" else ""
            for key, value in result.values.items():
                figures.setdefault(f"{prefix}{key}", round(float(value), 5))
        return figures

    def results(self, captions: list[str], columns: dict[str, list[Any]] | None = None) -> dict[str, Result]:
        """{scorer: its result} without intervals, by the names of the set's scorers."""
        judged, columns = self.scorers.items(), columns or self.columns
        return {name: evaluate(captions, columns, [scorer], bootstrap=0)[scorer.name] for name, scorer in judged}

    def captions(self, captioner: Any, *, decoder: str = "", batch_size: int = 64, **settings: Any) -> list[str]:
        """Captions in the order of the images, by a decoder or as `Captioner.generate` makes them."""
        decode = load_decoder(decoder) if decoder else None
        return [
            text
            for batch in batches(self.columns["image"], batch_size, decoder or "captions")
            for text in (decode(captioner, batch, **settings) if decode else captioner.generate(batch, **settings))
        ]

    def samples(self, captioner: Any, n: int, seed: int, *, batch_size: int) -> dict[str, list[Any]]:
        """n samples of each image, grouped, with their mean and total log-likelihood."""
        set_seed(seed)
        made: dict[str, list[Any]] = {"captions": [], "mean": [], "total": []}
        for batch in batches(self.columns["image"], batch_size, "samples"):
            captions, mean, total = captioner.generate(
                batch, do_sample=True, num_return_sequences=n, return_logprob=True
            )
            made["captions"] += captions
            made["mean"] += mean.tolist()
            made["total"] += total.tolist()
        return made

    def judge(self, split: str, kind: str, captions: list[str], more: Iterable[Scorer], keep: Path | None) -> Any:
        """The scores of a row; the captions of test images are kept, if there is one of each."""
        if keep and split == "test" and len(captions) == len(self.columns["image_id"]):
            self.keep(captions, keep)
        only = NO_REFERENCES if kind == "references" else ()
        return self.score(captions, more, only=only, bootstrap=0 if split == "val" else 1000)

    def keep(self, captions: Sequence[str], file: Path) -> None:
        """Writes captions as `captune caption` does."""
        with CaptionWriter(file, resume=False) as writer:
            pairs = zip(self.columns["image_id"], captions, strict=True)
            writer.write({"image_id": image_id, "caption": caption} for image_id, caption in pairs)


def batches(items: Sequence[Any], size: int, what: str) -> Iterable[Sequence[Any]]:
    for at in tqdm(range(0, len(items), size), desc=what, disable=None, leave=False):
        yield items[at : at + size]


def best(captions: Sequence[str], scores: Sequence[float], n: int) -> list[str]:
    """Of each group of n captions that of the highest score."""
    return [captions[max(range(at, at + n), key=scores.__getitem__)] for at in range(0, len(captions), n)]


def rounded(score: dict[str, Any]) -> dict[str, Any]:
    values = {key: round(value, 5) for key, value in score["values"].items()}
    interval = {key: [round(low, 5), round(high, 5)] for key, (low, high) in score["interval"].items()}
    return {"values": values, **({"interval": interval} if interval else {}), "signature": score["signature"]}


def sources(number: int, *, quick: bool, **counts: int) -> dict[str, str]:
    """{split: source}: `number` is the seed of the images of test and ood, those of val are always the same."""
    seeds = {"test": number, "ood": number, "val": 5}
    return {split: f"storybook:{split}?n={12 if quick else n}&seed={seeds[split]}" for split, n in counts.items()}
