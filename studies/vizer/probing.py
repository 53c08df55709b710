"""Does training teach the captioner to look, or does it select a way of speaking that it had?

Two measurements on validation images, for captioners before and after training:

1. *Slots.* One thing of each scene, one slot of its shortest description at a time, everything before it given (teacher
   forced, the same words for every captioner): which colour, kind, sub-kind, size, relation, place? The model's
   probabilities of all fillings of the slot are compared, normalised to 1. No way of speaking can help here: the words
   before the slot are fixed, so what changes is what the model sees, or believes.
2. *Spoken facts.* The facts of greedy captions.

Both are split by whether habit and truth agree. Habit is what the alt text says whatever the picture shows: a word that
follows from those before it (`captune.storybook.noise`, HABIT_*), or nothing ("unsaid", "blurred"). Where they agree,
the prior is as good as the eye. Where they differ, only looking helps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from captune.models.captioner import Captioner
from captune.storybook.grammar import PLACE, WORDING, article
from captune.storybook.noise import BLURRED, HABIT_COLOUR, HABIT_KIND, HABIT_PLACE
from captune.storybook.parser import judged
from captune.storybook.world import COLOURS, KIND_NAMES, KINDS, RELATIONS, SIZES, Scene, Thing, relations

SLOTS = ("kind", "colour", "subkind", "size", "relation", "background")
SILENT = ("unsaid", "blurred")  # fillings that state nothing


@dataclass(frozen=True)
class Slot:
    """Texts that differ in one slot alone.

    Args:
        fillings: filling -> the texts that say so (a kind also with each of its sub-kinds); probabilities add up.
        true: the fillings that are true of the scene.
        habit: the filling that habit chooses whatever the picture shows.
    """

    type: str
    fillings: dict[str, tuple[str, ...]]
    true: frozenset[str]
    habit: str


def nouns(kind: str) -> tuple[str, ...]:
    return (kind, *(f"{subkind} {kind}" for subkind in KINDS[kind]))


def slots(scene: Scene) -> list[Slot]:
    """The slots of the scene's first thing (and of its relation to the second)."""
    thing, *others = scene.things
    noun = " ".join(word for word in (thing.subkind, thing.kind) if word)
    known = article(f"{thing.colour} {noun}")
    alike = [t for t in scene.things if (t.size, t.colour) == (thing.size, thing.colour)]
    start = f"a {thing.size} {thing.colour}"
    found = [
        Slot("kind", {k: tuple(f"{start} {noun}" for noun in nouns(k)) for k in KIND_NAMES},
             frozenset(t.kind for t in alike), HABIT_KIND[thing.colour]),
        Slot("colour", {c: tuple(f"a {thing.size} {c} {noun}" for noun in nouns(thing.kind)) for c in COLOURS},
             frozenset([thing.colour]), HABIT_COLOUR[thing.size]),
        Slot("size", {s: (f"a {s} {thing.colour} {noun}",) for s in SIZES} | {"unsaid": (known,)},
             frozenset([thing.size]), "unsaid"),
        Slot("background", {b: (f"{known} {PLACE[b]}",) for b in PLACE},
             frozenset([scene.background]), HABIT_PLACE[thing.kind]),
    ]  # fmt: skip
    if thing.subkind:
        fillings = {s: (f"{start} {s} {thing.kind}",) for s in KINDS[thing.kind]}
        fillings["unsaid"] = (f"{start} {thing.kind}",)
        found.append(Slot("subkind", fillings, frozenset([thing.subkind]), "unsaid"))
    if others:
        found.append(relation_slot(known, thing, others[0]))
    return found


def relation_slot(known: str, a: Thing, b: Thing) -> Slot:
    """The four relations, each with all its words, and the words that state none ("and")."""
    other = article(f"{b.colour} {' '.join(word for word in (b.subkind, b.kind) if word)}")
    fillings = {r: tuple(f"{known} {words} {other}" for words in WORDING[r]) for r in RELATIONS}
    fillings["blurred"] = tuple(f"{known} {word} {other}" for word in BLURRED)
    return Slot("relation", fillings, frozenset(relations(a, b)), "blurred")


