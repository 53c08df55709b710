"""The exact facts of captions and scenes as scene graphs: what SC-Captioner rewards on storybook images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captune.scene_graphs import SceneGraph
from captune.storybook import parser
from captune.storybook.world import Scene

_KINDS = {"background": "object", "size": "attribute", "subkind": "attribute"}  # a fact's type -> its part of a graph


class FactElements:
    """Reads the facts that storybook captions state (`captune.storybook.parser`); a background is an object."""

    needs: tuple[str, ...] = ("scene",)
    punished: tuple[str, ...] = ("object", "attribute", "relation")

    def graphs(self, captions: Sequence[str]) -> list[SceneGraph]:
        """Return the graph of each caption."""
        return [_graph([(fact.type, fact.value) for fact in parser.parse(caption)]) for caption in captions]

    def truth(self, scene: Sequence[str], **columns: Any) -> list[SceneGraph]:
        """Return the graph of all that is true of each scene, given as JSON."""
        return [_graph(parser.true_facts(Scene.from_json(text))) for text in scene]

    def support(self, element: Any, truth: Sequence[Any]) -> float:
        """Return 1 for an element that is true, else 0."""
        return float(element in truth)


def _graph(facts: Sequence[tuple[str, tuple[str, ...]]]) -> SceneGraph:
    parts: dict[str, dict[Any, None]] = {"object": {}, "attribute": {}, "relation": {}}
    for kind, value in facts:
        value = parser.canonical(value)
        parts[_KINDS.get(kind, kind)][value if len(value) > 1 else value[0]] = None
    return SceneGraph(*(tuple(part) for part in parts.values()))
