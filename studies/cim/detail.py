"""Does GRC rise with detail? The paper's premise (its Figure 1), put to captions that are all true.

Each image is described in levels, every one of which says what the one before it says and more:

    kind           "a ball"
    colour         "a red ball"
    thing          "a big red striped ball"                          all there is to say of the first thing
    place          "a big red striped ball on the beach"
    two things     "a big red striped ball left of a small blue cup on the beach"
    everything     a complete caption (of scenes with three or four things)

A measure of detail has to rise from level to level. `full` is how often it puts the complete caption above the one of
the level "thing", and `right` how often above the same complete caption with a changed kind (ties count half).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from captune.data import load_images
from captune.scorers.image.retrieval import GRC, QIR
from captune.storybook.changes import changed, fact_vector, scene_vector
from captune.storybook.grammar import PLACE, noun_phrase, reference, salience
from captune.storybook.world import Scene, Thing, relations, sample_scene

from .experiments import Spec
from .train import Workshop

SOURCE = "storybook:test?n=500&seed=92"
LEVELS = ("kind", "colour", "thing", "place", "two things", "everything")


def phrase(thing: Thing) -> str:
    return noun_phrase(thing.kind, size=thing.size, colour=thing.colour, subkind=thing.subkind)


def complete(things: list[Thing], place: str) -> str:
    """As the grammar of the references puts it, nothing left out."""
    text = phrase(things[0])
    if len(things) > 1:
        text += f" {relations(things[0], things[1])[0]} {phrase(things[1])}"
    if len(things) == 3:
        text += f" and {phrase(things[2])} {relations(things[2], things[0])[0]} the {things[0].kind}"
    if len(things) == 4:
        text += f" and {phrase(things[2])} {relations(things[2], things[3])[0]} {phrase(things[3])}"
    return f"{text} {place}"


def levels(scene: Scene) -> dict[str, str]:
    """{level: caption}, as many as the scene has something new to say at."""
    things, place = sorted(scene.things, key=salience), PLACE[scene.background]
    first = things[0]
    made = {
        "kind": noun_phrase(first.kind, size=None, colour=None, subkind=None),
        "colour": noun_phrase(first.kind, size=None, colour=first.colour, subkind=None),
        "thing": phrase(first),
        "place": complete(things[:1], place),
    }
    if len(things) > 1:
        made["two things"] = complete(things[:2], place)
    if len(things) > 2:
        made["everything"] = complete(things, place)
    return made


def above(values: list[float], others: list[float]) -> float | None:
    """How often a value is higher than its other; ties count half."""
    a, b = np.array(values), np.array(others)
    return round(float(((a > b) + 0.5 * (a == b)).mean()), 4) if values else None


def measure(spec: Spec, shop: Workshop) -> dict[str, Any]:
    """The figures of GRC, QIR and their sum on one gallery."""
    dataset = load_images(SOURCE.replace("500", "20") if shop.quick else SOURCE)
    captions: list[tuple[int, str, str]] = []  # (image, level, caption)
    scenes = [Scene.from_json(text) for text in dataset["scene"]]
    for i, scene in enumerate(scenes):
        own = levels(scene)
        captions += [(i, level, text) for level, text in own.items()]
        captions.append((i, "changed", str(changed(list(own.values())[-1], "kind", random.Random(i)))))
    texts = [text for _, _, text in captions]
    if "scenes" in spec.settings:
        n = 400 if shop.quick else spec.settings["scenes"]
        found = exactly(texts, [scenes[i] for i, _, _ in captions], n)
    else:
        index = shop.gallery(spec.corpus, judged=[dataset] if spec.corpus.image == "facts" else ())
        argument = f"?distinct={int(spec.settings['distinct'])}"
        images, ids = dataset["image"], dataset["image_id"]
        columns = {"image": [images[i] for i, _, _ in captions], "image_id": [ids[i] for i, _, _ in captions]}
        measures = {"grc": GRC(argument, corpus=index), "qir": QIR(argument, corpus=index)}
        found = {name: m.per_caption(m.measure(texts, columns)) for name, m in measures.items()}
    found["grc + qir"] = found["grc"] + found["qir"]
    figures = {}
    for name, values in found.items():
        per: list[dict[str, float]] = [{} for _ in scenes]
        for (i, level, _), value in zip(captions, values, strict=True):
            per[i][level] = float(value)
        figures[name] = {"levels": means(per, scenes), **comparisons(per, scenes)}
    return {"measures": figures}


def exactly(texts: list[str], scenes: list[Scene], n: int, k: int = 5) -> dict[str, np.ndarray]:
    """GRC and QIR by exact facts in a gallery of n scenes with one reference each: far more than can be drawn.

    Equations (1) and (2) with unit vectors of facts, true of a scene or stated by a text, in place of the encoders.
    """
    gallery = [sample_scene("pretrain", 92, i) for i in range(n)]
    stated = unit(np.stack([fact_vector(reference(s, random.Random(i))) for i, s in enumerate(gallery)]))
    seen = unit(np.stack([scene_vector(scene) for scene in gallery]))
    grc, qir = [], []
    for at in range(0, len(texts), 64):
        part = slice(at, at + 64)
        scores = unit(np.stack([fact_vector(text) for text in texts[part]])) @ stated.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        own = unit(np.stack([scene_vector(scene) for scene in scenes[part]]))
        grc.append(np.linalg.norm(seen[best].mean(axis=1), axis=-1))
        qir.append(np.einsum("qkd,qd->qk", seen[best], own) @ 0.5 ** np.arange(k))
    return {"grc": np.concatenate(grc), "qir": np.concatenate(qir)}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def means(per: list[dict[str, float]], scenes: list[Scene]) -> dict[str, dict[str, float]]:
    """{number of things: {level: the mean over scenes with so many things}}"""
    made: dict[str, dict[str, float]] = {}
    for n in (1, 2, 3, 4):
        own = [p for p, scene in zip(per, scenes, strict=True) if len(scene.things) == n]
        there = [level for level in LEVELS if own and level in own[0]]
        made[str(n)] = {level: round(float(np.mean([p[level] for p in own])), 4) for level in there}
    return made


def comparisons(per: list[dict[str, float]], scenes: list[Scene]) -> dict[str, Any]:
    whole = [p[[level for level in LEVELS if level in p][-1]] for p in per]
    by_things = {}
    for n in (1, 2, 3, 4):
        own = [(whole[i], per[i]["thing"]) for i, scene in enumerate(scenes) if len(scene.things) == n]
        by_things[str(n)] = above([a for a, _ in own], [b for _, b in own])
    return {
        "full": above(whole, [p["thing"] for p in per]),
        "full_by_things": by_things,
        "right": above(whole, [p["changed"] for p in per]),
    }
