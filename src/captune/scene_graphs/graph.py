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
        """object -> its attributes; objects without attributes are not in it."""
        found: dict[str, list[str]] = {}
        for thing, attribute in self.attributes:
            found.setdefault(thing, []).append(attribute)
        return found


class Parser(Protocol):
    """What turns texts into scene graphs."""

    @property
    def signature(self) -> str: ...

    def check(self) -> None:
        """Raises ScorerError where what it runs on is not there; loads nothing."""

    def parse(self, texts: Sequence[str]) -> list[SceneGraph]: ...


def merged(graphs: Iterable[SceneGraph]) -> SceneGraph:
    """One graph with everything that any of the graphs says, once."""
    parts: tuple[dict, dict, dict] = ({}, {}, {})
    for graph in graphs:
        for part, own in zip(parts, (graph.objects, graph.attributes, graph.relations), strict=True):
            part.update(dict.fromkeys(own))
    return SceneGraph(*(tuple(part) for part in parts))
