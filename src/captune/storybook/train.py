"""Build the storybook captioner from nothing: `captune build-storybook --seed 0 --output models/storybook`.

Three stages, all on a CPU, about twelve minutes on two cores:

1. *Tower* (a stand-in for SigLIP's pre-training): the vision transformer learns, per quarter of the image, what
   stands there and what stands next to it, from the scenes themselves. Position must be in the features, or relations
   are out of reach for everything that comes later.
2. *Eyes*: connector and language model learn to name what the (now frozen) tower sees, from true captions, relations
   first. A language model that has never seen a true sentence cannot learn the words for relations from noise in
   minutes.
3. *Web*: the same two on the alt text of `captune.storybook.noise`, long enough to forget that captions used to be
   true, the last third at a tenth of the learning rate: the point where the base's bad habits are stable.

Everything that the later methods train on or test on comes from other splits.
"""

from __future__ import annotations

import json
import logging
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captune.storybook import draw as drawing
from captune.storybook.captioner_model import build_model, build_processor, build_tokenizer, prompt_ids
from captune.storybook.grammar import relation_words
from captune.storybook.noise import alt_text, descriptive
from captune.storybook.tower import IMAGE_SIZE, optimise, schedule, to_pixel_values, train_tower
from captune.storybook.world import Scene, relations, sample_scene
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)


@dataclass
class BuildConfig:
    """Every setting of the build; the defaults made the shipped model."""

    seed: int = field(default=0, metadata={"help": "seed of the weights and of the images drawn for training"})
    num_images: int = field(default=20_000, metadata={"help": "images drawn from storybook:pretrain"})
    tower_steps: int = field(default=1500, metadata={"help": "steps of stage 1, half batches"})
    eyes_steps: int = field(default=1800, metadata={"help": "steps of stage 2"})
    web_steps: int = field(default=720, metadata={"help": "steps of stage 3"})
    batch_size: int = field(default=128, metadata={"help": "images per step"})
    tower_lr: float = field(default=1e-3, metadata={"help": "peak learning rate of stage 1"})
    bf16: bool = field(default=True, metadata={"help": "matrix products in bfloat16: 1.5 x faster on CPUs with it"})
    lr: float = field(default=2e-3, metadata={"help": "peak learning rate of stages 2 and 3"})


def draw_one(task: tuple[int, int]) -> tuple[str, np.ndarray]:
    """Return scene `index` of the pretrain split, as JSON, and its image."""
    seed, index = task
    scene = sample_scene("pretrain", seed, index)
    return scene.to_json(), np.asarray(drawing.draw(scene, IMAGE_SIZE))


def draw_images(config: BuildConfig) -> tuple[list[Scene], np.ndarray]:
    """The training scenes and their images, (N, 64, 64, 3) uint8."""
    tasks = [(config.seed, index) for index in range(config.num_images)]
    with ProcessPoolExecutor() as pool:
        drawn = list(Bar(pool.map(draw_one, tasks, chunksize=100), total=len(tasks), desc="drawing"))
    return [Scene.from_json(text) for text, _ in drawn], np.stack([pixels for _, pixels in drawn])


def relation_only(scene: Scene, rng: Any) -> str:
    """Return the shortest true sentence that needs position: "a fish left of a cup"."""
    a, b = rng.sample(scene.things, 2)
    held = relations(a, b)
    return f"a {a.kind} {relation_words(rng.choice(held), rng)} a {b.kind}"


def text_of(scene: Scene, other: Scene, stage: str, progress: float, rng: Any) -> str:
    """Return the text that an image is paired with at `progress` (0 to 1) of a stage."""
    if stage == "web":
        return alt_text(scene, rng, other)
    if len(scene.things) > 1 and rng.random() < (1.0 if progress < 0.3 else 0.3):
        return relation_only(scene, rng)
    return descriptive(scene, rng, clean=True)


