"""Scorers judge captions. One shape serves as a metric and as a reward.

A scorer turns captions (with their images or references) into rows (N, D) of sufficient statistics. A corpus figure is
a function of the rows' totals, so that resampling is a matrix product, and one column, or a function of the row, is the
score of each caption. Called with TRL's reward signature, a scorer answers with one number per completion:

    scorer = load_scorer("cider")
    rows = scorer.rows(captions, references=references)
    scorer.corpus(rows)                        # {"cider": 0.93}
    scorer.per_caption(rows)                   # (N,)
    trl.GRPOTrainer(..., reward_funcs=[scorer])

To add one: a module with a subclass of `Scorer`, and a line in `SCORERS`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import unquote_plus

import numpy as np

from captune.scorers.statistics import Comparison, Result, evaluate, holm, paired

if TYPE_CHECKING:
    from captune.scorers.cache import Cache

__all__ = [
    "SCORERS", "About", "Comparison", "MissingColumn", "Result", "Scorer", "ScorerError", "UnknownScorer",
    "check_needs", "columns_for", "completion_text", "describe", "evaluate", "holm", "load_scorer", "paired",
    "read_argument", "scorer_class", "split_specs",
]  # fmt: skip

#: name -> "module:class". Imported when asked for, so that BLEU does not load torch.
SCORERS: dict[str, str] = {
    "bleu": "captune.scorers.bleu:Bleu",
    "rouge": "captune.scorers.rouge:Rouge",
    "cider": "captune.scorers.cider:Cider",
    "clip": "captune.scorers.clip:ClipScore",
    "vizer": "captune.scorers.vizer:ViZerScorer",
    "storybook": "captune.scorers.storybook:StorybookScorer",
    "health": "captune.scorers.health:Health",
    "length": "captune.scorers.health:Length",
    "repetition": "captune.scorers.health:Repetition",
    "bias": "captune.scorers.bias:Bias",
    "meteor": "captune.scorers.meteor:Meteor",
    "spice": "captune.scorers.spice:Spice",
    "bertscore": "captune.scorers.bertscore:BertScore",
    "sbert": "captune.scorers.sbert:SbertSimilarity",
    "capture": "captune.scorers.capture:Capture",
    "objects": "captune.scorers.elements:Objects",
    "attributes": "captune.scorers.elements:Attributes",
    "relations": "captune.scorers.elements:Relations",
    "relation_qa": "captune.scorers.relation_qa:RelationQA",
    "species": "captune.scorers.species:Species",
    "judge": "captune.scorers.judge:Judge",
    "chair": "captune.scorers.chair:Chair",
    "diversity": "captune.scorers.diversity:Diversity",
    "self_bleu": "captune.scorers.diversity:SelfBleu",
    "self_retrieval": "captune.scorers.self_retrieval:SelfRetrieval",
    "cycle": "captune.scorers.cycle:Cycle",
    "grc": "captune.scorers.retrieval:GRC",
    "qir": "captune.scorers.retrieval:QIR",
}


class UnknownScorer(ValueError):
    """A scorer's name that the registry does not hold; the message has the nearest names."""


class MissingColumn(ValueError):
    """A column that a scorer needs and the data lack; raised before any work starts."""


class ScorerError(RuntimeError):
    """What a scorer runs on is missing or failed: Java, a model, a server, an answer that is none.

    The message is one sentence that says what and how to get it. An evaluation goes on with the other scorers.
    """


