"""BLEU, ROUGE-L and CIDEr-D: captune and pycocoevalcap side by side, in one process, in turns, on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scorer_speed captions.csv [--output benchmarks/speed/scorer_speed.json]

The file has `image,caption` lines, several per image (Flickr8k's). A candidate is half a caption of the image and half
of the next image's, so that scores lie between nothing and perfect; each is scored against its image's five captions.

1. On 5,000 captions, medians over repeats, in wall and in processor seconds (Java's too). "CIDEr-D" is a new scorer
   on texts whose words are known, as pycocoevalcap's is: document frequencies, reference vectors, scores. "CIDEr-D as a
   reward" scores other captions against the same references. "The set" is all three from raw text, tokenization
   included; pycocoevalcap's tokenizer starts Java twice, so the set is also compared without its tokenizer's time,
   captune's own still included.
2. With the number of captions, in new processes: the set's time per caption and the peak of memory (Linux). The
   captions there are mixed from halves, so that hardly any text comes twice.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from captune.scorers._support import ptb
from captune.scorers.reference.bleu import Bleu
from captune.scorers.reference.cider import Cider
from captune.scorers.reference.rouge import Rouge
from tests.golden.make_pycocoevalcap import read

REFERENCES = 5
Texts = tuple[list[str], list[list[str]]]


def seconds() -> np.ndarray:
    """(wall, processor) seconds, those of ended child processes included."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return np.array([time.perf_counter(), own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime])


def timed(times: dict[str, list], name: str, function: Callable[[], Any]) -> Any:
    before = seconds()
    result = function()
    times[name].append(seconds() - before)
    return result


def pairs(by_image: list[list[str]], number: int) -> Texts:
    references = [own[:REFERENCES] for own in by_image if len(own) >= REFERENCES][:number]
    if len(references) < number:
        sys.exit(f"the file has {len(references)} images with {REFERENCES} captions, not {number}")
    return [mix(a[0], b[1]) for a, b in zip(references, references[1:] + references[:1], strict=True)], references


def mix(first: str, second: str) -> str:
    a, b = first.split(), second.split()
    return " ".join(a[: len(a) // 2 + 2] + b[len(b) // 2 :])


def mixed(by_image: list[list[str]], number: int) -> Texts:
    rng = random.Random(0)
    texts = [text for own in by_image for text in own]
    made = [[mix(rng.choice(texts), rng.choice(texts)) for _ in range(1 + REFERENCES)] for _ in range(number)]
    return [own[0] for own in made], [own[1:] for own in made]


def captune_set(captions: list[str], references: list[list[str]]) -> dict[str, np.ndarray]:
    ptb.tokenize.cache_clear()
    return {s.name: s.rows(captions, references=references) for s in (Bleu(), Rouge(), Cider())}


def peer_tokens(captions: list[str], references: list[list[str]]) -> tuple[dict, dict]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    gts = {i: [{"caption": r} for r in own] for i, own in enumerate(references)}
    return PTBTokenizer().tokenize(gts), PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})


def peer_scores(gts: dict, res: dict, times: dict[str, list]) -> dict[str, np.ndarray]:
    from pycocoevalcap.bleu.bleu import Bleu as PeerBleu
    from pycocoevalcap.cider.cider import Cider as PeerCider
    from pycocoevalcap.rouge.rouge import Rouge as PeerRouge

    timed(times, "BLEU", lambda: PeerBleu().compute_score(gts, res, verbose=0))
    timed(times, "ROUGE-L", lambda: PeerRouge().compute_score(gts, res))
    return timed(times, "CIDEr-D", lambda: PeerCider().compute_score(gts, res))[1]


