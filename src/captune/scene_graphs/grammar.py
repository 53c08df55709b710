"""A scene-graph parser by rules: no model, no network, the same graph everywhere.

Words get parts of speech (`tagger`), runs of words become phrases (`phrases`), and one pass over a sentence's phrases
joins them: adjectives, participles and noun modifiers before a noun, and adjectives after a form of "be", are its
attributes; a preposition or a verb between two noun phrases is their relation (verbs in the dictionary form:
"man", "hold", "umbrella"). "It" and "they" stand for the subject of the sentence before. What is denied ("no people",
"without a hat") is not in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from captune.scene_graphs.graph import SceneGraph
from captune.scene_graphs.phrases import Phrase, is_measure, is_object, phrases, sentences

VERSION = "2"  # 2: a bare participle behind its noun is a verb
_EMPTY_VERBS = frozenset(("be", "have", "see", "show", "depict", "feature", "display", "include", "capture", "visible"))


class GrammarParser:
    """The parser ``grammar``."""

    signature = f"grammar-{VERSION}/wordnet-3.0"

    def check(self) -> None:
        """Do nothing: the rules need no model."""

    def parse(self, texts: Sequence[str]) -> list[SceneGraph]:
        """Return the graph of each text."""
        return [_Reader().read(text) for text in texts]


@dataclass
class _Reader:
    """The graph of one text as it grows, and what the pass over a sentence remembers."""

    objects: dict[str, None] = field(default_factory=dict)
    attributes: dict[tuple[str, str], None] = field(default_factory=dict)
    relations: dict[tuple[str, str, str], None] = field(default_factory=dict)
    topic: list[str] = field(default_factory=list)  # what "it" and "they" stand for

    def read(self, text: str) -> SceneGraph:
        for sentence in sentences(text):
            self.sentence(phrases(sentence))
        return SceneGraph(tuple(self.objects), tuple(self.attributes), tuple(self.relations))

    def sentence(self, items: list[Phrase]) -> None:
        subjects: list[str] = []  # of the clause
        last = ""  # the last object named
        pending: list[str] = []  # verb and preposition that wait for their object
        sources: list[str] = []  # the subjects of what is pending
        group: tuple[list[str], str] | None = None  # subjects and relation that "and" may continue
        opening: tuple[str, str] | None = None  # "On the left of the house" is a tree
        first: list[str] = []
        predicate = False  # after a form of "be"
        denied = measure = False
        before = Phrase("X")
        continued = False  # "a shirt, trousers and a hat"
        for i, item in enumerate(items):
            following = items[i + 1] if i + 1 < len(items) else Phrase("X")
            if item.kind == "NP":
                measure = following.text == "of" and (is_measure(item.text) or (not item.text and not item.pronoun))
                named = [] if measure else self.name(item, denied)
                if measure or not named:
                    if not measure and pending and not item.pronoun and item.text:
                        pending, sources = [], []  # "in the background": a place, no object
                elif pending and not (pending == ["of"] and not sources):
                    relation = " ".join(pending)
                    if relation == "'s":
                        self.belong(named[0], sources)
                        subjects = named if subjects == sources else subjects
                    elif sources:
                        self.relate(sources, relation, named[0])
                        group, continued = (sources, relation), False
                    elif not subjects:
                        opening = (relation, named[0])
                    pending, sources = [], []
                elif before.kind in "CK" and group and (continued or following.kind not in "PVGEBW"):
                    self.relate(group[0], group[1], named[0])
                    continued = True
                elif before.kind in "CK" and subjects and not group and not predicate:
                    subjects = [*subjects, *named]
                else:
                    subjects, group, predicate = named, None, False
                    pending, sources = [], []
                    if opening:
                        self.relate(named, *opening)
                last = named[0] if named else last
                if item.owned and named:
                    self.belong(named[0], self.topic)
                elif not item.pronoun:
                    first = first or subjects
            elif item.kind == "A" and not denied:
                for thing in subjects if predicate or not last else [last]:
                    self.attributes.update(dict.fromkeys((thing, modifier) for modifier in item.modifiers))
            elif item.kind == "P":
                if item.text == "of" and measure and before.kind == "NP":
                    continue  # a group of people: people
                if not pending:
                    of_subjects = (predicate and before.kind in "BAX") or (item.text == "'s" and not last)
                    sources = subjects if of_subjects else [last] if last else []
                    if before.kind == "K" and subjects:
                        sources = subjects
                pending = [*pending, item.text] if pending != ["of"] or before.kind != "NP" else [item.text]
            elif item.kind in "VGE":
                if item.text in _EMPTY_VERBS or following.kind == "X":
                    pending, sources = [], []
                else:
                    near = item.kind in "GE" and not predicate and before.kind == "NP"
                    sources = [last] if near and last else subjects
                    pending = [item.text]
                    if item.kind == "E" and following.kind not in ("P", "NP"):
                        self.attributes.update(dict.fromkeys((thing, item.text) for thing in sources))
            elif item.kind == "B":
                predicate = True
                pending, sources, group = [], [], None
                if item.text in ("has", "have", "had", "having"):
                    pending, sources = ["have"], subjects
            elif item.kind == "W":
                subjects = [last] if last and before.kind in ("NP", "K") else subjects
                pending, predicate = [], False
            elif item.kind == "not":
                denied = True
            if item.kind in "KCBW":
                denied = False
                if item.kind in "KC":
                    pending, sources = [], []
                if item.kind != "C" and item.text != ",":
                    continued = False
            before = item
        self.topic = first or self.topic

    def name(self, item: Phrase, denied: bool) -> list[str]:
        """The objects of a noun phrase, entered in the graph with its modifiers; none for what is denied or vague."""
        if item.pronoun:
            return self.topic
        if item.negated or denied or not is_object(item.text):
            return []
        self.objects.setdefault(item.text)
        self.attributes.update(dict.fromkeys((item.text, modifier) for modifier in item.modifiers))
        return [item.text]

    def belong(self, part: str, owners: list[str]) -> None:
        for owner in owners:
            self.relate([part], "of", owner)

    def relate(self, sources: list[str], relation: str, target: str) -> None:
        for source in sources:
            if source != target:
                self.relations.setdefault((source, relation, target))
