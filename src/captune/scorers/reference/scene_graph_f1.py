"""Precision, recall and F1 of a caption's objects, attributes and relations (SC-Captioner, Zhang et al., ICCV 2025)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.data.readers import nfc
from captune.errors import ScorerError
from captune.scene_graphs import SceneGraph, merged
from captune.scene_graphs.wordnet import wordnet
from captune.scorers import safe_ratio
from captune.scorers._support.detections import by_image, look_up
from captune.scorers._support.objects import read_by_image
from captune.scorers._support.scene_graphs import GraphScorer
from captune.utils.hashing import fingerprint

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)
Truth = Mapping[str, Sequence[str]] | Sequence[str]  # of one image: {object: attributes}, or objects


class _Elements(GraphScorer):
    """What the three have in common: rows hold precision, recall and F1, each beside 1 where it is defined."""

    source = "Zhang et al., ICCV 2025 (SC-Captioner)"
    element: ClassVar[str]
    example = ""  # of a file with the truth; none: the scorer takes no file

    @dataclass(frozen=True)
    class Settings(GraphScorer.Settings):
        """What a spec sets."""

        file: Annotated[str, Field(description="the truth about the images, JSON; default: the references alone")] = ""

    def configure(self) -> None:
        """Take the file with the truth, if the spec names one."""
        file = getattr(self.settings, "file", "")
        self.file = Path(file).expanduser() if file else None
        if self.file:
            self.required_columns, self.no_interval = ("references", "image_id"), (f"{self.name}_left_out",)

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        super().check()
        if self.file and not self.file.is_file():
            raise ScorerError(f"{self.name}: there is no file {self.file}; it holds {self.example}")

    @cached_property
    def truth(self) -> dict[str, Truth]:
        """What the file says, by image id."""
        assert self.file is not None
        self.check()
        return by_image({nfc(image_id): said for image_id, said in _read(self.file, self.example).items()})

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        digest = fingerprint(self.file.read_bytes()) if self.file else ""
        return super().signature + (f"|truth:{self.file.name}@{digest}" if self.file else "|truth:references")

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]],
             image_id: Sequence[str] | None = None, **columns: Any) -> np.ndarray:  # fmt: skip
        """(N, 7): precision, recall, F1, whether each is defined, whether the file lacks the image."""
        graphs, own = self.graphs(captions, references)
        known = [
            None if self.file is None or image_id is None else look_up(self.truth, i) for i in image_id or captions
        ]
        lacking = sum(entry is None for entry in known) if self.file else 0
        if lacking:
            assert image_id is not None
            first = next(str(i) for i, entry in zip(image_id, known, strict=True) if entry is None)
            said = f"{self.file} says nothing of {lacking} of {len(captions)} images, such as {first!r}"
            if lacking == len(captions) and lacking > 1:
                raise ScorerError(f"{self.name}: {said}; its ids are like {next(iter(self.truth), 'none')!r}")
            _log.warning("%s: %s: they are left out of precision and F1", self.name, said)
        rows = np.zeros((len(captions), 7))
        for row, graph, others, extra in zip(rows, graphs, own, known, strict=True):
            truth = others[0] if self.published else merged(others)
            row[6] = left_out = self.file is not None and extra is None
            if self.published and not (graph.attributes and truth.attributes):
                continue
            precision, recall = self.compare(graph, truth, extra)
            if left_out:
                precision = None
            f1 = None if precision is None or recall is None else self.matcher.f1(precision, recall)
            figures = (precision, recall, f1)
            row[:3] = [0.0 if figure is None else figure for figure in figures]
            row[3:6] = [figure is not None for figure in figures]
        return rows

    def compare(self, graph: SceneGraph, truth: SceneGraph, extra: Any) -> tuple[float | None, float | None]:
        """Precision and recall; None where there is no truth to compare with."""
        raise NotImplementedError

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        precision, recall, f1 = np.moveaxis(safe_ratio(totals[..., :3], totals[..., 3:6]), -1, 0)
        figures = {f"{self.element}_f1": f1, f"{self.element}_precision": precision, f"{self.element}_recall": recall}
        return figures | ({f"{self.element}_left_out": totals[..., 6]} if self.file else {})

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """F1; nan where it is not defined."""
        return np.where(rows[:, 5] > 0, rows[:, 2], np.nan)


class Objects(_Elements):
    """Objects of a caption: F1, precision and recall against the objects of its references or of a file.

        recall    = what of the references' objects the caption has
        precision = what of the caption's objects is among the references' objects or in the file's list

    matched as CAPTURE matches (equal, synonyms, largest cosine), averaged over images; several references count as one
    text. Objects are those of scene graphs without CAPTURE's stop words.

        objects                         the references are the whole truth: detail they lack costs precision
        objects:objects.jsonl           {image id: [objects]}, JSON or line by line, widens precision, as published
        objects:FILE?parser=factual&encoder=MODEL&compat=published          see CAPTURE for the settings

    A caption without objects has precision and recall 0. Images without any truth are left out of the means. Images
    that the file lacks are left out of precision and F1, counted in `objects_left_out`, and said. The file's plurals
    are put into the singular.

    `compat=published`: matching as in CAPTURE's `compat=published`; the file's words as they are; of several references
    the first; and no image counts whose caption or reference has no *attribute*, which flatters terse captions: on
    COCO-LN500 with the GPT list, of the right captions cut to their first sentence or clause 187 of 500 still count,
    and F1 rises from 0.365 to 0.506; that of other images' whole captions rises from 0.546 to 0.587. On the longer
    captions of DOCCI-500 it is 458 of 500, 0.386 to 0.395, and 0.468 to 0.514.
    """

    name = element = "objects"
    positional = ("file",)
    usage = "objects:truth.json?compat=published"
    primary = "objects_f1"
    higher_is_better: ClassVar = {"objects_f1": True, "objects_precision": True, "objects_recall": True}
    labels: ClassVar = {"objects_f1": "object F1"}
    example = '{"image id": ["object", ...]}'

    def compare(self, graph: SceneGraph, truth: SceneGraph, extra: Any) -> tuple[float | None, float | None]:
        """Return precision and recall; None where there is no truth to compare with."""
        listed = [name if self.published else _singular(name) for name in extra or ()]
        wide = list(dict.fromkeys([*truth.objects, *listed]))
        self.embed([*graph.objects, *wide])
        ours, _ = self.matcher.match(graph.objects, wide)
        _, theirs = self.matcher.match(graph.objects, truth.objects)
        return (self.matcher.ratio(ours, len(graph.objects)) if wide else None,
                self.matcher.ratio(theirs, len(truth.objects)) if truth.objects else None)  # fmt: skip


class Attributes(_Elements):
    """Attributes of a caption's objects: F1, precision and recall against its references or a file.

        recall    = sum_o s(o, o') sum_{a of o} max_{a' of o'} cos(a, a')  /  sum_o s(o, o') |attributes of o|

    over the objects o of the references that have attributes, where o' is the most similar object of the caption that
    has some, and s the cosine of sentence embeddings, so that an object without a counterpart hardly counts.
    Precision is the same with the caption's objects against the file's, or the references' where no file is given.
    Averaged over images; several references count as one text.

        attributes                      the references are the whole truth
        attributes:attributes.json      {image id: {object: [attributes]}}: the truth of precision, as published
        attributes:FILE?parser=factual&encoder=MODEL&compat=published       see CAPTURE for the settings

    A caption without attributes has precision and recall 0. Images without any truth are left out of the means. Images
    that the file lacks are left out of precision and F1, counted in `attributes_left_out`, and said. Negative cosines
    of objects weigh 0.

    `compat=published`: no image counts whose caption or reference has no attribute, which flatters terse captions; of
    several references the first; negative weights; 1e-6 in denominators. With the GPT attributes, F1 of the right
    captions cut to their first sentence or clause rises from 0.332 to 0.756 on COCO-LN500, where 187 of 500 still
    count, and from 0.673 to 0.735 on DOCCI-500 (458 of 500).
    """

    name = element = "attributes"
    positional = ("file",)
    usage = "attributes:truth.json?compat=published"
    primary = "attributes_f1"
    higher_is_better: ClassVar = {"attributes_f1": True, "attributes_precision": True, "attributes_recall": True}
    labels: ClassVar = {"attributes_f1": "attribute F1"}
    example = '{"image id": {"object": ["attribute", ...]}}'

    def compare(self, graph: SceneGraph, truth: SceneGraph, extra: Any) -> tuple[float | None, float | None]:
        """Return precision and recall; None where there is no truth to compare with."""
        ours, theirs = graph.attributes_of(), truth.attributes_of()
        wide = {key: list(values) for key, values in extra.items() if values} if extra is not None else theirs
        self.embed([word for part in (ours, theirs, wide) for key, values in part.items() for word in (key, *values)])
        return self._share(ours, wide) if wide else None, self._share(theirs, ours) if theirs else None

    def _share(self, of: Mapping[str, Sequence[str]], among: Mapping[str, Sequence[str]]) -> float:
        """How much of the attributes of some objects is among the attributes of others."""
        if not of or not among:
            return 0.0
        there = list(among) if self.published else sorted(among)
        cosines = self.matcher.cosines(list(of), there)
        found = weight = 0.0
        for values, own in zip(of.values(), cosines, strict=True):
            similarity = float(own.max()) if self.published else max(0.0, float(own.max()))
            best = self.matcher.cosines(list(values), list(among[there[int(own.argmax())]])).max(axis=1)
            found += similarity * float(best.sum())
            weight += similarity * len(values)
        return self.matcher.ratio(found, weight)


class Relations(_Elements):
    """Relations between a caption's objects: F1, precision and recall against those of its references.

    A relation (subject, relation, object) is matched as in CAPTURE: equal, or all three equal or synonyms, or by the
    largest cosine of its words. Averaged over images; several references count as one text. SC-Captioner and CIM report
    questions about relations instead: that is `relation_qa`. Settings: "relations:?parser=factual&compat=published".

    A caption without relations has precision and recall 0; images whose references have none are left out.
    """

    name = element = "relations"
    usage = "relations:?compat=published"
    Settings = GraphScorer.Settings  # type: ignore[assignment]
    primary = "relations_f1"
    higher_is_better: ClassVar = {"relations_f1": True, "relations_precision": True, "relations_recall": True}
    labels: ClassVar = {"relations_f1": "relation F1"}

    def compare(self, graph: SceneGraph, truth: SceneGraph, extra: Any) -> tuple[float | None, float | None]:
        """Return precision and recall; None where there is no truth to compare with."""
        self.embed([" ".join(relation) for relation in (*graph.relations, *truth.relations)])
        precision, recall, _ = self.matcher.scores(graph.relations, truth.relations)
        return (precision, recall) if truth.relations else (None, None)


def _singular(name: str) -> str:
    words = name.lower().split()
    return " ".join([*words[:-1], wordnet().lemma(words[-1], "n")]) if words else name


def _read(file: Path, example: str) -> dict[str, Truth]:
    """{image id: truth} as one JSON object, or as one per line."""
    content = read_by_image(file)
    kind = dict if ": {" in example else list
    if not isinstance(content, dict) or not all(isinstance(value, kind) for value in content.values()):
        raise ScorerError(f"{file} is not of the form {example}")
    return content
