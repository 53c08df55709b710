"""The study of scorers against people: every text scorer on Flickr8k-Expert, and how well one expert does.

What costly scorers have judged is kept in work/, so that a run that was stopped resumes. The data are not part of the
repository; the results name them by file name alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captune.data.judgements import Judgements, read_judgements
from captune.evaluation.correlation import rated
from captune.evaluation.human import correlate
from captune.utils.files import replace_file
from studies._lib.store import provenance

from . import tables
from .experiments import SCORERS

HERE = Path(__file__).parent


def experts(found: Judgements, resamples: int) -> dict[str, Any]:
    """What people themselves reach: one expert's grade as a scorer of the other two's (the mean over the three).

    And the three's own mean as a scorer of each of their grades: nothing that gives a caption one number does better.
    """
    caption, grades = np.array([c for c, _ in found.ratings]), np.array([grade for _, grade in found.ratings])
    caption, grades = caption.reshape(-1, 3), grades.reshape(-1, 3)
    if (caption != caption[:, :1]).any():
        raise ValueError("the three grades of a pair do not follow each other")
    numbers: dict[str, int] = {}
    image = np.array([numbers.setdefault(own.image_id, len(numbers)) for own in found.candidates])
    each = []
    for one in range(3):
        others = [expert for expert in range(3) if expert != one]
        scores = np.full(len(found.candidates), np.nan)
        scores[caption[:, 0]] = grades[:, one]
        flat = np.repeat(caption[:, 0], 2)
        each.append(rated(image[flat], flat, grades[:, others].ravel(), scores, resamples=resamples, seed=0))
    values = {name: float(np.mean([own.values[name] for own in each])) for name in each[0].values}
    drawn = {name: np.mean([own.drawn[name] for own in each], axis=0) for name in each[0].drawn}
    interval = {name: [float(x) for x in np.quantile(own, [0.025, 0.975])] for name, own in drawn.items()}
    mean = np.full(len(found.candidates), np.nan)
    mean[caption[:, 0]] = grades.mean(axis=1)
    flat = caption.ravel()
    best = rated(image[flat], flat, grades.ravel(), mean, resamples=resamples, seed=0)
    return {
        "one": {"values": values, "interval": interval, "each": [own.values for own in each]},
        "mean": {"values": best.values, "interval": best.interval()},
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies human", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judgements", type=Path, help="ExpertAnnotations.txt")
    parser.add_argument("--captions", type=Path, nargs="+", help="Flickr8k.token.txt, or captions.txt and others")
    parser.add_argument("--scorers", nargs="+", default=list(SCORERS), help="default: those of experiments.py")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of images (default: 1000)")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="what can be made again")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    if not args.tables:
        if args.judgements is None or args.captions is None:
            parser.error("name the data: --judgements ExpertAnnotations.txt --captions Flickr8k.token.txt")
        start = time.process_time()
        found = read_judgements(args.judgements, captions=args.captions)
        found.path = args.judgements.name
        result = correlate(
            found, scorers=args.scorers, every_figure=True, bootstrap=args.bootstrap, cache=args.work / "scores"
        )
        names = " ".join(file.name for file in args.captions)
        command = f"python -m studies human --judgements {found.path} --captions {names}"
        made = {**provenance(command, time.process_time() - start), "experts": experts(found, args.bootstrap), **result}
        args.results.mkdir(parents=True, exist_ok=True)
        replace_file(args.results / f"{found.format}.json", json.dumps(made, ensure_ascii=False, indent=1) + "\n")
        for spec, why in result["failed"].items():
            print(f"{spec}: left out: {why}")
    print(tables.write(args.results))
    return 0
