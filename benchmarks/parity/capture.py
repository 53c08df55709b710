"""Does `capture?compat=published` match as capture-metric 0.1.13 does? And what does each published quirk change?

    PYTHONHASHSEED=0 PYTHONPATH=<folder with capture_metric, factual_scene_graph and nltk> NLTK_DATA=<folder> \
        python -m benchmarks.parity.capture captions.json

`captions.json` is {image id: caption}, with long captions; NLTK_DATA holds corpora/wordnet (WordNet 3.0: NLTK's, or the
files of Debian's package wordnet-base, a `lexnames` and an empty `index.sense`). Both sides get the same scene graphs
(those of the grammar parser) in the order of Python's sets, and the same sentence vectors; capture-metric's
constructor, which wants a GPU and the hub, is side-stepped. The caption of each image is compared with its own first
half and with another image's. With the argument `golden` it writes tests/golden/capture.json instead.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from capture_metric.capture import CAPTURE

from captune.scene_graphs import SceneGraph
from captune.scorers.reference.capture import Capture

PAIRS = 200
SEEDS, SEED_PAIRS = 20, 40


class Vectors:
    """capture-metric's text encoder: captune's vectors."""

    def __init__(self, capture: Capture) -> None:
        self.encode = lambda phrases, batch_size: capture._encode(phrases)


def theirs(capture: Capture) -> CAPTURE:
    metric = CAPTURE.__new__(CAPTURE)
    metric.alpha, metric.beta, metric.gamma, metric.eps = 0.5, 0.5, 0.2, 1e-6
    metric.synonym_matching = metric.soft_matching = True
    metric.text_encoder = Vectors(capture)
    return metric


def as_sets(graph: SceneGraph) -> tuple[list, dict[str, set], set]:
    """As capture-metric builds them: everything comes out of a set."""
    return list(set(graph.objects)), {k: set(v) for k, v in graph.attributes_of().items()}, set(graph.relations)


def in_order(parsed: tuple[list, dict[str, set], set]) -> SceneGraph:
    objects, attributes, relations = parsed
    return SceneGraph(tuple(objects), tuple((k, v) for k, own in attributes.items() for v in own), tuple(relations))


def main() -> None:
    texts = list(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).values())[:PAIRS]
    published, default = Capture("?compat=published", device="cpu"), Capture(device="cpu")
    metric = theirs(published)
    halves = [". ".join(text.split(". ")[: max(1, text.count(". ") // 2)]) for text in texts]
    result: dict[str, Any] = {
        "captions": Path(sys.argv[1]).parent.name, "pairs": len(texts),
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED"),
        "versions": {name: importlib.metadata.version(name) for name in ("capture-metric", "nltk")},
    }  # fmt: skip
    for name, candidates in {"first half": halves, "another image's": [*texts[1:], texts[0]]}.items():
        graphs, own = published.graphs(candidates, [[text] for text in texts])
        parsed = [(as_sets(graph), as_sets(other)) for graph, (other,) in zip(graphs, own, strict=True)]
        wanted = np.array([metric.compute_f_score(gt, cand) for cand, gt in parsed])
        got = np.array([published.compare(in_order(cand), in_order(gt)) for cand, gt in parsed])
        other_order = np.array([published.compare(graph, o) for graph, (o,) in zip(graphs, own, strict=True)])
        changes = {"order of the parser instead of the sets'": other_order[:, 0] - got[:, 0]}
        fixed = np.array([default.compare(graph, o) for graph, (o,) in zip(graphs, own, strict=True)])
        changes["compat=published to the default"] = fixed[:, 0] - got[:, 0]
        result[name] = {
            "capture-metric": round(wanted[:, 0].mean(), 6),
            "captune, published": round(got[:, 0].mean(), 6),
            "captune, default": round(fixed[:, 0].mean(), 6),
            "largest difference of any figure of any pair": float(np.abs(wanted - got).max()),
            "change of CAPTURE": {
                key: {"mean": round(float(delta.mean()), 5), "largest": round(float(np.abs(delta).max()), 5)}
                for key, delta in changes.items()
            },
            "substring synonyms": substrings(graphs, [other for (other,) in own]),
        }  # fmt: skip
    runs = []
    for seed in range(SEEDS):
        command = [sys.executable, "-m", "benchmarks.parity.capture", sys.argv[1], "one-seed"]
        run = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": str(seed)}, capture_output=True, check=True)
        runs.append(json.loads(run.stdout.splitlines()[-1]))
    result[f"{SEEDS} hash seeds, {SEED_PAIRS} captions of other images"] = {
        name: {"distinct values": len(set(values)), "lowest": min(values), "highest": max(values)}
        for name, values in zip(("default", "published, in the order of sets"), zip(*runs, strict=True), strict=True)
    }
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(file.read_text(encoding="utf-8"))


def substrings(ours: list[SceneGraph], theirs: list[SceneGraph]) -> dict[str, Any]:
    """How many pairs of objects of a caption and its reference are "synonyms" only because one is part of the other."""
    pairs, found = 0, []
    for a, b in zip(ours, theirs, strict=True):
        for x, y in itertools.product(a.objects, b.objects):
            pairs += 1
            if x != y and (x in y or y in x) and not set(x.split()) & set(y.split()):
                found.append(f"{x} ~ {y}")
    return {
        "pairs of objects": pairs,
        "part of another, no word in common": len(found),
        "such as": sorted(set(found))[:40:2],
    }


def one_seed() -> None:
    """CAPTURE of some captions of other images under this process's hash seed: the default, and as published."""
    texts = list(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).values())[:SEED_PAIRS]
    published, default = Capture("?compat=published", device="cpu"), Capture(device="cpu")
    candidates, references = [*texts[1:], texts[0]], [[text] for text in texts]
    graphs, own = published.graphs(candidates, references)
    rows = [published.compare(in_order(as_sets(g)), in_order(as_sets(o))) for g, (o,) in zip(graphs, own, strict=True)]
    print(json.dumps([default.corpus(default.rows(candidates, references=references))["capture"],
                      float(np.mean(rows, axis=0)[0])]))  # fmt: skip


