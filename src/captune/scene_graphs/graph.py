"""What a scene graph is, and what a parser must do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class SceneGraph:
    """What a text says: dictionary forms, each once, in the order of their first mention."""

    objects: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()  # (object, attribute)
    relations: tuple[tuple[str, str, str], ...] = ()  # (subject, relation, object)

    def attributes_of(self) -> dict[str, list[str]]:
        """Return {object: its attributes}; objects without attributes are left out."""
        attributes: dict[str, list[str]] = {}
        for thing, attribute in self.attributes:
            attributes.setdefault(thing, []).append(attribute)
        return attributes


class Parser(Protocol):
    """Turns texts into scene graphs."""

    @property
    def signature(self) -> str:
        """What the graphs depend on."""

    def check(self) -> None:
        """Raise ScorerError where what the parser needs is missing; load nothing."""

    def parse(self, texts: Sequence[str]) -> list[SceneGraph]:
        """Return the graph of each text."""


def merged(graphs: Iterable[SceneGraph]) -> SceneGraph:
    """Return one graph with everything that any of the graphs says, once."""
    parts: tuple[dict, dict, dict] = ({}, {}, {})
    for graph in graphs:
        for part, items in zip(parts, (graph.objects, graph.attributes, graph.relations), strict=True):
            part.update(dict.fromkeys(items))
    return SceneGraph(*(tuple(part) for part in parts))
