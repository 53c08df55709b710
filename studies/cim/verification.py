"""CIM's Figure 2: do GRC, QIR and their sum go with what a caption tells of its image?

Captions of a writer are put in order of a measure and cut into bins of 100; r is Pearson's correlation, over bins,
of the measure's mean with the logit of the share of sub-kinds ("breeds") that can be told from the caption alone.

The paper stops there. GRPO compares captions of *one* image, and a measure may go with breeds over all images only
because both go with the image (scenes of one thing are easy to tell and retrieve scenes alike). So we also ask, of two
captions of one image of which one tells more of the image's sub-kinds, or has the higher fact F1: how often does the
measure prefer it? 0.5 is chance, ties count half.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from transformers import set_seed

from captune.data import load_images
from captune.scorers import load_scorer
from captune.storybook.changes import CHANGES, changed
from captune.storybook.parser import is_true, parse
from captune.storybook.world import KINDS, Scene
from studies._lib.evalset import Exam
from studies._lib.train import key_of, once

from .experiments import BASE, BOTH, SUPERVISED, Spec
from .train import Workshop

SOURCES = {"scenes": "storybook:test?n=600&seed=92", "one thing": "storybook:test?n=4000&seed=92"}
SAMPLES = 4  # captions of an image
QUICK_SOURCES = {"scenes": "storybook:test?n=40&seed=92", "one thing": "storybook:test?n=200&seed=92"}
BIN = 100
MARGIN = 0.1  # of fact F1 between the captions of a pair


def mentioned(caption: str, scene: Scene) -> tuple[int, int, int]:
    """Of the scene's things that have a sub-kind: how many there are, how many the caption names by their kind
    ("species"), and how many by their sub-kind too ("breed"), and by no other one."""
    stated = {(fact.type, fact.value) for fact in parse(caption) if fact.type in ("object", "subkind")}
    things = [thing for thing in scene.things if thing.subkind]
    kinds = [thing for thing in things if ("object", (thing.kind,)) in stated]
    breeds = [t for t in kinds if [s for s in KINDS[t.kind] if ("subkind", (t.kind, s)) in stated] == [t.subkind]]
    return len(things), len(kinds), len(breeds)


def hierarchy(captions: list[str], scenes: list[str]) -> dict[str, float]:
    """CIM's Table 1: the shares of kinds and of sub-kinds that can be told from the captions alone."""
    counts = [mentioned(caption, Scene.from_json(scene)) for caption, scene in zip(captions, scenes, strict=True)]
    there, kinds, breeds = (sum(column) for column in zip(*counts, strict=True))
    return {"species_acc": round(kinds / there, 5), "breed_acc": round(breeds / there, 5)}


def images_of(population: str, quick: bool) -> Any:
    """Images with at least one sub-kind to tell. "one thing": that thing and no other, as on pets' photos."""
    dataset = load_images((QUICK_SOURCES if quick else SOURCES)[population])
    scenes = [Scene.from_json(text) for text in dataset["scene"]]
    alone = population == "one thing"
    return dataset.select(
        i for i, s in enumerate(scenes) if any(t.subkind for t in s.things) and not (alone and len(s.things) > 1)
    )


def captions(writer: str, shop: Workshop, dataset: Any, population: str, seed: int) -> list[str]:
    """`SAMPLES` captions of each image, grouped."""
    if writer == "changed references":
        return [text for i, own in enumerate(dataset["references"]) for text in spoilt(own, random.Random(i))]
    spec = None if writer == BASE else Spec(name="", kind={SUPERVISED: "sft", BOTH: "grpo"}[writer], seed=seed)
    key = [shop.key(spec) if spec else shop.digest, SOURCES[population], SAMPLES, len(dataset)]

    def sample() -> list[str]:
        captioner = shop.load(shop.adapter(spec)[0] if spec else None)
        set_seed(seed)
        exam = Exam("", {"image": dataset["image"]}, {})
        return exam.captions(captioner, do_sample=True, num_return_sequences=SAMPLES)

    return once(shop.work / "samples" / f"{key_of(key)}.json", sample)


def spoilt(references: list[str], rng: random.Random) -> list[str]:
    """References with none to three facts changed, sub-kinds and kinds first."""
    made = []
    for number, text in enumerate(references[:SAMPLES]):
        for what in ("subkind", "kind", rng.choice(CHANGES))[:number]:
            text = changed(text, what, rng) or text
        made.append(text)
    return made


