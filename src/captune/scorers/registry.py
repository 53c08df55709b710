"""The scorers by name, from captune, from other packages, and from files.

A package adds scorers through an entry point; `storybook` comes in through this door too::

    [project.entry-points."captune.scorers"]
    my_scorer = "my_package:MyScorer"
"""

from __future__ import annotations

import inspect
import re
import warnings
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from captune.errors import CaptuneError, ExpressionError, UnknownScorer, UsageError, redact
from captune.scorers.base import Cache, Scorer
from captune.scorers.expression import Expression, is_expression, parse
from captune.scorers.files import FILE, loaded_from_file, scorer_from_file
from captune.utils.registry import Registry
from captune.utils.spec import Setting, settings_of

#: What the folders of `captune.scorers` hold, in the order of listings.
GROUPS = {
    "reference": "compare a caption with references",
    "image": "compare a caption with its image",
    "questions": "ask a model about a caption",
    "text": "look at the caption alone",
    "other": "from the embedded world and from other packages",
}
#: Imported when asked for, so that BLEU does not load torch.
SCORERS = Registry(
    "captune.scorers",
    "scorer",
    {
        "bleu": "captune.scorers.reference.bleu:Bleu",
        "rouge": "captune.scorers.reference.rouge:Rouge",
        "cider": "captune.scorers.reference.cider:Cider",
        "meteor": "captune.scorers.reference.meteor:Meteor",
        "spice": "captune.scorers.reference.spice:Spice",
        "bertscore": "captune.scorers.reference.bertscore:BertScore",
        "sbert": "captune.scorers.reference.sentence_similarity:SbertSimilarity",
        "capture": "captune.scorers.reference.capture:Capture",
        "objects": "captune.scorers.reference.scene_graph_f1:Objects",
        "attributes": "captune.scorers.reference.scene_graph_f1:Attributes",
        "relations": "captune.scorers.reference.scene_graph_f1:Relations",
        "chair": "captune.scorers.reference.chair:Chair",
        "clip": "captune.scorers.image.clip:ClipScore",
        "reward_model": "captune.scorers.image.reward_model:RewardModelScorer",
        "self_retrieval": "captune.scorers.image.self_retrieval:SelfRetrieval",
        "grc": "captune.scorers.image.retrieval:GRC",
        "qir": "captune.scorers.image.retrieval:QIR",
        "cycle": "captune.scorers.image.cycle:Cycle",
        "vqa": "captune.scorers.image.vqa:VQAScore",
        "pmi": "captune.scorers.image.pmi:PMI",
        "vizer": "captune.scorers.image.vizer_mapper:ViZerScorer",
        "bias": "captune.scorers.image.bias:Bias",
        "detected": "captune.scorers.image.detected:Detected",
        "qa": "captune.scorers.questions.qa:QA",
        "caption_qa": "captune.scorers.questions.caption_qa:CaptionQA",
        "relation_qa": "captune.scorers.questions.relation_qa:RelationQA",
        "species": "captune.scorers.questions.classification:Species",
        "judge": "captune.scorers.questions.vlm_judge:Judge",
        "nli": "captune.scorers.questions.nli:Nli",
        "dnli": "captune.scorers.questions.dnli:Dnli",
        "dcscore": "captune.scorers.questions.dcscore:DCScore",
        "openchair": "captune.scorers.questions.openchair:OpenChair",
        "preference": "captune.scorers.questions.preference:Preference",
        "health": "captune.scorers.text.health:Health",
        "length": "captune.scorers.text.health:Length",
        "repetition": "captune.scorers.text.health:Repetition",
        "diversity": "captune.scorers.text.diversity:Diversity",
        "consensus": "captune.scorers.text.consensus:Consensus",
        "self_bleu": "captune.scorers.text.diversity:SelfBleu",
    },
    error=UnknownScorer,
)


def scorer_class(spec: str) -> type[Scorer]:
    """Return the class behind a scorer's name, spec or `file.py:name`, whose code is run.

    Raises:
        UnknownScorer: with the nearest names.
    """
    if match := FILE.fullmatch(spec.strip()):
        return scorer_from_file(match["file"], match["attribute"])
    return SCORERS[spec.strip().partition(":")[0]]


def known(spec: str) -> None:
    """Check the names in a spec or a weighted sum; imports none of the scorers and runs no file.

    Raises:
        UnknownScorer: with the nearest names.
        ExpressionError: for a sum that cannot be read.
    """
    for part in parse(spec) if is_expression(spec) else [spec]:
        if not FILE.fullmatch(part.strip()):
            SCORERS.canonical(part.strip().partition(":")[0])


def group_of(name: str) -> str:
    """Return a scorer's group, a key of `GROUPS`: the folder that its module stands in."""
    cls = scorer_class(name)
    parts = cls.__module__.split(".")
    folder = parts[2] if parts[:2] == ["captune", "scorers"] and len(parts) > 3 else "other"
    return cls.group or (folder if folder in GROUPS else "other")


def check_higher_is_better(spec: str, what: str, error: type[CaptuneError] = UsageError) -> None:
    """Refuse a scorer, or a weighted sum, of which less is better where the highest is taken.

    Args:
        spec: the scorer.
        what: what takes the highest, for the message.
        error: the kind that is raised.
    """
    if direction(spec) is False:
        how = "turn its signs round" if is_expression(spec) else f"write '-{spec}'"
        raise error(f"{what} takes the highest, and less of {spec!r} is better: {how}")


