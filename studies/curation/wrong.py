"""Captions of other images put among an image's own, and how well a scorer tells which they are."""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import time
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from captune.curation import curate
from captune.data import load_images
from captune.training.lifecycle import start_run
from captune.training.vizer.config import ViZerConfig
from captune.training.vizer.train import build_mapper
from studies._lib import ranks

from .experiments import Wrong

SHARE = 0.3
IMAGES, QUICK_IMAGES = 1500, 30  # at most
MAPPED = {"mapper_size": 1500}  # images that the mapper of `vizer` is fitted on, with the captioner's own captions
QUICK_MAPPED = {"mapper_size": 20, "mapper_samples": 2, "mapper_epochs": 1, "max_new_tokens": 8, "whitened": 4}

Captions = dict[str, list[str]]


def auc(scores: np.ndarray, good: np.ndarray) -> float | None:
    """How often a good caption has a higher score than another, ties halved; None where all are of one kind."""
    return ranks.auc(scores[good], scores[~good]) if 0 < good.sum() < len(good) else None


def decisions(folder: Path) -> dict[str, list[Any]]:
    """{column: values} of the first step of a curation."""
    (file,) = (folder / "decisions").glob("1-*.parquet")
    return pq.read_table(file, columns=["number", "verdict", "score"]).to_pydict()


def injected(
    captions: Captions, share: float, seed: int, *, whole: bool = False
) -> tuple[Captions, dict[str, list[bool]]]:
    """Captions some of which have changed places; {image: [whether it has, ...]}.

    `share` of all captions, or with `whole` of the images with all their captions, are chosen; each goes to the image
    of another. The chosen ones are taken in a random order of the images and moved on by as many places as an image
    has captions, so that none comes back to its own.
    """
    rng = random.Random(seed)
    ids = sorted(captions)
    rng.shuffle(ids)
    places = [[(image, number) for number in range(len(captions[image]))] for image in ids]
    if whole:
        chosen = [place for own in places[: round(share * len(ids))] for place in own]
    else:
        every = [place for own in places for place in own]
        chosen = [every[at] for at in sorted(rng.sample(range(len(every)), round(share * len(every))))]
    most = max(map(len, captions.values()))
    if len(chosen) < 2 * most:
        raise ValueError(f"{len(chosen)} captions are too few to change places with each other")
    texts = {image: list(own) for image, own in captions.items()}
    marks = {image: [False] * len(own) for image, own in captions.items()}
    for (image, number), (other, theirs) in zip(chosen, chosen[most:] + chosen[:most], strict=True):
        texts[image][number], marks[image][number] = captions[other][theirs], True
    return texts, marks


@dataclass(frozen=True)
class Data:
    """Where the captions come from.

    Args:
        source: storybook's, or "".
        tables: files of image,caption.
        photos: the folder of the images that are looked at.
        detector: what looks at them.
    """

    source: str = ""
    tables: tuple[Path, ...] = ()
    photos: Path | None = None
    detector: Path | None = None
    quick: bool = False

    @classmethod
    def of(cls, row: Wrong, args: argparse.Namespace) -> Data:
        if row.of == "storybook":
            n = QUICK_IMAGES if args.quick else IMAGES
            return cls(source=f"storybook:test?n={n}&seed={400 + row.seed}", quick=args.quick)
        if row.of == "flickr8k":
            return cls(tables=tuple(args.texts), quick=args.quick)
        folder = args.photos.parent / "images"
        return cls("", (args.photos,), folder if folder.is_dir() else args.photos.parent, args.detector, args.quick)

    def depends(self) -> list[Any]:
        """What a result depends on; of files their names and sizes, so that it does not matter where they lie."""
        files = [*self.tables, *([self.detector] if self.detector else [])]
        return [self.source, SHARE, IMAGES, *([file.name, file.stat().st_size] for file in files)]

    def captions(self) -> Captions:
        """{image: its captions}."""
        if self.source:
            rows = load_images(self.source, decode=False)
            return dict(zip(rows["image_id"], rows["references"], strict=True))
        found: Captions = {}
        for table in self.tables:
            with table.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if row["caption"].strip():
                        found.setdefault(row["image"], []).append(row["caption"])
        return found

    def write(self, captions: Captions, folder: Path) -> str:
        """Write the images that there are with these captions; return the source."""
        folder.mkdir(parents=True)
        if self.source:
            rows = load_images(self.source, decode=False)
            texts = [captions[image] for image in rows["image_id"]]
            rows.remove_columns("references").add_column("references", texts).to_parquet(str(folder / "set.parquet"))
            return str(folder / "set.parquet")
        with (folder / "set.jsonl").open("w", encoding="utf-8") as file:
            for image, texts in captions.items():
                where = {"image": image} if self.photos else {}
                file.write(json.dumps({"image_id": image, **where, "references": texts}) + "\n")
        return f"{folder / 'set.jsonl'}?images={self.photos.absolute()}" if self.photos else str(folder / "set.jsonl")


def mapper(row: Wrong, folder: Path, quick: bool) -> Path:
    """ViZer's mapper, fitted on the captioner's own captions of other images."""
    settings = QUICK_MAPPED if quick else MAPPED
    images = f"storybook:unlabelled?n={settings['mapper_size']}&seed={400 + row.seed}"
    config = ViZerConfig(model=row.base, images=images, output=folder, seed=row.seed, overwrite=True, **settings)
    run_dir, captioner = start_run(config, "vizer")
    build_mapper(captioner, config, run_dir, load_images(images))
    return run_dir.mapper


def judge(row: Wrong, data: Data, work: Path) -> dict[str, Any]:
    """How a scorer, or what `reassign` moves, agrees with what was injected."""
    folder = work / "wrong"
    shutil.rmtree(folder, ignore_errors=True)
    first = islice(data.captions().items(), QUICK_IMAGES if data.quick else IMAGES)
    own = {image: texts[: row.captions] for image, texts in first}
    captions, marks = injected(own, SHARE, row.seed, whole=row.whole)
    source, by = data.write(captions, folder / "data"), row.by
    if "{mapper}" in by:
        by = by.replace("{mapper}", str(mapper(row, folder / "vizer", data.quick)))
    by = by.replace("{detector}", str(data.detector))
    step = {"reassign": row.reassign} if row.reassign else {"filter": {"by": by, "keep": 1 - SHARE}}
    started = time.process_time()
    curate(source, folder / "set", [step], progress=False)
    seconds = time.process_time() - started
    found = decisions(folder / "set")
    good = ~np.array(list(chain.from_iterable(marks.values())))[found["number"]]
    kept = np.array([verdict == "keep" for verdict in found["verdict"]])
    scores = kept.astype(float) if row.reassign else np.array(found["score"], dtype=float)
    scored = np.isfinite(scores)
    both = int((~good & ~kept).sum())
    return {
        "wrong": int((~good).sum()),
        "unscored": int((~scored).sum()),
        "auc": auc(scores[scored], good[scored]),
        "precision": both / max(1, int((~kept).sum())),
        "recall": both / max(1, int((~good).sum())),
        "seconds_judging": round(seconds, 1),
    }