def side_by_side(by_image: list[list[str]], number: int, repeats: int) -> dict[str, Any]:
    captions, references = pairs(by_image, number)
    others = captions[1:] + captions[:1]
    ours: dict[str, list] = defaultdict(list)
    theirs: dict[str, list] = defaultdict(list)
    difference = 0.0
    for _ in range(repeats):
        with contextlib.redirect_stdout(io.StringIO()):
            gts, res = timed(theirs, "tokenization", lambda: peer_tokens(captions, references))
            expected = peer_scores(gts, res, theirs)
        rows = timed(ours, "the set", lambda: captune_set(captions, references))
        difference = max(difference, float(np.abs(rows["cider"][:, 0] - expected).max()))
        timed(ours, "BLEU", lambda: Bleu().rows(captions, references=references))
        timed(ours, "ROUGE-L", lambda: Rouge().rows(captions, references=references))
        scorer = Cider()
        timed(ours, "CIDEr-D", lambda: scorer.rows(captions, references=references))  # noqa: B023
        timed(ours, "CIDEr-D as a reward", lambda: scorer.rows(others, references=references))  # noqa: B023
    theirs["CIDEr-D as a reward"] = theirs["CIDEr-D"]
    scores = ("BLEU", "ROUGE-L", "CIDEr-D")
    theirs["the set"] = [sum(parts) for parts in zip(theirs["tokenization"], *(theirs[s] for s in scores), strict=True)]
    theirs["the set, its tokenization left out"] = [sum(p) for p in zip(*(theirs[s] for s in scores), strict=True)]
    ours["the set, its tokenization left out"] = ours["the set"]
    table = {}
    for name in (*scores, "CIDEr-D as a reward", "the set", "the set, its tokenization left out"):
        a, b = np.median(theirs[name], axis=0), np.median(ours[name], axis=0)
        ratios = [x[1] / y[1] for x, y in zip(theirs[name], ours[name], strict=True)]
        table[name] = {
            "pycocoevalcap": {"wall": round(a[0], 4), "processor": round(a[1], 4)},
            "captune": {"wall": round(b[0], 4), "processor": round(b[1], 4)},
            "times_faster": {"wall": round(a[0] / b[0], 1), "processor": round(a[1] / b[1], 1)},
            "times_faster_processor_each": [round(r, 1) for r in ratios],
        }
    return {"captions": number, "repeats": repeats, "largest_cider_difference": difference, "seconds": table}


def peak_mib() -> int:
    """Of this process; getrusage would count the process that started it too."""
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024


def one(by_image: list[list[str]], who: str, number: int) -> dict[str, Any]:
    """The set on `number` captions in this process."""
    captions, references = mixed(by_image, number)
    held = peak_mib()
    times: dict[str, list] = defaultdict(list)
    if who == "captune":
        timed(times, "set", lambda: captune_set(captions, references))
        spent = times["set"][0]
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            gts, res = timed(times, "tokenization", lambda: peer_tokens(captions, references))
            peer_scores(gts, res, times)
        spent = sum(part[0] for part in times.values())
    return {
        "captions": number,
        "wall_seconds": round(spent[0], 2),
        "processor_seconds": round(spent[1], 2),
        "processor_us_per_caption": round(1e6 * spent[1] / number, 1),
        "peak_mib": peak_mib(),
        "peak_mib_before_scoring": held,
    }


def markdown(result: dict[str, Any]) -> str:
    side = result["side_by_side"]
    lines = [
        "# Speed of BLEU, ROUGE-L and CIDEr-D",
        "",
        f"{side['captions']:,} captions x {REFERENCES} references, one thread, medians of {side['repeats']} turns;",
        f"{result['machine']}. Made by `python -m benchmarks.speed.scorer_speed`; its head says what is measured.",
        f"Largest difference between the CIDEr-D scores of a caption: {side['largest_cider_difference']:.0e}.",
        "",
        "| | pycocoevalcap, processor s (wall) | captune | times faster, processor | wall |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, r in side["seconds"].items():
        a, b, t = r["pycocoevalcap"], r["captune"], r["times_faster"]
        lines.append(
            f"| {name} | {a['processor']:.2f} ({a['wall']:.2f}) | {b['processor']:.3f} ({b['wall']:.3f}) "
            f"| {t['processor']} | {t['wall']} |"
        )
    lines += ["", "The set, tokenization included, with the number of captions (x 5 references):", ""]
    lines += ["| | captions | processor s | us per caption | peak memory, MiB | of it before scoring |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for who, rows in result["with_size"].items():
        for r in rows:
            lines.append(
                f"| {who} | {r['captions']:,} | {r['processor_seconds']} | {r['processor_us_per_caption']} "
                f"| {r['peak_mib']:,} | {r['peak_mib_before_scoring']:,} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WHO", "NUMBER"), help="what the script calls itself with")
    args = parser.parse_args()
    by_image = list(read(args.captions).values())
    if args.one:
        print(json.dumps(one(by_image, args.one[0], int(args.one[1]))))
        return
    side = side_by_side(by_image, args.number, args.repeats)
    with_size: dict[str, list] = defaultdict(list)
    for who, sizes in (("captune", (1000, 10_000, 100_000)), ("pycocoevalcap", (1000, 10_000))):
        for size in sizes:
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed.scorer_speed",
                str(args.captions),
                "--one",
                who,
                str(size),
            ]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            with_size[who].append(json.loads(ran.stdout))
    load = os.getloadavg()[0]
    machine = f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, load {load:.1f}"
    result = {"machine": machine, "side_by_side": side, "with_size": dict(with_size)}
    print(markdown(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
