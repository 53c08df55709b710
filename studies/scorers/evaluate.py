"""Which scorer tracks the truth? `python studies/scorers/run.py` scores captions whose truth is known, and ranks.

    python studies/scorers/run.py                                        # storybook: the truth is exact
    python studies/scorers/run.py --vizer runs/g/mapper                  # a ViZer mapper too
    python studies/scorers/run.py --flickr8k FOLDER                      # and real captions, right against wrong image
    python studies/scorers/run.py --only tables                          # nothing is run

Storybook (300 test images). Each image gets captions of several *writers*: a reference, the reference with one fact
changed (a kind, a colour, two colours swapped, a sub-kind, a relation, a size, the background), the reference cut
after its first thing, another image's reference, and what the captioners of the ViZer study said (committed there).
The other four references are what the scorers see.

Flickr8k (`FOLDER/captions.txt`, and its images for scorers that look): the first caption of an image against the first
caption of another one, the other four being the references.

Scores are written per caption to results/*.json as they come; a scorer that has its scores is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import tables

from captune import storybook
from captune.corpus import Corpus
from captune.data import load_images, load_references, read_captions
from captune.errors import ScorerError
from captune.evaluation.run import Images
from captune.scorers import Scorer, load_scorer
from captune.storybook.changes import CHANGES, changed
from captune.storybook.parser import TYPES
from captune.storybook.world import KIND_NAMES, Scene

HERE = Path(__file__).parent
logger = logging.getLogger(__name__)

TEXT = ["bleu", "rouge", "cider", "meteor", "bertscore", "sbert", "capture", "objects", "attributes", "relations"]
CONTROLS = ["length", "-repetition"]
STORYBOOK = [*TEXT, "-chair:?vocabulary={vocabulary}", "clip", "self_retrieval", "cycle:storybook", "grc:{corpus}",
             "qir:{corpus}", "grc:{corpus} + qir:{corpus}", *CONTROLS, "storybook"]  # fmt: skip
FLICKR8K = [*TEXT, "-chair", *CONTROLS]
CAPTIONERS = {"base": "base", "paper GT": "paper-GT", "paper G": "paper-G", "zero-label": "zero-label",
              "supervised": "supervised"}  # fmt: skip


def derangement(n: int) -> list[int]:
    """Another place for each of n: one cycle through all of them."""
    order = list(range(n))
    random.Random(0).shuffle(order)
    other = [0] * n
    for a, b in zip(order, order[1:] + order[:1], strict=True):
        other[a] = b
    return other


def cut(caption: str) -> str:
    """The caption up to its second thing."""
    return re.split(r" (?:left of|right of|above|below|and|with|near|over|under|,)\b", caption)[0].rstrip(" ,")


def storybook_writers(n: int, captions: Path) -> tuple[dict[str, list[str | None]], dict[str, Any]]:
    """({writer: a caption or None per image}, the columns) of the images that the ViZer study captioned."""
    test = storybook.load("test", n, seed=1)
    told = test.with_format(None)["references"]
    first, other = [own[0] for own in told], derangement(n)
    writers: dict[str, list[str | None]] = {"reference": list(first)}
    for what in CHANGES:
        writers[f"changed {what}"] = [changed(text, what, random.Random(i)) for i, text in enumerate(first)]
    writers["cut short"] = [cut(text) for text in first]
    writers["wrong image"] = [first[i] for i in other]
    ids = test["image_id"]
    for name, file in CAPTIONERS.items():
        said = read_captions(captions / f"{file}-storybook-7.jsonl")
        writers[name] = [said[i] for i in ids]
    columns = {"image": Images(test), "image_id": list(ids), "references": [own[1:] for own in told],
               "scene": list(test["scene"])}  # fmt: skip
    return writers, columns


def truth(writers: dict[str, list[str | None]], columns: dict[str, Any]) -> dict[str, list[dict[str, float] | None]]:
    """What each caption states, exactly: precision, recall, f1, false (facts)."""
    scorer = load_scorer("storybook")
    facts: dict[str, list[dict[str, float] | None]] = {}
    for writer, captions in writers.items():
        facts[writer] = []
        for caption, scene in zip(captions, columns["scene"], strict=True):
            if caption is None:
                facts[writer].append(None)
                continue
            row = scorer.row(caption, Scene.from_json(scene))  # type: ignore[attr-defined]
            true, stated, recalled, there = (sum(row[i : 4 * len(TYPES) : 4]) for i in range(4))
            p, r = true / stated if stated else 0.0, recalled / there if there else 0.0
            facts[writer].append({"precision": p, "recall": r, "f1": 2 * p * r / (p + r) if p + r else 0.0,
                                  "false": stated - true})  # fmt: skip
    return facts


def flickr8k_writers(folder: Path) -> tuple[dict[str, list[str | None]], dict[str, Any]]:
    said = load_references(str(folder / "captions.txt"))
    ids = [i for i, own in said.items() if len(own) == 5]
    first, other = [said[i][0] for i in ids], derangement(len(ids))
    writers: dict[str, list[str | None]] = {"reference": list(first), "wrong image": [first[i] for i in other]}
    return writers, {"image_id": ids, "references": [said[i][1:] for i in ids]}


def score(scorer: Scorer, captions: list[str | None], columns: dict[str, Any]) -> list[float | None]:
    """A number per caption, None where there is no caption, or where the scorer has nothing to compare it with."""
    there = [i for i, caption in enumerate(captions) if caption is not None]
    chosen = {name: [column[i] for i in there] for name, column in columns.items()
              if name in (*scorer.required_columns, *scorer.optional_columns)}  # fmt: skip
    values = iter(scorer.per_caption(scorer.measure([str(captions[i]) for i in there], chosen)))
    found = [None if caption is None else round(float(next(values)), 6) for caption in captions]
    return [None if value is None or math.isnan(value) else value for value in found]


def fill(specs: list[str], writers: Any, columns: Any, file: Path, slots: dict[str, str]) -> dict[str, Any]:
    """{scorer: {signature, seconds, scores: {writer: a number per image}}}, kept in `file` as it comes."""
    done = json.loads(file.read_text()) if file.is_file() else {}
    for spec in specs:
        name = re.sub(r":\S+", "", spec)
        if name in done:
            continue
        try:
            scorer = load_scorer(spec.format(**slots))
            scorer.check()
            began = time.process_time(), time.perf_counter()
            if name == "cider":  # frozen, so that every writer is measured with the same weights
                scorer.fit(columns["references"])  # type: ignore[attr-defined]
            scores = {writer: score(scorer, captions, columns) for writer, captions in writers.items()}
        except ScorerError as error:
            print(f"{name}: left out: {error}")
            continue
        seconds, wall = (
            round(now - then, 2) for now, then in zip((time.process_time(), time.perf_counter()), began, strict=True)
        )
        done[name] = {"signature": scorer.signature, "seconds": seconds, "wall": wall, "scores": scores}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(done))
        print(f"{name}: {seconds:.1f} s of this process, {wall:.1f} s in all")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, help="a folder with captions.txt")
    parser.add_argument("--vizer", type=Path, help="a fitted mapper's folder, runs/g/mapper, to judge it too")
    parser.add_argument("--n", type=int, default=300, help="storybook images (default: 300)")
    parser.add_argument("--captions", type=Path, default=HERE.parent / "vizer" / "results" / "captions")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="what can be made again")
    parser.add_argument("--only", choices=["tables"])
    args = parser.parse_args()
    if args.only is None:
        args.work.mkdir(parents=True, exist_ok=True)
        corpus, vocabulary = args.work / "corpus", args.work / "kinds.json"
        if not (corpus / "config.json").is_file():
            Corpus.build("storybook:train?n=1000", corpus, text_encoder="all-MiniLM-L6-v2")
        vocabulary.write_text(json.dumps({kind: [] for kind in KIND_NAMES}))
        writers, columns = storybook_writers(args.n, args.captions)
        facts = args.results / "truth.json"
        facts.parent.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps({"truth": truth(writers, columns), "captions": writers}))
        slots = {"corpus": str(corpus), "vocabulary": str(vocabulary)}
        specs = [*STORYBOOK, f"vizer:{args.vizer}"] if args.vizer is not None else STORYBOOK
        fill(specs, writers, columns, args.results / "storybook.json", slots)
        if args.flickr8k is not None:
            writers, columns = flickr8k_writers(args.flickr8k)
            if (args.flickr8k / "images").is_dir():
                images = load_images(str(args.flickr8k / "images"))
                place = {Path(image_id).name: row for row, image_id in enumerate(images["image_id"])}
                columns["image"] = Images(images.select([place[i] for i in columns["image_id"]]))
            fill(FLICKR8K, writers, columns, args.results / "flickr8k.json", {})
    tables.write(args.results)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
