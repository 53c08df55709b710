"""Scene graphs of captions: objects, their attributes and the relations between them, and the parsers that find them.

load_parser("grammar").parse(["A red ball left of a dog."])
[SceneGraph(objects=("ball", "dog"), attributes=(("ball", "red"),), relations=(("ball", "left of", "dog"),))]
"""

from __future__ import annotations

from captune.errors import SpecError
from captune.scene_graphs.graph import Parser, SceneGraph, merged
from captune.utils.registry import nearest

__all__ = ["PARSERS", "Parser", "SceneGraph", "load_parser", "merged"]

PARSERS = ("grammar", "factual")


def load_parser(spec: str = "grammar", *, device: str | None = None) -> Parser:
    """Return a parser by its name.

    Args:
        spec: ``grammar`` (rules over WordNet, offline), ``factual`` (FACTUAL's flan-t5) or ``factual:MODEL``.
        device: of the model.

    Raises:
        SpecError: for another name.
    """
    name, _, argument = spec.partition(":")
    if name == "factual":
        from captune.scene_graphs.factual import FactualParser

        return FactualParser(argument or None, device=device)
    if name == "grammar" and not argument:
        from captune.scene_graphs.grammar import GrammarParser

        return GrammarParser()
    raise SpecError(f"{nearest(spec, PARSERS, 'scene-graph parser')}; factual:MODEL names another model")
