"""The first stage of the storybook builds: a vision transformer learns to see, from the scenes themselves.

It stands in for SigLIP's pre-training. `captune.storybook.train` and `captune.storybook.clip` both begin with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captune.storybook.parser import SUBKINDS
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, SIZES, Scene
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)

IMAGE_SIZE, PATCH_SIZE, CELLS = 64, 16, 2
GRID = IMAGE_SIZE // PATCH_SIZE  # patches along a side
SUBKIND_NAMES = tuple(sorted(SUBKINDS))

# What stage 1 asks about each quarter of the image: (question, number of answers). Kinds, colours, ... count from 1,
# 0 is "nothing there". The last five say where the quarter is and where else things are: relations need them.
QUESTIONS = (
    ("kind", 1 + len(KIND_NAMES)),
    ("colour", 1 + len(COLOURS)),
    ("size", 1 + len(SIZES)),
    ("subkind", 1 + len(SUBKIND_NAMES)),
    ("horizontal neighbour", 1 + len(KIND_NAMES)),
    ("vertical neighbour", 1 + len(KIND_NAMES)),
    ("diagonal neighbour", 1 + len(KIND_NAMES)),
    ("position", 5),
    ("left", 3),
    ("right", 3),
    ("above", 3),
    ("below", 3),
)


def cell_labels(scene: Scene) -> np.ndarray:
    """(4, 12) integers: the answers to `QUESTIONS` per quarter."""
    labels = np.zeros((4, len(QUESTIONS)), dtype=np.int64)
    labels[:, 7] = 1 + np.arange(4)
    labels[:, 8:] = 1
    for thing in scene.things:
        x, y = int(thing.x > 0.5), int(thing.y > 0.5)
        cell = x + 2 * y
        kind = 1 + KIND_NAMES.index(thing.kind)
        labels[cell, 0] = kind
        labels[cell, 1] = 1 + COLOURS.index(thing.colour)
        labels[cell, 2] = 1 + SIZES.index(thing.size)
        labels[cell, 3] = 1 + SUBKIND_NAMES.index(thing.subkind) if thing.subkind else 0
        for column, neighbour in ((4, cell ^ 1), (5, cell ^ 2), (6, cell ^ 3)):
            labels[neighbour, column] = kind
        # to the right of a thing on the left, something stands to the left, and so on
        labels[[1, 3] if x == 0 else [0, 2], 8 if x == 0 else 9] = 2
        labels[[2, 3] if y == 0 else [0, 1], 10 if y == 0 else 11] = 2
    return labels


def patch_labels(scene: Scene) -> np.ndarray:
    """(16, 2) integers per patch: the kind and the sub-kind of the thing that covers most of it, 0 for ground."""
    labels = np.zeros((GRID, GRID, 2), dtype=np.int64)
    centres = (np.arange(GRID) + 0.5) / GRID
    for thing in scene.things:
        reach = (0.21 if thing.size == "big" else 0.13) + 0.25 / GRID
        inside = (np.abs(centres[None, :] - thing.x) <= reach) & (np.abs(centres[:, None] - thing.y) <= reach)
        labels[inside, 0] = 1 + KIND_NAMES.index(thing.kind)
        labels[inside, 1] = 1 + SUBKIND_NAMES.index(thing.subkind) if thing.subkind else 0
    return labels.reshape(GRID * GRID, 2)


def to_pixel_values(images: np.ndarray) -> Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) in [-1, 1], as the image processor does it."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def per_cell(patches: Tensor) -> Tensor:
    """(B, 16, H) patch features -> (B, 4, H), the mean of each quarter."""
    half = GRID // CELLS
    return patches.view(len(patches), CELLS, half, CELLS, half, -1).mean(dim=(2, 4)).flatten(1, 2)


def schedule(step: int, steps: int, warmup: int = 60) -> float:
    """Return the learning rate's factor at a step: linear warm-up, then a cosine to 2%."""
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def optimise(
    parameters: list[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    factor: Callable[[int], float],
    name: str,
    bf16: bool,
    probe: Callable[[int], None] | None = None,
) -> list[float]:
    """A plain AdamW loop; returns the loss of every step. `probe` is called after each step with its number."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    losses = []
    for step in (progress := Bar(range(steps), desc=name)):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if probe is not None:
            probe(step + 1)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
            logger.info("%s step %d loss %.4f", name, step, np.mean(losses[-50:]))
    return losses


def train_tower(model: Any, scenes: list[Scene], images: np.ndarray, config: Any) -> dict[str, float]:
    """Train the tower of a captioner as a `BuildConfig` says.

    Returns the accuracy of each head on the last 512 images, which are kept out of the training.
    """
    tower = model.model.vision_model
    cells = torch.from_numpy(np.stack([cell_labels(scene) for scene in scenes]))  # (N, 4, 12)
    patches = torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes]))  # (N, 16, 2)
    places = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    width = model.config.vision_config.hidden_size
    quarter_heads = nn.ModuleList([nn.Linear(width, answers) for _, answers in QUESTIONS])
    patch_heads = nn.ModuleList([nn.Linear(width, QUESTIONS[i][1]) for i in (0, 3)])
    place_head = nn.Linear(width, len(BACKGROUNDS))
    order = np.random.default_rng(config.seed)
    held_out = 512

    def heads_on(rows: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        states = tower(pixel_values=to_pixel_values(images[rows])).last_hidden_state  # (B, 16, H)
        quarters = per_cell(states)
        pairs = [(head(quarters).flatten(0, 1), cells[rows, :, i].flatten()) for i, head in enumerate(quarter_heads)]
        pairs += [(head(states).flatten(0, 1), patches[rows, :, i].flatten()) for i, head in enumerate(patch_heads)]
        return [*pairs, (place_head(states.mean(dim=1)), places[rows])]

    def loss_of(step: int) -> Tensor:
        rows = order.integers(0, len(scenes) - held_out, size=config.batch_size // 2)
        return torch.stack([F.cross_entropy(logits, labels) for logits, labels in heads_on(rows)]).sum()

    tower.train()
    optimise(
        [*tower.parameters(), *quarter_heads.parameters(), *patch_heads.parameters(), *place_head.parameters()],
        loss_of,
        steps=config.tower_steps,
        lr=config.tower_lr,
        factor=lambda step: schedule(step, config.tower_steps),
        name="tower",
        bf16=config.bf16,
    )
    tower.eval().requires_grad_(False)
    with torch.no_grad():
        pairs = heads_on(np.arange(len(scenes) - held_out, len(scenes)))
    names = [*(name for name, _ in QUESTIONS), "", "", "background"]
    accuracies = {}
    for name, (logits, labels) in zip(names, pairs, strict=True):
        there = labels >= 0 if name == "background" else labels > 0
        if name:
            accuracies[name] = round(float((logits.argmax(-1) == labels)[there].float().mean()), 4)
    return accuracies
