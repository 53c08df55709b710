"""Caption files against references and images, and scorers against people: figures, intervals and paired tests."""

from __future__ import annotations

from captune.evaluation.human import correlate
from captune.evaluation.run import evaluate_files, match
from captune.evaluation.statistics import Comparison, Result, evaluate, holm, paired

__all__ = ["Comparison", "Result", "correlate", "evaluate", "evaluate_files", "holm", "match", "paired"]
