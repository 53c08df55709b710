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

from captune.errors import MissingColumn, ScorerError, UnknownScorer
from captune.scorers.base import (
    Reward,
    Scorer,
    check_needs,
    check_references,
    columns_for,
    completion_text,
    safe_ratio,
)
from captune.scorers.registry import (
    SCORERS,
    About,
    describe,
    direction,
    label,
    load_reward,
    load_scorer,
    scorer_class,
    split_specs,
)

__all__ = [
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
    "direction",
    "label",
    "load_reward",
    "load_scorer",
    "safe_ratio",
    "scorer_class",
    "split_specs",
]
