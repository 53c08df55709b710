"""Scorers judge captions. One shape serves as a metric and as a reward.

A scorer turns captions (with their images or references) into rows (N, D) of sufficient statistics. A corpus figure is
a function of the rows' totals, so that resampling is a matrix product, and one column, or a function of the row, is the
score of each caption. Called with TRL's reward signature, a scorer answers with one number per completion:

    scorer = load_scorer("cider")
    rows = scorer.rows(captions, references=references)
    scorer.corpus(rows)                        # {"cider": 0.93}
    scorer.per_caption(rows)                   # (N,)
    trl.GRPOTrainer(..., reward_funcs=[scorer])

To add one: a subclass of `Scorer` in a package with an entry point `captune.scorers`, or in a file of your own, given
as `path/to/file.py:Class`; a function `f(completions, **columns) -> list[float]`, as `path/to/file.py:function`.
"""

from __future__ import annotations

from captune.errors import MissingColumn, ScorerError, UnknownScorer
from captune.scorers.base import (
    Reward,
    Scorer,
    check_needs,
    check_references,
    columns_for,
    completion_text,
    safe_ratio,
    scorers_in,
    weighted_sum,
)
from captune.scorers.files import from_function
from captune.scorers.registry import (
    GROUPS,
    SCORERS,
    About,
    describe,
    describe_scorer,
    direction,
    group_of,
    known,
    label,
    load_reward,
    load_scorer,
    scorer_class,
    split_specs,
)

__all__ = [
    "GROUPS",
    "SCORERS",
    "About",
    "MissingColumn",
    "Reward",
    "Scorer",
    "ScorerError",
    "UnknownScorer",
    "check_needs",
    "check_references",
    "columns_for",
    "completion_text",
    "describe",
    "describe_scorer",
    "direction",
    "from_function",
    "group_of",
    "known",
    "label",
    "load_reward",
    "load_scorer",
    "safe_ratio",
    "scorer_class",
    "scorers_in",
    "split_specs",
    "weighted_sum",
]
