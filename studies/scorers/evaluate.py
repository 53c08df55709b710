"""The scorer study: scores captions whose truth is known, and ranks the scorers.

Scores are written per caption to results/*.json as they come; a scorer that has its scores is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.corpus import Corpus
from captune.errors import ScorerError, UnknownScorer
from captune.scorers import Scorer, load_scorer
from captune.storybook.parser import TYPES
from captune.storybook.world import KIND_NAMES, Scene
from captune.utils.files import replace_file
from captune.utils.versions import command_line
from studies._lib.store import provenance

from . import tables
from .experiments import CAPTIONERS, FLICKR8K, STORYBOOK, Writers, flickr8k_writers, storybook_writers

HERE = Path(__file__).parent


def truth(writers: Writers, columns: dict[str, Any]) -> dict[str, list[dict[str, float] | None]]:
    """What each caption states, exactly: precision, recall, f1, false (facts)."""
    scorer: Any = load_scorer("storybook")

    def facts(caption: str | None, scene: str) -> dict[str, float] | None:
        if caption is None:
            return None
        row = scorer.row(caption, Scene.from_json(scene))
        true, stated, recalled, there = (sum(row[i : 4 * len(TYPES) : 4]) for i in range(4))
        p, r = true / stated if stated else 0.0, recalled / there if there else 0.0
        return {"precision": p, "recall": r, "f1": 2 * p * r / (p + r) if p + r else 0.0, "false": stated - true}

    scenes = columns["scene"]
    return {name: [facts(*pair) for pair in zip(own, scenes, strict=True)] for name, own in writers.items()}


def score(scorer: Scorer, captions: list[str | None], columns: dict[str, Any]) -> list[float | None]:
    """A number per caption, None where there is no caption, or where the scorer has nothing to compare it with."""
    there = [i for i, caption in enumerate(captions) if caption is not None]
    chosen = {name: [column[i] for i in there] for name, column in columns.items()
              if name in (*scorer.required_columns, *scorer.optional_columns)}  # fmt: skip
    values = iter(scorer.per_caption(scorer.measure([str(captions[i]) for i in there], chosen)))
    found = [None if caption is None else round(float(next(values)), 6) for caption in captions]
    return [None if value is None or math.isnan(value) else value for value in found]


def score_among(
    scorer: Scorer, writer: str, writers: Writers, columns: dict[str, Any], peers: Sequence[str] = CAPTIONERS
) -> list[float | None]:
    """`score` by a scorer that compares an image's captions: each stands among those of the other captioners."""
    others = [writers[peer] for peer in peers if peer != writer]
    groups = [[own, *(peer[i] for peer in others)] for i, own in enumerate(writers[writer])]
    there = [i for i, group in enumerate(groups) if group[0] is not None]
    flat = [str(text) for i in there for text in groups[i]]
    ids = [columns["image_id"][i] for i in there for _ in groups[i]]
    values = scorer.per_caption(scorer.measure(flat, {"image_id": ids})).reshape(len(there), -1)[:, 0]
    found = dict(zip(there, values, strict=True))
    return [round(float(found[i]), 6) if i in found else None for i in range(len(groups))]


def named(spec: str) -> str:
    """A scorer's name in the tables: without its settings."""
    return re.sub(r":\S+", "", spec)


def known(file: Path) -> dict[str, Any]:
    """What a file of results holds."""
    return json.loads(file.read_text()) if file.is_file() else {}


def fill(specs: Sequence[str], writers: Writers, columns: Any, file: Path, slots: dict[str, str]) -> dict[str, Any]:
    """{scorer: {signature, seconds, scores: {writer: a number per image}}}, kept in `file` as it comes."""
    done = known(file)
    for spec in specs:
        name = named(spec)
        if name in done:
            continue
        try:
            scorer: Any = load_scorer(spec.format(**slots))
            scorer.check()
            cpu, wall = time.process_time(), time.perf_counter()
            if name == "cider":  # frozen, so that every writer is measured with the same weights
                scorer.fit(columns["references"])
            scores = {
                writer: score_among(scorer, writer, writers, columns)
                if scorer.grouped
                else score(scorer, captions, columns)
                for writer, captions in writers.items()
            }
        except (ScorerError, UnknownScorer) as error:
            print(f"{name}: left out: {error}")
            continue
        cpu, wall = round(time.process_time() - cpu, 2), round(time.perf_counter() - wall, 2)
        own = {"signature": scorer.signature, "wall": wall, "scores": scores}
        done[name] = {**provenance(command_line(), cpu), **own, "seconds": cpu}
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(done))
        print(f"{name}: {cpu:.1f} s of this process, {wall:.1f} s in all")
    return done


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies scorers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flickr8k", type=Path, help="a folder with captions.txt")
    parser.add_argument("--vizer", type=Path, help="a fitted mapper's folder, runs/g/mapper, to judge it too")
    parser.add_argument("--n", type=int, default=300, help="storybook images (default: 300)")
    parser.add_argument("--captions", type=Path, default=HERE.parent / "vizer" / "results" / "captions")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="what can be made again")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    if not args.tables:
        args.work.mkdir(parents=True, exist_ok=True)
        corpus, vocabulary = args.work / "corpus", args.work / "kinds.json"
        vocabulary.write_text(json.dumps({kind: [] for kind in KIND_NAMES}))
        writers, columns = storybook_writers(args.n, args.captions)
        args.results.mkdir(parents=True, exist_ok=True)
        before = known(args.results / "truth.json")
        if before and list(map(len, before["captions"].values())) == list(map(len, writers.values())):
            writers = before["captions"]  # what the other scorers judged: the ViZer study may have been run again
        else:
            facts = json.dumps({"truth": truth(writers, columns), "captions": writers})
            replace_file(args.results / "truth.json", facts)
        slots = {"corpus": str(corpus), "vocabulary": str(vocabulary)}
        specs = [*STORYBOOK, *([f"vizer:{args.vizer}"] if args.vizer else ())]
        missing = [
            spec for spec in specs if "{corpus}" in spec and named(spec) not in known(args.results / "storybook.json")
        ]
        if missing and not (corpus / "config.json").is_file():
            Corpus.build("storybook:train?n=1000", corpus, text_encoder="all-MiniLM-L6-v2")
        fill(specs, writers, columns, args.results / "storybook.json", slots)
        if args.flickr8k:
            fill(FLICKR8K, *flickr8k_writers(args.flickr8k), args.results / "flickr8k.json", {})
    print(tables.write(args.results))
    return 0
