"""Per-caption CIDEr-D: captune and pycocoevalcap side by side on 1,000 captions with 5 references each.

    python benchmarks/cider_speed.py captions.txt [--output benchmarks/cider_speed.json]

The captions file has `image,caption` lines, several per image (Flickr8k's). The 1,000 candidates are half a caption of
the image and half of the next image's, so that scores lie between nothing and perfect; each is scored against its
image's five captions. Both sides get the same tokenized texts in one process, in turns. Wall and processor seconds are
reported: on a machine that others use too, the second is the one to trust. Measured:

- first: a new scorer that has seen nothing: document frequencies, reference vectors, 1,000 scores;
- repeated: the same scorer scores other captions against the same references, as a reward does;
- raw: as "first", but from untokenized text, tokenization included (pycocoevalcap is given its tokens for nothing).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from pycocoevalcap.cider.cider import Cider as PeerCider

from captune.scorers import ptb
from captune.scorers.cider import Cider


def timed(function, *arguments):
    """((wall seconds, processor seconds), what the function returned)"""
    wall, processor = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return (time.perf_counter() - wall, time.process_time() - processor), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    by_image = defaultdict(list)
    with args.captions.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_image[row["image"]].append(row["caption"])
    complete = [texts for texts in by_image.values() if len(texts) >= 5][: args.images]
    if len(complete) < args.images:
        parser.error(f"{args.captions} has {len(complete)} images with 5 captions, not {args.images}")
    references = [texts[:5] for texts in complete]
    halves = [
        (own[0].split(), other[1].split()) for own, other in zip(complete, complete[1:] + complete[:1], strict=True)
    ]
    captions = [" ".join(a[: len(a) // 2 + 2] + b[len(b) // 2 :]) for a, b in halves]
    others = [" ".join(b[: len(b) // 2] + a[len(a) // 2 :]) for a, b in halves]
    t_captions = [ptb.tokenize(c) for c in captions]
    t_references = [[ptb.tokenize(r) for r in own] for own in references]
    gts = dict(enumerate(t_references))
    res = {i: [c] for i, c in enumerate(t_captions)}

    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(args.repeats):
        seconds, (_, peer) = timed(PeerCider().compute_score, gts, res)
        times["pycocoevalcap"].append(seconds)

        scorer = Cider()
        seconds, rows = timed(lambda: scorer.rows(t_captions, references=t_references))  # noqa: B023
        times["captune, first"].append(seconds)
        difference = float(np.abs(scorer.per_caption(rows) - peer).max())

        scorer.rows(others, references=t_references)
        seconds, _ = timed(lambda: scorer.rows(t_captions, references=t_references))  # noqa: B023
        times["captune, repeated"].append(seconds)

        ptb.tokenize.cache_clear()
        seconds, _ = timed(lambda: Cider().rows(captions, references=references))
        times["captune, raw"].append(seconds)
        if difference > 1e-6:
            raise SystemExit(f"the scores differ by {difference}")

    result: dict = {"captions": len(captions), "references": 5, "repeats": args.repeats}
    for i, clock in enumerate(("wall", "processor")):
        median = {name: statistics.median(pair[i] for pair in pairs) for name, pairs in times.items()}
        ratio = {n: round(median["pycocoevalcap"] / s, 1) for n, s in median.items() if n != "pycocoevalcap"}
        seconds = {name: round(s, 4) for name, s in median.items()}
        fastest = {name: round(min(pair[i] for pair in pairs), 4) for name, pairs in times.items()}
        result[clock] = {"seconds_median": seconds, "seconds_fastest": fastest, "times_faster": ratio}
    result |= {
        "largest_difference": difference,
        "mean_score": float(np.mean(peer)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    text = json.dumps(result, indent=2)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
