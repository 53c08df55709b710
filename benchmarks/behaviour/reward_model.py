"""How many preferences, and how clean ones, does a reward model need? `captune reward-model train` on storybook.

    python -m benchmarks.behaviour.reward_model --work WORK [--output benchmarks/behaviour/reward_model]

Pairs are of a scene's true caption and three of its alt texts, whose facts are wrong as a web text's are; the caption
with the higher fact F1 is preferred, ties are dropped. The first scenes are for training (a tenth of them chooses the
step, with labels as noisy as the rest), the last 500 without those that have the facts of a training scene for the
figures, with clean labels. By the number of pairs and by the share of labels that are flipped; beside it the accuracy
of `clip`, the same encoder's CLIPScore, on the same pairs. storybook-clip has seen alt texts as hard negatives, so that
its accuracy is high from the start.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value

from benchmarks._lib import machine, main
from captune.data import load_images
from captune.evaluation.correlation import fought
from captune.evaluation.statistics import percentiles
from captune.models.encoders import load_encoder
from captune.models.heads import read_config, read_weights
from captune.models.reward_model import RewardConfig, RewardHead
from captune.scorers import load_scorer
from captune.storybook.noise import alt_text
from captune.storybook.world import Scene
from captune.training.reward_model.config import RewardModelConfig
from captune.training.reward_model.train import run
from captune.utils.files import jsonl_line

SEEDS = (7, 8, 9)
SIZES, FLIPS = (100, 1000, 10_000), (0.0, 0.1, 0.2, 0.3)
SOURCE, UNSEEN = "storybook:train?n=2900&seed=92", 500
ENCODER, ALT_TEXTS = "storybook-clip", 3
RESAMPLES = 1000

Pair = tuple[str, str, str, bool]  # image_id, chosen, rejected, whether both are alt texts


def pairs_of(source: str) -> tuple[list[Pair], list[Pair]]:
    """All pairs of captions with different fact F1, scene by scene: those to learn from, and those of other scenes."""
    rows = load_images(source, decode=False).remove_columns("image")
    scenes, judge = [Scene.from_json(text) for text in rows["scene"]], load_scorer("storybook")
    learn: list[Pair] = []
    unseen: list[Pair] = []
    known = {scene.key() for scene in scenes[:-UNSEEN]}
    for number, row in enumerate(rows):
        rng = random.Random(f"{source}/{number}")
        texts = [alt_text(scenes[number], rng, scenes[number - 1]) for _ in range(ALT_TEXTS)]
        texts = list(dict.fromkeys([row["references"][0], *texts]))
        f1 = judge.per_caption(judge.rows(texts, scene=[row["scene"]] * len(texts)))
        for a, b in itertools.combinations(range(len(texts)), 2):
            if f1[a] != f1[b]:
                best, worst = (a, b) if f1[a] > f1[b] else (b, a)
                pair = (row["image_id"], texts[best], texts[worst], 0 not in (a, b))
                if number < len(scenes) - UNSEEN:
                    learn.append(pair)
                elif scenes[number].key() not in known:
                    unseen.append(pair)
    return learn, unseen


def save(pairs: Sequence[Pair], path: Path, flip: float = 0.0, seed: int = 0) -> str:
    """Write pairs as `captune pairs` does, texts alone; a share of them the wrong way round."""
    chance = np.random.default_rng(seed).random(len(pairs)) < flip
    rows = (
        {"image_id": image_id, "chosen": worse if wrong else better, "rejected": better if wrong else worse}
        for (image_id, better, worse, _), wrong in zip(pairs, chance, strict=True)
    )
    path.write_text("".join(map(jsonl_line, rows)), encoding="utf-8")
    return str(path)


def stored(path: Path) -> str:
    """Keep the source's images in a file, which is opened faster than scenes are sampled."""
    rows = load_images(SOURCE)
    features = Features({"image": Image(), "image_id": Value("string")})
    images = {"image": [row["image"] for row in rows], "image_id": list(rows["image_id"])}
    Dataset.from_dict(images, features=features).to_parquet(str(path))
    return str(path)