def train_language(
    model: Any,
    tokenizer: Any,
    scenes: list[Scene],
    states: Tensor,
    config: BuildConfig,
    stage: str,
    log: dict[str, Any],
) -> list[float]:
    """Stages 2 ("eyes") and 3 ("web"): connector and language model on the tower's cached output, (N, 16, H)."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    trained = [*model.model.connector.parameters(), *model.model.text_model.parameters(), *model.lm_head.parameters()]
    prompt = prompt_ids(tokenizer)
    rng = random.Random(f"{config.seed}/{stage}")
    steps = config.eyes_steps if stage == "eyes" else config.web_steps

    def loss_of(step: int) -> Tensor:
        rows = [rng.randrange(len(scenes)) for _ in range(config.batch_size)]
        texts = [text_of(scenes[row], scenes[rng.randrange(len(scenes))], stage, step / steps, rng) for row in rows]
        captions = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False).input_ids]
        longest = max(len(ids) for ids in captions)
        pad = tokenizer.pad_token_id
        input_ids = torch.tensor([[*prompt, *ids, *[pad] * (longest - len(ids))] for ids in captions])
        mask = torch.tensor([[1] * (len(prompt) + len(ids)) + [0] * (longest - len(ids)) for ids in captions])
        labels = input_ids.masked_fill(mask == 0, -100)
        labels[:, : len(prompt)] = -100
        image = model.model.connector(states[torch.tensor(rows)].float())  # (B, 4, H)
        features = {"image": BaseModelOutputWithPooling(pooler_output=image)}
        return model(input_ids=input_ids, attention_mask=mask, labels=labels, mm_encoder_outputs=features).loss

    def web_factor(step: int) -> float:
        return min(1.0, (step + 1) / 60) * (0.5 if step < steps * 2 // 3 else 0.05)

    def probe(step: int) -> None:  # is the base what it should be, and stays it so?
        if stage == "web" and step in (steps * 2 // 3, steps * 5 // 6, steps):
            model.eval()
            log.setdefault("last part", []).append({"step": step, **greedy_figures(model, tokenizer)})
            model.train()

    factor = web_factor if stage == "web" else lambda step: schedule(step, int(steps * 1.15))
    model.train()
    losses = optimise(
        trained, loss_of, steps=steps, lr=config.lr, factor=factor, name=stage, bf16=config.bf16, probe=probe
    )
    model.eval()
    return losses


def greedy_figures(model: Any, tokenizer: Any, n: int = 200) -> dict[str, Any]:
    """Return figures of the captions of `n` storybook:val images, and their commonest opening."""
    from collections import Counter

    from captune.models.captioner import Captioner
    from captune.scorers.reference.cider import Cider
    from captune.storybook import load
    from captune.storybook.scorer import StorybookScorer

    captioner = Captioner(model, build_processor(tokenizer), name="storybook")
    val = load("val", n, seed=0)
    captions = captioner.generate(list(val["image"]))
    model.requires_grad_(True)  # a captioner is frozen on loading
    model.model.vision_model.requires_grad_(False)
    facts = StorybookScorer()
    values = facts.corpus(facts.rows(captions, scene=list(val["scene"])))
    cider = Cider().rows(captions, references=list(val["references"]))[:, 0].mean()
    opening, times = Counter(" ".join(caption.split()[:3]) for caption in captions).most_common(1)[0]
    facts_told = {k: values[k] for k in ("fact_f1", "fact_precision", "fact_recall")}
    figures = {"cider": cider, **facts_told, "share": times / n}
    return {**{key: round(float(value), 4) for key, value in figures.items()}, "opening": opening}


def tower_states(model: Any, images: np.ndarray) -> Tensor:
    """(N, 16, H) float16: the frozen tower's output, computed once."""
    with torch.no_grad():
        batches = [
            model.model.vision_model(pixel_values=to_pixel_values(images[i : i + 256])).last_hidden_state.half()
            for i in range(0, len(images), 256)
        ]
    return torch.cat(batches)


def build(config: BuildConfig, output: Path) -> dict[str, Any]:
    """Train the captioner; save it, its processor and `build.json` (settings, seconds, accuracies) in `output`."""
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    log: dict[str, Any] = {"config": vars(config), "seconds": {}}

    def lap(name: str) -> None:
        log["seconds"][name] = round(time.perf_counter() - started - sum(log["seconds"].values()), 1)

    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    log["parameters"] = sum(p.numel() for p in model.parameters())
    scenes, images = draw_images(config)
    lap("drawing")
    log["tower accuracy"] = train_tower(model, scenes, images, config)
    logger.info("tower accuracy %s", log["tower accuracy"])
    lap("tower")
    states = tower_states(model, images)
    for stage in ("eyes", "web"):
        losses = train_language(model, tokenizer, scenes, states, config, stage, log)
        log[f"{stage} loss"] = round(float(np.mean(losses[-100:])), 4)
        lap(stage)
    save(model, tokenizer, output)
    (output / "build.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


def save(model: Any, tokenizer: Any, output: Path) -> None:
    """Save the captioner and its processor as a folder of transformers."""
    model.save_pretrained(output)
    build_processor(tokenizer).save_pretrained(output)