def correlation(values: np.ndarray, there: np.ndarray, right: np.ndarray, size: int = BIN) -> dict[str, Any]:
    """Pearson's r over bins, and the bins' points. (N,) each: a measure, sub-kinds to mention, and mentioned."""
    order = np.argsort(values, kind="stable")
    bins = [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
    x = np.array([values[own].mean() for own in bins])
    n, k = (np.array([column[own].sum() for own in bins], dtype=float) for column in (there, right))
    y = np.log((k + 0.5) / (n - k + 0.5))  # the halves keep bins of none or all finite
    defined = len(bins) > 2 and x.std() > 0 and y.std() > 0
    r = float(np.corrcoef(x, y)[0, 1]) if defined else None
    return {"r": r, "bins": len(bins), "points": np.stack([x, y], axis=1).round(4).tolist()}


def preference(values: np.ndarray, truth: np.ndarray, margin: float = 0.0) -> dict[str, Any]:
    """Of pairs of captions of one image whose truths differ by more than the margin: how often does the truer one have
    the higher value? (N,) each, `SAMPLES` rows per image."""
    v, t = values.reshape(-1, SAMPLES), truth.reshape(-1, SAMPLES)
    first, second = np.triu_indices(SAMPLES, 1)
    gap, better = t[:, first] - t[:, second], v[:, first] - v[:, second]
    chosen = np.abs(gap) > margin
    wins = np.where(better == 0, 0.5, (np.sign(better) == np.sign(gap)).astype(float))
    return {"preferred": float(wins[chosen].mean()) if chosen.any() else None, "pairs": int(chosen.sum())}


def of_things_there(captions: list[str], scenes: list[Scene]) -> dict[str, dict[str, float | None]]:
    """{type of fact: {stated: how many per caption, true: their share that is true}}, of things that *are* there: what
    a captioner sees of a thing once it names the right one."""
    verdicts: dict[str, list[bool]] = {name: [] for name in ("attribute", "size", "subkind", "relation")}
    for caption, scene in zip(captions, scenes, strict=True):
        for fact in parse(caption):
            kinds = fact.value[::2] if fact.type == "relation" else fact.value[:1]
            if fact.type in verdicts and all(scene.thing(kind) for kind in kinds):
                verdicts[fact.type].append(is_true(fact, scene))
    return {
        name: {"stated": len(own) / len(captions), "true": sum(own) / len(own) if own else None}
        for name, own in verdicts.items()
    }


def judged(spec: Spec, shop: Workshop, population: str) -> dict[str, Any]:
    """The figures of a writer on a population."""
    dataset = images_of(population, shop.quick)
    said = captions(spec.settings["writer"], shop, dataset, population, spec.seed)
    columns = {name: [v for v in dataset[name] for _ in range(SAMPLES)] for name in ("image", "image_id", "scene")}
    measures = shop.measures(spec.corpus)
    values = {name: np.asarray(m.per_caption(m.measure(said, columns))) for name, m in measures.items()}
    values["grc + qir"] = values["grc"] + values["qir"]
    scenes = [Scene.from_json(text) for text in columns["scene"]]
    counts = np.array([mentioned(text, scene) for text, scene in zip(said, scenes, strict=True)])
    exact = load_scorer("storybook")
    f1 = exact.per_caption(exact.measure(said, columns))
    there, kinds, breeds = counts.T
    figures: dict[str, Any] = {
        "captions": len(said),
        "species_acc": round(float(kinds.sum() / there.sum()), 5),
        "breed_acc": round(float(breeds.sum() / there.sum()), 5),
        "fact_f1": round(float(np.mean(f1)), 5),
        "of_things_there": of_things_there(said, scenes),
        "measures": {},
    }
    for name, own in values.items():
        figures["measures"][name] = {
            "mean": round(float(own.mean()), 5),
            **correlation(own, there, breeds, 20 if shop.quick else BIN),
            "breeds": preference(own, breeds),
            "facts": preference(own, np.asarray(f1), MARGIN),
        }
    return figures


def measure(spec: Spec, shop: Workshop) -> dict[str, Any]:
    return {"populations": {population: judged(spec, shop, population) for population in SOURCES}}