class Scorer:
    """What judges captions. Subclasses define `rows`; most need nothing else but `from_totals` and `signature`.

    A subclass's constructor takes the text after the colon of its spec ("clip:folder") or None, and keyword context.
    """

    name: str = ""  # the registry's name; `load_scorer` replaces it by the whole spec where that has an argument
    source: ClassVar[str] = ""  # where it was published: "Vedantam et al., CVPR 2015"
    cost: ClassVar[str] = ""  # roughly, per caption: "0.1 ms", "one pass of the encoder", "one answer of the judge"
    needs: ClassVar[tuple[str, ...]] = ()  # columns without which it cannot work: image, references, scene, image_id
    uses: ClassVar[tuple[str, ...]] = ()  # columns that add figures where they are there
    cached: bool = False  # costly rows that depend on nothing but caption, columns and signature are kept
    cache: Cache | None = None  # where they are kept
    no_interval: ClassVar[tuple[str, ...]] = ()  # figures of the whole corpus that resampling says nothing about

    def __init__(self, argument: str | None = None) -> None:
        if argument is not None:
            raise ValueError(
                f"scorer {self.name!r} takes no argument; write {self.name!r}, not '{self.name}:{argument}'"
            )

    @property
    def identity(self) -> str:
        """The signature without what the captions decide: what a kept row depends on beside its own entries."""
        return "|".join(part for part in self.signature.split("|") if not part.startswith("truncated:"))

    @property
    def sums(self) -> bool:
        """Whether the corpus figures are functions of the rows' totals."""
        return type(self).corpus is Scorer.corpus

    def check(self) -> None:
        """Raises ScorerError where what it runs on is not there. Costs nothing: it loads and downloads nothing."""

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, D) float64: what each caption adds to the corpus figures."""
        raise NotImplementedError

    def measure(self, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """`rows` with those of the columns that it reads, checked; from the cache where there is one."""
        chosen = columns_for(self, columns, len(captions))
        if self.cache is not None and self.cached:
            return self.cache.rows(self, captions, chosen)
        return self.rows(captions, **chosen)

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Corpus figures, the primary one first, from the sums over n rows.

        :param totals: (..., D); every figure has the leading shape. Many resamples come at once.
        """
        return {self.name.partition(":")[0]: totals[..., 0] / n}

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        """Corpus figures, the primary one first. A figure that no function of sums can give: override this method,
        and intervals are found by calling it on resampled rows, more slowly."""
        if not len(rows):
            raise ValueError(f"scorer {self.name}: there is no caption to score")
        return {key: float(value) for key, value in self.from_totals(rows.sum(axis=0), len(rows)).items()}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """(N,): the primary figure of each caption by itself; also the reward."""
        return rows[:, 0]

    @property
    def signature(self) -> str:
        """Everything that a reader needs to compare the figure with another: settings, model, version."""
        return self.name

    @property
    def __name__(self) -> str:  # TRL logs a reward function under this name
        return self.name

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        prompts: Any = None,
        image: Any = None,
        **columns: Any,
    ) -> list[float]:
        """The reward of each completion (text, or a chat's messages), in TRL's signature."""
        if image is None and columns.get("images") is not None:  # TRL's other name: a list of images per row
            image = [images[0] if images else None for images in columns["images"]]
        given = {"image": image, **columns}
        known = ("image", "references", "image_id", "scene", *self.needs, *self.uses)  # of all that TRL sends
        given = {key: given[key] for key in known if given.get(key) is not None}
        captions = [completion_text(c) for c in completions]
        chosen = columns_for(self, given, len(captions))
        return [float(score) for score in self.per_caption(self.rows(captions, **chosen))]


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or a list of messages whose content is a string or a list of parts."""
    if isinstance(completion, str):
        return completion
    texts = []
    for message in completion:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [p["text"] for p in content if p.get("type") == "text"]
        texts.extend(parts)
    return " ".join(texts)


def columns_for(scorer: Scorer, columns: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The columns that the scorer reads, checked: they are there and have one entry per caption."""
    missing = [need for need in scorer.needs if need not in columns]
    if missing:
        have = ", ".join(columns) or "nothing besides the captions"
        raise MissingColumn(
            f"scorer {scorer.name!r} needs {' and '.join(missing)}; the data have {have}. "
            f"Give a source with {' and '.join(missing)}, or leave {scorer.name!r} out."
        )
    chosen = {name: columns[name] for name in (*scorer.needs, *scorer.uses) if name in columns}
    for name, column in chosen.items():
        if len(column) != n:
            raise ValueError(f"scorer {scorer.name!r}: {n} captions but {len(column)} entries in column {name!r}")
    return chosen


def check_needs(scorers: Iterable[Scorer], columns: Mapping[str, Any], n: int) -> None:
    """Raises MissingColumn for the first scorer whose needs the columns do not meet. Costs nothing: call it first."""
    for scorer in scorers:
        columns_for(scorer, columns, n)


def scorer_class(name: str) -> type[Scorer]:
    """The class registered under `name` (no argument); raises UnknownScorer with the nearest names."""
    if name not in SCORERS:
        near = difflib.get_close_matches(name.lower(), SCORERS, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UnknownScorer(f"no scorer is called {name!r}. {hint}The scorers are {', '.join(SCORERS)}.")
    module, _, attribute = SCORERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_scorer(spec: str, *, cache: Cache | None = None, **context: Any) -> Scorer:
    """ "cider", "clip:<folder>", "cider + 0.5*rouge" ... -> a scorer.

    :param cache: where the rows of costly scorers are kept.
    :param context: what some scorers can use (device, df ...); each takes what its constructor declares.
    """
    from captune.scorers.expression import Expression, is_expression

    if is_expression(spec):
        return Expression(spec.strip(), cache=cache, **context)
    name, _, argument = spec.strip().partition(":")
    cls = scorer_class(name)
    declared = inspect.signature(cls).parameters
    scorer = cls(argument or None, **{key: value for key, value in context.items() if key in declared})
    scorer.name, scorer.cache = spec.strip(), cache
    return scorer


def read_argument(name: str, argument: str | None, known: Sequence[str], example: str) -> tuple[str, dict[str, str]]:
    """ "model?w=1&prefix=" -> ("model", {"w": "1", "prefix": ""}): what a scorer's constructor is given, as texts.

    :raises ValueError: for a setting that is none of the `known`, and for what is no `key=value`.
    """
    head, _, query = (argument or "").partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    wrong = next((key for key, equals, _ in pairs if key not in known or not equals), None)
    if wrong is not None:
        raise ValueError(f"scorer {name!r} has no setting {wrong!r}; it has {', '.join(known)}, as in {example!r}")
    return head, {key: unquote_plus(value) for key, _, value in pairs}


def split_specs(text: str) -> list[str]:
    """ "bleu,self_retrieval:?k=1,5" -> ["bleu", "self_retrieval:?k=1,5"]: a number alone is no scorer, but the end of
    the argument before it."""
    specs: list[str] = []
    for piece in text.split(","):
        if specs and re.fullmatch(r"\s*[-+]?[\d.]+\s*", piece):
            specs[-1] += f",{piece}"
        else:
            specs.append(piece)
    return [spec.strip() for spec in specs if spec.strip()]


class About(NamedTuple):
    """What a list of scorers says of one: its class in words."""

    name: str
    measures: str  # the first line of the class's docstring
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    source: str
    cost: str


def describe() -> list[About]:
    """Every scorer of the registry."""
    classes = {name: scorer_class(name) for name in SCORERS}
    return [
        About(name, (inspect.getdoc(cls) or "").partition("\n")[0], cls.needs, cls.uses, cls.source, cls.cost)
        for name, cls in classes.items()
    ]