class Told:
    """Accuracies on the unseen pairs, whose vectors are made once.

    Args:
        pairs: unseen.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        rows, encoder = load_images(SOURCE), load_encoder(ENCODER, "cpu")
        place = {image_id: row for row, image_id in enumerate(rows["image_id"])}
        self.image = np.array([place[image_id] for image_id, *_ in pairs])
        known = np.unique(self.image)
        vectors = encoder.encode_images([rows[row]["image"] for row in known.tolist()])
        self.images = vectors[torch.from_numpy(np.searchsorted(known, self.image))]
        self.texts = [encoder.encode_texts([pair[k] for pair in pairs]) for k in (1, 2)]
        self.prefixed = [encoder.encode_texts([f"A photo depicts {pair[k]}" for pair in pairs]) for k in (1, 2)]
        self.both = np.array([pair[3] for pair in pairs])

    @torch.no_grad()
    def of_clip(self) -> dict[str, Any]:
        """Of `clip`: the cosine with its prefix."""
        better, worse = ((self.images * texts).sum(-1).clamp(min=0) for texts in self.prefixed)
        return self._figures(better - worse)

    @torch.no_grad()
    def of_model(self, folder: Path) -> dict[str, Any]:
        """Of a reward model."""
        config = read_config(folder, RewardConfig)
        head = RewardHead(config.encoder.size, config.hidden)
        read_weights(folder, head, RewardConfig, str(folder))
        better, worse = (head.eval()(self.images, texts) for texts in self.texts)
        return self._figures(better - worse)

    def _figures(self, difference: torch.Tensor) -> dict[str, Any]:
        own = difference.double().numpy().round(6)
        found = fought(self.image, np.ones(len(own)), own, resamples=RESAMPLES, seed=0)
        right = (np.sign(own) + 1) / 2
        low, high = percentiles(found.drawn["pairwise_accuracy"], 0.95)
        return {
            "accuracy": round(float(right.mean()), 4),
            "interval": [round(low, 4), round(high, 4)],
            "of two alt texts": round(float(right[self.both].mean()), 4),
        }


def measure(work: Path) -> dict[str, Any]:
    """Train with each size, noise and seed; measure all on the same pairs."""
    work.mkdir(parents=True, exist_ok=True)
    cpu = time.process_time()
    learn, unseen = pairs_of(SOURCE)
    told, names = Told(unseen), dict.fromkeys(pair[0] for pair in learn)
    result: dict[str, Any] = {
        "unseen": {
            "scenes": len({pair[0] for pair in unseen}),
            "pairs": len(unseen),
            "of two alt texts": sum(pair[3] for pair in unseen),
        },
        "clip": told.of_clip(),
        "runs": [],
    }
    images = stored(work / "images.parquet")
    eval_pairs = save(unseen, work / "unseen.jsonl")
    for size, flip in [(size, 0.0) for size in SIZES] + [(SIZES[-1], flip) for flip in FLIPS[1:]]:
        for seed in SEEDS:
            order = list(names)
            random.Random(seed).shuffle(order)
            place = {name: number for number, name in enumerate(order)}
            chosen = sorted(learn, key=lambda pair: place[pair[0]])[:size]
            if len(chosen) < size:
                raise SystemExit(f"{SOURCE} gives {len(chosen)} pairs only")
            name = f"{size}-{round(100 * flip)}-{seed}"
            config = RewardModelConfig(
                pairs=save(chosen, work / f"{name}.jsonl", flip, seed),
                images=images,
                eval_pairs=eval_pairs,
                features=work / "vectors",
                output=work / name,
                overwrite=True,
                encoder=ENCODER,
                device="cpu",
                seed=seed,
            )
            began = time.process_time()
            folder = run(config).path
            seconds = time.process_time() - began
            stated = read_config(folder, RewardConfig).accuracy
            own = told.of_model(folder)
            assert stated is not None and abs(stated.value - own["accuracy"]) < 0.001, (stated, own)
            result["runs"].append({"pairs": size, "flipped": flip, "seed": seed, **own, "CPU seconds": round(seconds)})
            print(result["runs"][-1], flush=True)
    return result | {"CPU seconds": round(time.process_time() - cpu), "machine": machine()}


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    clip, unseen = result["clip"], result["unseen"]
    lines = [
        "# A reward model of preferences", "",
        f"Accuracy on {unseen['pairs']:,} clean pairs of {unseen['scenes']} unseen scenes, "
        f"{unseen['of two alt texts']:,} of them of two alt texts (the others have a true caption on one side). Three "
        "seeds; each trains on the pairs of other scenes. Script: `benchmarks/behaviour/reward_model.py`.", "",
        "| pairs | flipped | accuracy, median of 3 seeds | smallest to largest | of two alt texts, median |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for (size, flip), group in itertools.groupby(result["runs"], key=lambda one: (one["pairs"], one["flipped"])):
        own = list(group)
        values = sorted(one["accuracy"] for one in own)
        alt = sorted(one["of two alt texts"] for one in own)[1]
        lines.append(f"| {size:,} | {flip:.0%} | {values[1]:.1%} | {values[0]:.1%} to {values[-1]:.1%} | {alt:.1%} |")
    between = "95%: {:.1%} to {:.1%}".format(*clip["interval"])
    lines += [
        f"| `clip`, no pair | | {clip['accuracy']:.1%} | {between} | {clip['of two alt texts']:.1%} |",
        "", f"{result['CPU seconds']} CPU seconds in all.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__doc__, measure, page)