def direction(spec: str | Scorer, figure: str | None = None) -> bool | None:
    """Whether more of a scorer's figure is better. Reads what classes declare; builds and loads nothing.

    Args:
        spec: a scorer, its spec, or a weighted sum of scorers.
        figure: default: the primary one, and for a weighted sum its only one.

    Returns:
        None where neither is better, or where nobody declares it.
    """
    name = spec if isinstance(spec, str) else spec.name
    if is_expression(name):
        try:
            terms = [(direction(part), weight) for part, weight in parse(name).items()]
        except ExpressionError:  # a name of another program
            return None
        ways = {better == (weight > 0) for better, weight in terms if better is not None and weight}
        return ways.pop() if len(ways) == 1 else None
    cls = _class_of(spec)
    if cls is None:
        return None
    figure = cls.primary if figure is None else figure
    return next((better for key, better in cls.higher_is_better.items() if _stands_for(key, figure)), None)


def label(spec: str | Scorer, figure: str) -> str:
    """Return a figure's name in tables; for what is not declared, the key without underscores."""
    if is_expression(spec if isinstance(spec, str) else spec.name):
        return figure
    declared = cls.labels if (cls := _class_of(spec)) is not None else {}
    return next((text for key, text in declared.items() if _stands_for(key, figure)), figure.replace("_", " "))


def _class_of(spec: str | Scorer) -> type[Scorer] | None:
    """The class behind a spec; None for a scorer that is not known (a figure of another program).

    A file's code is not run for it: only of a file that was run already is the class known.
    """
    if isinstance(spec, Scorer) and not isinstance(spec, Expression):
        return type(spec)
    spec = spec if isinstance(spec, str) else spec.name  # a sum of one part stands for that part
    if match := FILE.fullmatch(spec.strip()):
        return loaded_from_file(match["file"], match["attribute"])
    return scorer_class(spec) if spec.strip().partition(":")[0] in SCORERS else None


def _stands_for(key: str, figure: str) -> bool:
    return key == figure or fnmatchcase(figure, key)


def load_scorer(spec: str, *, cache: Cache | None = None, **context: Any) -> Scorer:
    """Return the scorer of a spec.

    Args:
        spec: "cider", "clip:<folder>", "cider + 0.5*rouge", "path/to/file.py:Class" or "path/to/file.py:function",
            whose code is run.
        cache: where the rows of costly scorers are kept.
        context: what some scorers can use (device, df ...); each takes what its constructor declares.
    """
    if is_expression(spec):
        return load_reward(spec, cache=cache, **context)
    spec = spec.strip()
    cls = scorer_class(spec)
    match = FILE.fullmatch(spec)
    argument = match["argument"] if match else spec.partition(":")[2]
    declared = inspect.signature(cls).parameters
    scorer = cls(argument or None, **{key: value for key, value in context.items() if key in declared})
    scorer.name, scorer.cache = redact(spec), cache
    return scorer


def load_reward(spec: str, **context: Any) -> Expression:
    """Like `load_scorer`, but one scorer is a sum of one part too: a reward has parts.

    Args:
        spec: one scorer or a weighted sum of scorers.
        context: see `load_scorer`.
    """
    text = spec.strip()
    return Expression(text, [(load_scorer(part, **context), weight) for part, weight in parse(text).items()])


def split_specs(text: str) -> list[str]:
    """Split "bleu,self_retrieval:?k=1,5" into ["bleu", "self_retrieval:?k=1,5"].

    A number (and further settings behind it) is no scorer, but the end of the argument before it.
    """
    specs: list[str] = []
    for piece in text.split(","):
        if specs and re.fullmatch(r"\s*[-+]?[\d.]+\s*(&.*)?", piece):
            specs[-1] += f",{piece}"
        else:
            specs.append(piece)
    return [spec.strip() for spec in specs if spec.strip()]


class Figure(NamedTuple):
    """What a scorer declares about one of its figures."""

    name: str
    label: str
    higher_is_better: bool | None


class About(NamedTuple):
    """A scorer in words."""

    name: str
    group: str
    measures: str  # the first line of the class's docstring
    required_columns: tuple[str, ...]
    optional_columns: tuple[str, ...]
    source: str
    cost: str
    figures: tuple[Figure, ...]
    settings: tuple[Setting, ...]


def describe() -> list[About]:
    """Describe every scorer; one of another package that cannot be imported is left out with a warning."""
    described = []
    for name in SCORERS:
        try:
            described.append(describe_scorer(name))
        except UnknownScorer as error:
            if name in SCORERS.builtin:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
    return described


def describe_scorer(name: str) -> About:
    """Describe a scorer from what its class declares; builds and loads nothing.

    Raises:
        UnknownScorer: with the nearest names.
    """
    scorer = scorer_class(name)
    keys = dict.fromkeys([scorer.primary, *scorer.higher_is_better, *scorer.labels])
    figures = [key for key in keys if key and not any(other != key and fnmatchcase(other, key) for other in keys)]
    return About(
        name,
        group_of(name),
        (inspect.getdoc(scorer) or "").partition("\n")[0],
        tuple(scorer.required_columns),
        tuple(scorer.optional_columns),
        scorer.source,
        scorer.cost,
        tuple(Figure(figure, label(name, figure), direction(name, figure)) for figure in figures),
        settings_of(scorer.Settings) if scorer.Settings is not None else (),
    )
