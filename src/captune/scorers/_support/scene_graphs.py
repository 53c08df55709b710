"""What every scorer of scene graphs has in common: the parser, the encoder, the matcher and what is kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from captune import scene_graphs
from captune.scene_graphs import Parser, SceneGraph, load_parser
from captune.scene_graphs.matching import Matcher, text
from captune.scorers import check_references
from captune.scorers._support.encoders import SentenceScorer
from captune.utils.memory import remembers

if TYPE_CHECKING:
    from captune.models.encoders.sentence import TextEncoder

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_KEPT = 50_000  # graphs, and vectors of phrases, that are kept: a reward meets the same references again and again
_STOP_WORDS = Path(scene_graphs.__file__).with_name("capture_stop_words.txt")


class GraphScorer(SentenceScorer):
    """A scorer that compares scene graphs.

    Args:
        argument: settings, "?parser=factual&encoder=MODEL&compat=published".
        parser: "grammar", "factual" or "factual:FOLDER", or a parser.
        encoder: a sentence-transformers model's folder or hub name, or a TextEncoder.
        device: of the models; default: cuda where there is one.
    """

    required_columns: tuple[str, ...] = ("references",)
    cost = "5 ms, plus what a model takes as parser"
    cached = True

    usage = "capture:?compat=published"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        parser: Annotated[str, Field(description="grammar, factual or factual:FOLDER; default: grammar")] = ""
        encoder: Annotated[
            str, Field(description="a sentence-transformers model's folder or hub name; default: all-MiniLM-L6-v2")
        ] = ""
        compat: Annotated[
            Literal["none", "published"], Field(description="published: with the quirks of the authors' program")
        ] = "none"

    def __init__(
        self,
        argument: str | None = None,
        *,
        parser: str | Parser = "grammar",
        encoder: str | TextEncoder = DEFAULT_ENCODER,
        device: str | None = None,
    ) -> None:
        self.settings = self.read(argument)
        self.published = self.settings.compat == "published"
        spec, encoder = self.settings.parser or parser, self.settings.encoder or encoder
        self._model, self._encoder = (encoder, None) if isinstance(encoder, str) else ("", encoder)
        self.parser: Parser = load_parser(spec, device=device) if isinstance(spec, str) else spec
        self._device = device
        self.matcher = Matcher(self._encode, published=self.published)
        self._graphs: dict[str, SceneGraph] = {}
        self._vectors: dict[str, np.ndarray] = {}
        self.configure()
        remembers(self)

    def clear(self) -> None:
        """Forget the graphs and vectors of earlier texts."""
        self._graphs, self._vectors = {}, {}

    def configure(self) -> None:
        """Take what a subclass's settings add; nothing here."""

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        self.parser.check()
        super().check()

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
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
