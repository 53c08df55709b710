"""CAPTURE: agreement of scene graphs (Dong et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from captune.scene_graphs import SceneGraph
from captune.scorers._support.scene_graphs import GraphScorer

PARTS = ("object", "attribute", "relation")
WEIGHTS = (0.5, 0.5, 0.2)  # of the three F1s


class Capture(GraphScorer):
    """CAPTURE: F1 of the objects, attributes and relations of a caption's scene graph against its references'.

        CAPTURE = (0.5 F1_obj + 0.5 F1_attr + 0.2 F1_rel) / 1.2,  the mean over a caption's references

    Each F1 comes from three rounds of matching: equal dictionary forms, then WordNet synonyms, then each phrase that is
    left takes the largest cosine of sentence embeddings with any phrase left on the other side, without a threshold, so
    that no caption scores 0: on 500 long captions (DOCCI), the caption of another image scores 0.47, and the first half
    of the right caption 0.67.
    317 stop words (scene, image, background ...) are no objects. An element that one side lacks counts 0, as published.

        capture                                         the grammar parser and all-MiniLM-L6-v2, both offline
        capture:?parser=factual                         FACTUAL's flan-t5, as published; factual:FOLDER for a copy
        capture:?encoder=sentence-transformers/all-mpnet-base-v2        the published sentence encoder
        capture:?compat=published                       and the published quirks of matching

    Figures of two parsers or encoders do not compare. `compat=published` brings back what capture-metric 0.1.13 does:
    a word that is part of another is its synonym ("man" of "woman", "car" of "scarf"); so are words that have a synonym
    in common; the order of phrases decides which are matched (there, the order of Python's sets, so that PYTHONHASHSEED
    changes scores; here, the parser's order); 1e-6 is added to denominators. On the captions above that lifts the wrong
    image's from 0.467 to 0.492 and leaves halves of right ones at 0.674; a right half then beats a wrong half in 96.4%
    of images instead of 97.0%. Half a percent of the pairs of objects in long captions are parts of each other with no
    word in common ("wing" of "drawing"). See benchmarks/parity/capture.json.
    """

    name = "capture"
    primary = "capture"
    higher_is_better: ClassVar = {"capture*": True}
    labels: ClassVar = {"capture": "CAPTURE"}
    source = "Dong et al., 2024 (arXiv 2405.19092)"

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]], **columns: Any) -> np.ndarray:
        """(N, 10): CAPTURE, then precision, recall and F1 of objects, attributes and relations."""
        graphs, own = self.graphs(captions, references)
        self.embed_graphs([*graphs, *(other for others in own for other in others)])
        rows = [np.mean([self.compare(graph, other) for other in others], axis=0)
                for graph, others in zip(graphs, own, strict=True)]  # fmt: skip
        return np.array(rows, dtype=np.float64).reshape(len(captions), 10)

    def compare(self, graph: SceneGraph, reference: SceneGraph) -> list[float]:
        """A row of one caption and one reference."""
        pairs = (
            (graph.objects, reference.objects),
            ([a for _, a in graph.attributes], [a for _, a in reference.attributes]),
            (graph.relations, reference.relations),
        )
        figures = [self.matcher.scores(ours, theirs) for ours, theirs in pairs]
        score = sum(w * f1 for w, (_, _, f1) in zip(WEIGHTS, figures, strict=True)) / sum(WEIGHTS)
        return [score, *(value for three in figures for value in three)]

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        names = [f"capture_{part}_{figure}" for part in PARTS for figure in ("precision", "recall", "f1")]
        return {name: totals[..., i] / n for i, name in enumerate(["capture", *names])}