@torch.no_grad()
def log_probabilities(captioner: Captioner, image: Any, texts: Sequence[str]) -> list[float]:
    """log p(text | image), without the end of the caption, of each text."""
    batch = captioner.prepare([image] * len(texts), texts)
    mask = batch["caption_mask"][:, 1:].bool().clone()
    ids = batch["input_ids"][:, 1:]
    mask[torch.arange(len(texts)), mask.int().cumsum(dim=1).argmax(dim=1)] = False  # the end token, the last one
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "caption_mask")}
    logits = captioner.model(**inputs, use_cache=False).logits[:, :-1].float()
    chosen = logits.log_softmax(dim=-1).gather(2, ids.unsqueeze(-1)).squeeze(-1)
    return (chosen * mask).sum(dim=1).tolist()


def filled(captioner: Captioner, image: Any, found: Sequence[Slot]) -> list[dict[str, float]]:
    """The model's distribution over the fillings of each slot, all slots of an image in one pass."""
    texts = [text for slot in found for own in slot.fillings.values() for text in own]
    logs = iter(log_probabilities(captioner, image, texts))
    shares = []
    for slot in found:
        totals = [torch.tensor([next(logs) for _ in own]).logsumexp(dim=0) for own in slot.fillings.values()]
        shares.append(dict(zip(slot.fillings, torch.stack(totals).softmax(dim=0).tolist(), strict=True)))
    return shares


def probe(captioner: Captioner, images: Sequence[Any], scenes: Sequence[str]) -> dict[str, dict[str, float]]:
    """{"<slot>/<split>": figures}, split: habit agrees with the truth, habit differs, or all.

    Figures: n; right, the share of slots where the most probable filling is true; sees, the same among the fillings
    that state something; p_true and p_habit, mean probabilities; over_habit, the share where the true filling is more
    probable than habit's; margin, the mean of log p(true) - log p(habit); entropy in bits.
    """
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    with captioner.share_vision():
        for image, text in zip(tqdm(images, desc="slots", disable=None, leave=False), scenes, strict=True):
            found = slots(Scene.from_json(text))
            for slot, shares in zip(found, filled(captioner, image, found), strict=True):
                row = judged_slot(shares, slot)
                rows[f"{slot.type}/all"].append(row)
                rows[f"{slot.type}/{'agrees' if slot.habit in slot.true else 'differs'}"].append(row)
    return {key: {"n": len(own), **means(own)} for key, own in sorted(rows.items())}


def judged_slot(shares: dict[str, float], slot: Slot) -> dict[str, float]:
    true, habit = sum(shares[name] for name in slot.true), shares[slot.habit]
    stated = {name: p for name, p in shares.items() if name not in SILENT}
    return {
        "right": float(max(shares, key=shares.__getitem__) in slot.true),
        "sees": float(max(stated, key=stated.__getitem__) in slot.true),
        "p_true": true,
        "p_habit": habit,
        "over_habit": float(true > habit),
        "margin": math.log(max(true, 1e-12)) - math.log(max(habit, 1e-12)),
        "entropy": -sum(p * math.log2(p) for p in shares.values() if p > 0),
    }


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}


def spoken(captions: Sequence[str], scenes: Sequence[str]) -> dict[str, dict[str, float]]:
    """{"<fact type>/<split>": {n, true, habit}} of captions: stated facts, the share that is true, the share that says
    what habit says. The split is about the slot that was filled: does habit agree with the truth there?"""
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for caption, text in zip(captions, scenes, strict=True):
        scene = Scene.from_json(text)
        facts = judged(caption, scene)
        said: dict[tuple[str, str], str] = {}  # (fact type, kind) -> the word said of it
        for fact, _ in facts:
            said.setdefault((fact.type, fact.value[0]), fact.value[-1])
        first = next((kind for fact_type, kind in said if fact_type == "object"), None)
        for fact, true in facts:
            thing = scene.thing(fact.value[0])
            if fact.type == "object":
                habit = HABIT_KIND[said.get(("attribute", fact.value[0]))]
                agrees = scene.thing(habit) is not None
            elif fact.type == "attribute" and thing:
                habit = HABIT_COLOUR[said.get(("size", thing.kind))]
                agrees = habit == thing.colour
            elif fact.type == "background" and first:
                habit = HABIT_PLACE[first]
                agrees = habit == scene.background
            else:  # no habit, but for saying nothing: sizes, sub-kinds, relations, and colours of things not there
                rows[f"{fact.type}/no habit"].append({"true": float(true), "habit": 0.0})
                continue
            row = {"true": float(true), "habit": float(fact.value[-1] == habit)}
            rows[f"{fact.type}/{'agrees' if agrees else 'differs'}"].append(row)
    return {key: {"n": len(own), **means(own)} for key, own in sorted(rows.items())}