GOLDEN = [
    ("A red car and a woman's scarf.", "A man beside a dark car. He wears a long red scarf."),
    ("A woman holds an automobile's key.", "A man in a car."),
    ("A small brown dog runs on the grass with a ball.", "A brown puppy runs across a green lawn. It has a blue ball."),
    (
        "Two white boats on the sea near a big lighthouse.",
        "A white ship is on the ocean. A tall tower stands behind it.",
    ),
    ("A wooden table with a glass bowl of fruit.", "A bowl of red apples on a table in a kitchen."),
    ("A tall building.", "A cat."),
    ("A large black bird above a large black bird on a wire.", "A big black crow on a wire. A large wire."),
]


def golden() -> None:
    """tests/golden/capture.json: what capture-metric says of a few graphs, with made-up vectors."""
    rng = np.random.default_rng(0)
    capture = Capture("?compat=published")
    metric = theirs(capture)
    graphs, own = capture.graphs([a for a, _ in GOLDEN], [[b] for _, b in GOLDEN])
    pairs = []
    for graph, (other,) in zip(graphs, own, strict=True):
        sides = [(list(g.objects), g.attributes_of(), list(g.relations)) for g in (graph, other)]
        phrases = {p for o, a, r in sides for p in (*o, *(v for own in a.values() for v in own), *map(" ".join, r))}
        vectors = {phrase: rng.normal(size=5) for phrase in sorted(phrases - capture._vectors.keys())}
        capture._vectors |= {phrase: np.round(v / np.linalg.norm(v), 4) for phrase, v in vectors.items()}
        figures = metric.compute_f_score(sides[1], sides[0])
        pairs.append({"caption": sides[0], "reference": sides[1], "figures": [float(figure) for figure in figures]})
    # capture-metric normalises vectors itself, so the rounded ones are normalised again by whoever reads them
    written = {"pairs": pairs, "vectors": {phrase: vector.tolist() for phrase, vector in capture._vectors.items()}}
    file = Path(__file__).parents[2] / "tests" / "golden" / "capture.json"
    file.write_text(json.dumps(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["golden"]:
        golden()
    elif len(sys.argv) > 2:
        one_seed()
    else:
        main()
