"""Storybook as a source: ``storybook:test?n=500&seed=91``, and what it offers (see `captune.data.schemes`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from captune.data.schemes import Drawer, Scheme, Statement

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

    from captune.data.questions import ExactReader, MultipleChoice


class StorybookSource(Scheme):
    """The embedded world: a program draws scenes, so the truth about every image is known."""

    name = "storybook"
    truth_column = "scene"
    held_out = "storybook:val"
    scorers = ("storybook", "clip")
    monitor_scorers = ("clip",)
    truth_scorer = "storybook"
    hallucination = "hallucinated_per_fact"
    captioners = ("storybook",)
    encoders = ("storybook-clip",)
    image_encoder = "storybook-clip"
    text_encoder = "storybook-clip"  # as good a reward as a sentence encoder here (studies/cim), ten times as fast
    question_categories = ("background", "presence", "count", "colour", "size", "sub-kind", "relation")

    def load(self, name: str, *, n: int | None = None, seed: int | None = None) -> Dataset:
        """Return `n` scenes of a split; see `captune.storybook.load`."""
        from captune.storybook import load

        return load(name, n=n, seed=seed)

    def source_of(self, image_ids: Sequence[str]) -> str | None:
        """Return the source of ids of the form split-seed-index."""
        parts = [re.fullmatch(r"([a-z]+)-(\d+)-(\d+)", image_id) for image_id in image_ids]
        first = parts[0] if parts else None
        if first is None or None in parts:
            return None
        count = max(int(part.group(3)) for part in parts if part) + 1
        return f"storybook:{first.group(1)}?n={count}&seed={first.group(2)}"

    def draw(self, truth: str, size: int) -> Image:
        """Draw a scene again, `size` x `size` pixels."""
        from captune.storybook.draw import draw
        from captune.storybook.world import Scene

        return draw(Scene.from_json(truth), size)

    def statements(self, caption: str, truth: str) -> list[Statement]:
        """Return the facts that a caption states, each true or false of the scene."""
        from captune.storybook.parser import canonical, judged
        from captune.storybook.world import Scene

        return [
            _statement(fact.type, canonical(fact.value), fact.value, true, fact.start, fact.end)
            for fact, true in judged(caption, Scene.from_json(truth))
        ]

    def facts(self, truth: str) -> list[Statement]:
        """Return every fact of the scene, each relation of two things once."""
        from captune.storybook.parser import true_facts
        from captune.storybook.world import Scene

        return [_statement(kind, value, value, True) for kind, value in true_facts(Scene.from_json(truth))]

    def questions(self, truth: str, *, hard: bool = True, seed: int = 0) -> list[MultipleChoice]:
        """Return multiple-choice questions about a scene; see `captune.storybook.questions`."""
        from captune.storybook.questions import questions
        from captune.storybook.world import Scene

        return questions(Scene.from_json(truth), hard=hard, seed=seed)

    def reader(self) -> ExactReader:
        """Return the reader that answers them from a caption by the parser."""
        from captune.storybook.reader import CaptionReader

        return CaptionReader()

    def fact_reader(self) -> Any:
        """Return a reader of the exact facts."""
        from captune.storybook.facts import FactElements

        return FactElements()

    def fuser(self, keep: str) -> Callable[[Sequence[str]], str]:
        """Return the parser and the grammar as a writer."""
        from captune.storybook.fuser import fuse

        return lambda texts: fuse(texts, keep)

    def drawer(self, seed: int = 0) -> Drawer:
        """Return the drawing program, fed by the parser; `seed` varies the background."""
        from captune.storybook.drawer import CaptionDrawer

        return CaptionDrawer(seed)


def _statement(
    kind: str, canonical: tuple[str, ...], value: tuple[str, ...], true: bool, start: int = 0, end: int = 0
) -> Statement:
    text = f"{kind} ({' '.join(word for word in value if word)})"
    return Statement(start, end, text, true, (kind, canonical), kind)


SOURCE = StorybookSource()
