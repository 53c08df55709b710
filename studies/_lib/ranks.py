"""How well numbers tell two kinds apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata


def auc(right: Any, wrong: Any) -> float:
    """P(right > wrong) over all pairs, ties counting half."""
    ranks = rankdata(np.concatenate([right, wrong]))
    return float((ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))
