"""How good a CLIP of photographs do 500 captioned photos make? `captune encoder train` on Flickr8k.

    python -m benchmarks.behaviour.encoder_pair --data flickr8k/captions.txt --work WORK
        [--output benchmarks/behaviour/encoder_pair]

The splits are those of `studies/photos/splits.json`: 500 photos train, 100 choose the step (and chose the defaults of
`captune encoder train`), 100 are for the figures alone. Beside recall: how well `clip:PAIR` tells a photo's own
captions from others' (AUC of all own against all other scores, and the share of pairs on the same photo), which are a
caption of a random photo of the test, or of the photo whose caption is nearest in the frozen text encoder. The interval
is that of a bootstrap over photos.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._lib import machine, write
from captune.data import load_images
from captune.models.encoders import load_encoder, load_text_encoder
from captune.models.hub import DEFAULT_TEXT_ENCODER
from captune.scorers.image.clip import ClipScore
from captune.training.encoder.config import EncoderConfig
from captune.training.encoder.train import run
from studies.photos.train import split

SEEDS = (7, 8, 9)
RESAMPLES = 1000


def others(texts: torch.Tensor, owner: np.ndarray) -> dict[str, np.ndarray]:
    """For each caption, a caption of a random other photo, and the nearest one of another photo."""
    chance = np.random.default_rng(0)
    similarity = (texts @ texts.T).numpy()
    similarity[owner[:, None] == owner[None]] = -np.inf
    random = [chance.choice(np.flatnonzero(owner != own)) for own in owner]
    return {"a random photo's": np.array(random), "the nearest photo's": similarity.argmax(axis=1)}


def auc(own: np.ndarray, other: np.ndarray) -> float:
    """The share of pairs (own, other), over all photos, in which the own caption scores more; a tie is half."""
    return float((own[:, None] > other[None]).mean() + (own[:, None] == other[None]).mean() / 2)


def told(own: np.ndarray, other: np.ndarray, owner: np.ndarray) -> dict[str, Any]:
    """AUC with its interval, and the share of pairs on the same photo."""
    chance, photos = np.random.default_rng(1), owner.max() + 1
    rows_of = [np.flatnonzero(owner == photo) for photo in range(photos)]
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rows_of[photo] for photo in chance.integers(photos, size=photos)])
        drawn.append(auc(own[rows], other[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "AUC": round(auc(own, other), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "same photo": round(float((own > other).mean() + (own == other).mean() / 2), 3),
    }


def measure(data: Path, work: Path, **changes: Any) -> dict[str, Any]:
    """Train with each seed and measure on the test photos."""
    sources = {name: split(data, name, work / "splits") for name in ("train", "choices", "test")}
    rows = load_images(sources["test"])
    references = list(rows["references"])
    owner = np.repeat(np.arange(len(references)), [len(own) for own in references])
    captions = [text for own in references for text in own]
    images = [rows[int(photo)]["image"] for photo in owner]
    wrong = others(load_text_encoder(DEFAULT_TEXT_ENCODER, "cpu").encode_texts(captions), owner)
    found: dict[str, Any] = {}
    for seed in SEEDS:
        started, cpu = time.perf_counter(), time.process_time()
        folder = run(
            EncoderConfig(
                images=sources["train"],
                choice_images=sources["choices"],
                eval_images=sources["test"],
                image_encoder="efficientnet-lite2",
                output=work / f"seed-{seed}",
                features=work / "vectors",
                device="cpu",
                seed=seed,
                **changes,
            )
        ).path
        seconds = {"seconds": round(time.perf_counter() - started), "CPU seconds": round(time.process_time() - cpu)}
        pair: Any = load_encoder(folder, "cpu")
        scorer = ClipScore(encoder=pair)
        own = scorer.rows(captions, image=images)[:, 0]
        scores = {name: scorer.rows([captions[i] for i in rows], image=images)[:, 0] for name, rows in wrong.items()}
        found[str(seed)] = {
            "recall": pair.config.recall.model_dump(exclude={"source"}),
            "told from": {name: told(own, other, owner) for name, other in scores.items()},
            "CLIPScore": {"own": round(float(own.mean()), 3)}
            | {name: round(float(other.mean()), 3) for name, other in scores.items()},
            "time": seconds,
        }
    return {"seeds": found, "machine": machine()}


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    seeds = result["seeds"]
    first = next(iter(seeds.values()))["recall"]
    lines = [
        "# A photo encoder pair", "",
        "Heads on EfficientNet-Lite2 and all-MiniLM-L6-v2, trained on 500 photos of Flickr8k with five captions each; "
        f"recall among {first['images']} photos and {first['captions']} captions that neither trained nor chose. "
        "Script and splits: `benchmarks/behaviour/encoder_pair.py`.", "",
        "| seed | text to image R@1 | R@5 | R@10 | image to text R@1 | R@5 | R@10 |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    ways = ("text_to_image", "image_to_text")
    for seed, one in seeds.items():
        cells = [f"{one['recall'][way][k]:.1%}" for way in ways for k in ("1", "5", "10")]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    chance = [f"{first[f'random_{way}'][k]:.1%}" for way in ways for k in ("1", "5", "10")]
    lines += [f"| random order | {' | '.join(chance)} |", ""]
    lines += ["| seed | own captions told from | AUC | 95% | pairs on the same photo |", "|---|---|---|---|---|"]
    for seed, one in seeds.items():
        for name, row in one["told from"].items():
            low, high = row["interval"]
            lines.append(f"| {seed} | {name} | {row['AUC']:.3f} | {low:.3f} to {high:.3f} | {row['same photo']:.1%} |")
    lines += ["", "| seed | mean CLIPScore of own captions | of a random photo's | of the nearest photo's |"]
    lines.append("|---|---|---|---|")
    for seed, one in seeds.items():
        lines.append(f"| {seed} | {' | '.join(f'{value:.3f}' for value in one['CLIPScore'].values())} |")
    times = ", ".join(f"{one['time']['CPU seconds']}" for one in seeds.values())
    lines += ["", f"CPU seconds by seed: {times}; the first encodes 700 photos and 3,500 captions, the others take its "
              "vectors."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="flickr8k/captions.txt, its photos beside it")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    result = measure(args.data, args.work)
    write(result, page(result), args.output)


if __name__ == "__main__":
    main()
