"""CAPTURE: agreement of scene graphs (Dong et al., 2024), and what every scorer of scene graphs has in common."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from captune import scene_graphs
from captune.errors import ScorerError
from captune.scene_graphs import Parser, SceneGraph, load_parser
from captune.scene_graphs.matching import Matcher, text
from captune.scorers import Scorer, check_references
from captune.utils.spec import read_argument

if TYPE_CHECKING:
    from captune.models.encoders.sentence import TextEncoder

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
PARTS = ("object", "attribute", "relation")
WEIGHTS = (0.5, 0.5, 0.2)  # of the three F1s
_KEPT = 50_000  # graphs, and vectors of phrases, that are kept: a reward meets the same references again and again
_STOP_WORDS = Path(scene_graphs.__file__).with_name("capture_stop_words.txt")


class GraphScorer(Scorer):
    """A scorer that compares scene graphs; `settings` is the part of its argument after "?".

    :param parser: "grammar", "factual" or "factual:FOLDER", or a parser.
    :param encoder: a sentence-transformers model's folder or hub name, or a TextEncoder.
    """

    required_columns: tuple[str, ...] = ("references",)
    cost = "5 ms, plus what a model takes as parser"
    cached = True

    def __init__(self, settings: str = "", *, parser: str | Parser = "grammar",
                 encoder: str | TextEncoder = DEFAULT_ENCODER, device: str | None = None) -> None:  # fmt: skip
        chosen: dict[str, Any] = {"parser": parser, "encoder": encoder, "compat": "none"}
        chosen |= read_argument(self.name, f"?{settings}", tuple(chosen), f"{self.name}:?compat=published")[1]
        if chosen["compat"] not in ("none", "published"):
            raise ValueError(f"scorer {self.name!r}: compat is none or published, not {chosen['compat']!r}")
        self.published = chosen["compat"] == "published"
        spec, self._encoder = chosen["parser"], chosen["encoder"]
        self.parser: Parser = load_parser(spec, device=device) if isinstance(spec, str) else spec
        self._device = device
        self.matcher = Matcher(self._encode, published=self.published)
        self._graphs: dict[str, SceneGraph] = {}
        self._vectors: dict[str, np.ndarray] = {}

    @property
    def encoder(self) -> TextEncoder:
        """Loaded at first use."""
        if isinstance(self._encoder, str):
            from captune.errors import EncoderError
            from captune.models.encoders.sentence import TextEncoder

            try:
                self._encoder = TextEncoder.load(self._encoder, device=self._device)
            except EncoderError as error:
                raise ScorerError(f"{self.name}: {error}") from error
        return self._encoder

    def check(self) -> None:
        from captune.errors import EncoderError
        from captune.models.encoders.sentence import TextEncoder

        self.parser.check()
        try:
            if isinstance(self._encoder, str):
                TextEncoder.check(self._encoder)
        except EncoderError as error:
            raise ScorerError(f"{self.name}: {error}") from error

    @property
    def signature(self) -> str:
        from importlib.metadata import version

        encoder = self.encoder
        return (
            f"{self.name.partition(':')[0]}|parser:{self.parser.signature}|encoder:{encoder.name}@{encoder.digest}"
            f"|compat:{'published' if self.published else 'none'}"
            f"|sentence-transformers:{version('sentence-transformers')}"
        )

    def graphs(self, captions: Sequence[str], references: Sequence[Sequence[str]]
               ) -> tuple[list[SceneGraph], list[list[SceneGraph]]]:  # fmt: skip
        """The captions' graphs and those of their references; equal texts are parsed once, objects lose stop words."""
        check_references(self.name, references)
        texts = dict.fromkeys([*captions, *(reference for own in references for reference in own)])
        found = {one: self._graphs[one] for one in texts if one in self._graphs}
        new = [one for one in texts if one not in found]
        for one, graph in zip(new, self.parser.parse(new), strict=True):
            objects = tuple(thing for thing in graph.objects if thing not in stop_words())
            found[one] = SceneGraph(objects, graph.attributes, graph.relations)
        self._graphs = _newest(self._graphs, found)
        return [found[one] for one in captions], [[found[one] for one in own] for own in references]

    def embed_graphs(self, graphs: Sequence[SceneGraph]) -> None:
        """Encode every phrase of these graphs."""
        found: list[str] = []
        for graph in dict.fromkeys(graphs):
            found += [*graph.objects, *(attribute for _, attribute in graph.attributes), *map(text, graph.relations)]
        self.embed(found)

    def embed(self, phrases: Sequence[str]) -> None:
        """Encode what is not known yet, all at once: many small calls of the encoder are slow."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._vectors]
        if new:
            vectors = self.encoder.encode_texts(new).double().numpy()
            self._vectors = _newest(self._vectors, dict(zip(new, vectors, strict=True)))

    def _encode(self, phrases: Sequence[str]) -> np.ndarray:
        self.embed(phrases)
        return np.stack([self._vectors[phrase] for phrase in phrases])


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

    def __init__(self, argument: str | None = None, *, parser: str | Parser = "grammar",
                 encoder: str | TextEncoder = DEFAULT_ENCODER, device: str | None = None) -> None:  # fmt: skip
        super().__init__((argument or "").removeprefix("?"), parser=parser, encoder=encoder, device=device)

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
        names = [f"capture_{part}_{figure}" for part in PARTS for figure in ("precision", "recall", "f1")]
        return {name: totals[..., i] / n for i, name in enumerate(["capture", *names])}


@functools.cache
def stop_words() -> frozenset[str]:
    """CAPTURE's: no objects of their own."""
    lines = _STOP_WORDS.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def _newest(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both, less the oldest entries beyond the limit; all of `new` stays."""
    both = {**old, **new}
    for key in list(both)[: max(0, len(both) - max(_KEPT, len(new)))]:
        del both[key]
    return both
