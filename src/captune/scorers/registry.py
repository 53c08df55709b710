"""The scorers by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from captune.errors import UnknownScorer
from captune.scorers.base import Cache, Scorer
from captune.scorers.expression import Expression, is_expression, parse

#: name -> "module:class". Imported when asked for, so that BLEU does not load torch.
SCORERS: dict[str, str] = {
    "bleu": "captune.scorers.reference.bleu:Bleu",
    "rouge": "captune.scorers.reference.rouge:Rouge",
    "cider": "captune.scorers.reference.cider:Cider",
    "clip": "captune.scorers.image.clip:ClipScore",
    "vizer": "captune.scorers.image.vizer_mapper:ViZerScorer",
    "storybook": "captune.storybook.scorer:StorybookScorer",
    "health": "captune.scorers.text.health:Health",
    "length": "captune.scorers.text.health:Length",
    "repetition": "captune.scorers.text.health:Repetition",
    "bias": "captune.scorers.image.bias:Bias",
    "meteor": "captune.scorers.reference.meteor:Meteor",
    "spice": "captune.scorers.reference.spice:Spice",
    "bertscore": "captune.scorers.reference.bertscore:BertScore",
    "sbert": "captune.scorers.reference.sentence_similarity:SbertSimilarity",
    "capture": "captune.scorers.reference.capture:Capture",
    "objects": "captune.scorers.reference.scene_graph_f1:Objects",
    "attributes": "captune.scorers.reference.scene_graph_f1:Attributes",
    "relations": "captune.scorers.reference.scene_graph_f1:Relations",
    "relation_qa": "captune.scorers.questions.relation_qa:RelationQA",
    "species": "captune.scorers.questions.classification:Species",
    "judge": "captune.scorers.questions.vlm_judge:Judge",
    "chair": "captune.scorers.reference.chair:Chair",
    "diversity": "captune.scorers.text.diversity:Diversity",
    "self_bleu": "captune.scorers.text.diversity:SelfBleu",
    "self_retrieval": "captune.scorers.image.self_retrieval:SelfRetrieval",
    "cycle": "captune.scorers.image.cycle:Cycle",
    "grc": "captune.scorers.image.retrieval:GRC",
    "qir": "captune.scorers.image.retrieval:QIR",
}


def scorer_class(name: str) -> type[Scorer]:
    """The class registered under `name` (no argument); raises UnknownScorer with the nearest names."""
    if name not in SCORERS:
        near = difflib.get_close_matches(name.lower(), SCORERS, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UnknownScorer(f"no scorer is called {name!r}. {hint}The scorers are {', '.join(SCORERS)}.")
    module, _, attribute = SCORERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def direction(spec: str | Scorer, figure: str | None = None) -> bool | None:
    """Whether more of a scorer's figure is better. Reads what classes declare; builds and loads nothing.

    Args:
        spec: a scorer, its spec, or a weighted sum of scorers.
        figure: default: the primary one, and for a weighted sum its only one.

    Returns:
        None where neither is better, or where nobody declares it.
    """
    spec = spec if isinstance(spec, str) else spec.name
    if is_expression(spec):
        terms = [(direction(part), weight) for part, weight in parse(spec).items()]
        ways = {better == (weight > 0) for better, weight in terms if better is not None and weight}
        return ways.pop() if len(ways) == 1 else None
    cls = _class_of(spec)
    if cls is None:
        return None
    figure = cls.primary if figure is None else figure
    return next((better for key, better in cls.higher_is_better.items() if _stands_for(key, figure)), None)


def label(spec: str | Scorer, figure: str) -> str:
    """Return a figure's name in tables; for what is not declared, the key without underscores."""
    spec = spec if isinstance(spec, str) else spec.name
    if is_expression(spec):
        return figure
    declared = cls.labels if (cls := _class_of(spec)) is not None else {}
    return next((text for key, text in declared.items() if _stands_for(key, figure)), figure.replace("_", " "))


def _class_of(spec: str) -> type[Scorer] | None:
    """The class behind a spec; None for a scorer that is not known (a figure of another program)."""
    name = spec.strip().partition(":")[0]
    return scorer_class(name) if name in SCORERS else None


def _stands_for(key: str, figure: str) -> bool:
    return key == figure or fnmatchcase(figure, key)


def load_scorer(spec: str, *, cache: Cache | None = None, **context: Any) -> Scorer:
    """ "cider", "clip:<folder>", "cider + 0.5*rouge" ... -> a scorer.

    :param cache: where the rows of costly scorers are kept.
    :param context: what some scorers can use (device, df ...); each takes what its constructor declares.
    """
    if is_expression(spec):
        return load_reward(spec, cache=cache, **context)
    name, _, argument = spec.strip().partition(":")
    cls = scorer_class(name)
    declared = inspect.signature(cls).parameters
    scorer = cls(argument or None, **{key: value for key, value in context.items() if key in declared})
    scorer.name, scorer.cache = spec.strip(), cache
    return scorer


def load_reward(spec: str, **context: Any) -> Expression:
    """Like `load_scorer`, but one scorer is an expression of one part too: a reward has parts.

    Args:
        spec: one scorer or a weighted sum of scorers.
        context: see `load_scorer`.
    """
    text = spec.strip()
    return Expression(text, [(load_scorer(part, **context), weight) for part, weight in parse(text).items()])


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
        About(
            name,
            (inspect.getdoc(cls) or "").partition("\n")[0],
            cls.required_columns,
            cls.optional_columns,
            cls.source,
            cls.cost,
        )
        for name, cls in classes.items()
    ]
