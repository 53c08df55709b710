"""Build storybook-clip, the contrastive image/text encoder: an ordinary `CLIPModel` with its `CLIPProcessor`.

Only images of storybook:clip are seen, a split that no captioner is trained on or tested on. Two stages on one CPU:

1. *Look*: the image side learns from the scenes what stands in each quarter, as stage 1 of `captune.storybook.train`,
   and which facts hold of the whole image. Both go on in stage 2, where the text side learns likewise what
   each noun of a text goes with and which facts the whole text states.
2. *Contrast*: symmetric InfoNCE (Radford et al. 2021, learnt temperature) between images and true captions, whole or
   partial. Every caption brings *hard negatives*: itself with one fact changed (`captune.storybook.changes`) or
   something that the web would say. A caption that is true of another image of the batch is no negative for it.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captune.storybook import draw as drawing
from captune.storybook.changes import (
    CHANGES,
    NOUN_QUESTIONS,
    OBJECTS,
    alternatives,
    changed,
    fact_vector,
    noun_answers,
    scene_vector,
    true_of,
)
from captune.storybook.clip_model import ClipConfig, build_model, build_processor, build_tokenizer
from captune.storybook.grammar import reference, references
from captune.storybook.noise import alt_text, descriptive
from captune.storybook.tower import (
    IMAGE_SIZE,
    QUESTIONS,
    cell_labels,
    optimise,
    patch_labels,
    per_cell,
    schedule,
    to_pixel_values,
)
from captune.storybook.train import relation_only
from captune.storybook.world import BACKGROUNDS, Scene, random_for, sample_scene
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)

SPLIT = "clip"
HARD = ("binding", "relation", "subkind")  # facts that a wrong caption gets wrong more often
PREFIXES = ("a photo depicts ", "a photo of ", "")  # CLIPScore's, CLIP's, none


def corpus(seed: int, n: int = 2000) -> Iterator[str]:
    """What the tokenizer is made from: captions and alt text of storybook:clip."""
    rng = random.Random(f"{seed}/corpus")
    for index in range(n):
        scene = sample_scene(SPLIT, seed, index)
        yield PREFIXES[index % len(PREFIXES)] + say(scene, rng)
        yield alt_text(scene, rng, scene)


def draw_images(config: ClipConfig) -> tuple[list[Scene], np.ndarray]:
    """The training scenes, all of storybook:clip, and their images, (N, 64, 64, 3) uint8."""
    scenes = [sample_scene(SPLIT, config.seed, index) for index in range(config.num_images)]
    images = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for row, scene in enumerate(Bar(scenes, desc="drawing")):
        images[row] = np.asarray(drawing.draw(scene, IMAGE_SIZE))
    return scenes, images


def say(scene: Scene, rng: random.Random) -> str:
    """A true caption: a reference, a shorter or vaguer sentence, or one that leaves some of the things out."""
    style = rng.random()
    if style < 0.5:
        return reference(scene, rng)
    if style < 0.65 and len(scene.things) > 1:
        return relation_only(scene, rng)
    kept = rng.sample(scene.things, rng.randint(1, len(scene.things)))
    part = replace(scene, things=tuple(kept))
    return reference(part, rng) if style < 0.85 else descriptive(part, rng, clean=True)


def mislead(caption: str, scene: Scene, other: Scene, rng: random.Random) -> str:
    """A hard negative: the caption with one fact changed, or now and then what the web says under such images."""
    if rng.random() < 0.9:
        for what in sorted(CHANGES, key=lambda what: rng.random() / (3 if what in HARD else 1)):
            text = changed(caption, what, rng)
            if text is not None:
                return text
    return alt_text(scene, rng, other)


class Trainer(nn.Module):
    """The images, their facts, and the two losses."""

    def __init__(self, model: Any, tokenizer: Any, config: ClipConfig) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.scenes, self.images = draw_images(config)
        self.facts = np.stack([scene_vector(scene) for scene in self.scenes])
        self.cells = torch.from_numpy(np.stack([cell_labels(scene) for scene in self.scenes]))  # (N, 4, questions)
        self.patches = torch.from_numpy(np.stack([patch_labels(scene) for scene in self.scenes]))  # (N, patches, 2)
        self.places = torch.tensor([BACKGROUNDS.index(scene.background) for scene in self.scenes])
        self.cell_heads = nn.ModuleList([nn.Linear(config.width, answers) for _, answers in QUESTIONS])
        self.patch_heads = nn.ModuleList([nn.Linear(config.width, dict(QUESTIONS)[q]) for q in ("kind", "subkind")])
        self.noun_heads = nn.ModuleList([nn.Linear(config.width, answers) for _, answers in NOUN_QUESTIONS])
        self.place_head = nn.Linear(config.width, len(BACKGROUNDS))
        self.known = nn.Linear(config.width, self.facts.shape[1])  # from an embedding of either side to the facts in it
        self.alternatives = torch.from_numpy(alternatives())  # (F + 1, groups)
        self.rng = random.Random(f"{config.seed}/contrast")

    def see(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Image embeddings (B, D), not normalised, and what stage 1 asks about the parts of the same images."""
        seen = self.model.vision_model(pixel_values=to_pixel_values(self.images[rows]))
        patches = seen.last_hidden_state[:, 1:]  # (B, patches, H), without the class token
        pairs = [
            *zip(repeat(per_cell(patches)), self.cell_heads, self.cells[rows].unbind(-1)),
            *zip(repeat(patches), self.patch_heads, self.patches[rows].unbind(-1)),
            (patches.mean(dim=1), self.place_head, self.places[rows]),
        ]
        losses = [F.cross_entropy(head(states).flatten(0, -2), labels.flatten()) for states, head, labels in pairs]
        embedding = self.model.visual_projection(seen.pooler_output)
        return embedding, torch.stack(losses).sum()

    def fact_loss(self, embeddings: Tensor, facts: np.ndarray) -> Tensor:
        """What is there: binary cross-entropy. The rest: cross-entropy among a fact's alternatives.

        "The fish is red" is asked as "which colour is the fish?", and only of images that show and texts that name
        the fish and its colour: as one of hundreds of rare yes-or-no questions it would be learnt much later.
        """
        logits, true = self.known(embeddings).float(), torch.from_numpy(facts)
        there = F.binary_cross_entropy_with_logits(logits[:, :OBJECTS], true[:, :OBJECTS], reduction="sum")
        logits = logits - logits.amax(dim=1, keepdim=True).detach()
        among = (logits.exp() @ self.alternatives + 1e-30).log() @ self.alternatives.T  # (N, F + 1)
        rest = ((among - logits) * true)[:, OBJECTS:].sum()
        return (there + rest) / len(facts)

    def read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Text embeddings (N, D), not normalised, and the loss of the questions asked at each noun.

        Texts of like length go together, so that little is padding.
        """
        encoded = self.tokenizer(texts)
        nouns = [
            (row, encoded.char_to_token(row, last), answers)
            for row, text in enumerate(texts)
            for last, answers in noun_answers(text)
        ]
        order = sorted(range(len(texts)), key=lambda row: len(encoded.input_ids[row]))
        embeddings, states, labels = [], [], []
        for rows in np.array_split(order, 4):
            place = {row: i for i, row in enumerate(rows)}
            tokens = self.tokenizer.pad({"input_ids": [encoded.input_ids[row] for row in rows]}, return_tensors="pt")
            said = self.model.text_model(**tokens)
            embeddings.append(self.model.text_projection(said.pooler_output))
            here = [(place[row], token, answers) for row, token, answers in nouns if row in place]
            states.append(said.last_hidden_state[[i for i, _, _ in here], [token for _, token, _ in here]])
            labels += [answers for _, _, answers in here]
        asked = zip(self.noun_heads, torch.tensor(labels).unbind(-1), strict=True)
        loss = torch.stack([F.cross_entropy(head(torch.cat(states)), answer) for head, answer in asked]).sum()
        return torch.cat(embeddings)[torch.tensor(order).argsort()], loss

    def sample_rows(self) -> list[int]:
        return [self.rng.randrange(len(self.scenes)) for _ in range(self.config.batch_size)]

    def look(self, step: int) -> Tensor:
        rows = self.sample_rows()
        seen, parts = self.see(rows)
        return parts + self.config.fact_weight * self.fact_loss(seen, self.facts[rows])

    def contrast(self, step: int) -> Tensor:
        """Stage 2: captions first, then their hard negatives, B (1 + k) texts for B images."""
        rng, rows = self.rng, self.sample_rows()
        captions = [say(self.scenes[row], rng) for row in rows]
        for _ in range(self.config.negatives):
            captions += [
                mislead(caption, self.scenes[row], self.scenes[rng.randrange(len(self.scenes))], rng)
                for caption, row in zip(captions, rows, strict=False)
            ]
        stated = np.stack([fact_vector(caption) for caption in captions])
        truth = torch.from_numpy(true_of(stated, self.facts[rows]))
        texts = [rng.choice(PREFIXES) + caption + rng.choice(("", "", "", ".")) for caption in captions]
        said, nouns = self.read(texts)
        seen, parts = self.see(rows)
        facts = self.fact_loss(seen, self.facts[rows]) + self.fact_loss(said, stated)
        scale = self.model.logit_scale.clamp(max=4.6).exp()
        contrast = info_nce(seen.float(), said.float(), scale, truth)
        return contrast + self.config.part_weight * (parts + nouns) + self.config.fact_weight * facts


def info_nce(seen: Tensor, said: Tensor, scale: Tensor, truth: Tensor) -> Tensor:
    """Symmetric InfoNCE. Caption i < B belongs to image i; captions from B on are negatives for the images.

    Args:
        seen: (B, D) image embeddings.
        said: (B + M, D) text embeddings.
        scale: the inverse temperature.
        truth: (B + M, B), whether a text is true of a image: such pairs are no negatives.
    """
    n = len(seen)
    logits = scale * F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T  # (B, B + M)
    target = torch.arange(n)
    excused = truth.T & ~F.pad(torch.eye(n, dtype=torch.bool), (0, len(said) - n))
    logits = logits.masked_fill(excused, -1e4)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :n].T, target)) / 2


def measure(model: Any, processor: Any, n: int = 500, split: str = "val", seed: int = 91) -> dict[str, float]:
    """Retrieval, right against wrong image, and the share of one-fact changes that lower the similarity."""
    from captune.models.encoders.clip import Encoder

    encoder = Encoder(model, processor, name="storybook-clip")
    scenes = [sample_scene(split, seed, index) for index in range(n)]
    said = [references(scene, random_for(split, seed, i, "references")) for i, scene in enumerate(scenes)]
    seen = encoder.encode_images([drawing.draw(scene, IMAGE_SIZE) for scene in scenes])
    similarity = seen @ encoder.encode_texts([text for five in said for text in five]).T  # (n, 5 n)
    own = torch.arange(n).repeat_interleave(5)
    right, wrong = (similarity[rows, torch.arange(5 * n)] for rows in (own, (own + 1) % n))
    figures = {
        "image to text R@1": similarity.argmax(1) // 5 == torch.arange(n),
        "text to image R@1": similarity.argmax(0) == own,
        "right against wrong image AUC": right[:, None] > wrong,
    }
    for what in CHANGES:
        rng = random.Random(f"{split}/{seed}/{what}")
        tried = ((5 * i, changed(five[0], what, rng)) for i, five in enumerate(said))
        texts = {row: text for row, text in tried if text is not None}
        rows = list(texts)
        false = (seen[own[rows]] * encoder.encode_texts(list(texts.values()))).sum(1)
        figures[f"changed {what}"] = right[rows] > false
    return {name: round(float(better.float().mean()), 4) for name, better in figures.items()}


def build(config: ClipConfig, output: Path) -> dict[str, Any]:
    """Train the encoder; save it, its processor and `build.json` (settings, seconds, figures) in `output`."""
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    log: dict[str, Any] = {"config": vars(config), "seconds": {}}

    def lap(name: str) -> None:
        log["seconds"][name] = round(time.perf_counter() - started - sum(log["seconds"].values()), 1)

    tokenizer = build_tokenizer(corpus(config.seed))
    model = build_model(tokenizer, config)
    log["parameters"] = sum(p.numel() for p in model.parameters())
    trainer = Trainer(model, tokenizer, config)
    lap("drawing")
    stages = (
        ("look", trainer.look, config.look_steps, config.look_lr),
        ("contrast", trainer.contrast, config.steps, config.lr),
    )
    trainer.train()
    for name, loss_of, steps, lr in stages:
        losses = optimise(
            list(trainer.parameters()),
            loss_of,
            steps=steps,
            lr=lr,
            factor=partial(schedule, steps=steps),
            name=name,
            bf16=config.bf16,
        )
        log[f"{name} loss"] = round(float(np.mean(losses[-50:])), 4)
        lap(name)
    trainer.eval()
    processor = build_processor(tokenizer)
    log["figures"] = measure(model, processor, config.validation)
    lap("measuring")
    model.save_pretrained(output)
    processor.save_pretrained(output)
    (output / "build.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


__all__ = ["ClipConfig", "build", "measure"]
