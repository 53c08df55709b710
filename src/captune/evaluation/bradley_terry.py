"""Strengths of systems from battles between two of them: Bradley and Terry's model with Davidson's ties.

For systems with strengths theta (log odds, their mean is 0), a battle of i and j with d = theta_i - theta_j
(Bradley and Terry, 1952; Davidson, 1970):

    P(i wins) : P(tie) : P(j wins)  =  exp(d / 2) : nu : exp(-d / 2)

nu is Davidson's; without a tie among the battles it is 0 and P(i wins) = 1 / (1 + exp(-d)), Bradley and Terry's own.
With length beside it, d = theta_i - theta_j + beta log2((w_i + 1) / (w_j + 1)), w words in the captions: theta is then
the strength at equal length, and beta the log odds that twice the words give.

The estimate is the maximum of the likelihood, which is concave in (theta, log nu, beta), by Newton's method. It exists
if, and only if, no part of the systems has won every battle against the rest (Ford, 1957; a tie counts for both);
otherwise, and only then, the strengths get a normal prior of standard deviation `PRIOR`, and `Fit.prior` says so.

Intervals come from the sandwich, with the battles of one image, whoever judged them, as one cluster of G:

    Cov = G / (G - 1)  H^-1 (sum over images of s s') H^-1      H: the information, s: an image's sum of scores
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PRIOR = 3.0  # log odds: one system wins 95 of 100 battles against the other
_STEPS = 100
_ENOUGH = 1e-14  # of a step's decrement for each battle: the step after it would be below the machine's precision
_LONGEST = 20.0  # of |beta|: above, length decides every battle and the maximum is at infinity
_Z = 1.959963984540054  # of a 95% interval


class Fought(NamedTuple):
    """Battles, an entry each.

    Attributes:
        first: (n,), the number of a system.
        second: (n,), that of the other.
        outcome: (n,): 1 the first won, 0 a tie, -1 the second won.
        image: (n,), the number of the image.
        words: (n, 2), how many words the two captions have.
    """

    first: np.ndarray
    second: np.ndarray
    outcome: np.ndarray
    image: np.ndarray
    words: np.ndarray


@dataclass(frozen=True)
class Fit:
    """What the battles say about K systems.

    Attributes:
        strengths: (K,), log odds with mean 0.
        tie: nu; 0 without ties.
        length: beta, or None without length in the model.
        error: (K,), standard errors of the strengths; nan with fewer than two images.
        length_error: that of beta, nan without it.
        covariance: (K, K), the inverse of the information: what is not known yet, for the choice of the next battle.
        prior: whether the prior was needed.
    """

    strengths: np.ndarray
    tie: float
    length: float | None
    error: np.ndarray
    length_error: float
    covariance: np.ndarray
    prior: bool

    def interval(self, system: int) -> tuple[float, float]:
        """The 95% interval of a strength."""
        low, high = self.strengths[system] + np.array([-_Z, _Z]) * self.error[system]
        return float(low), float(high)

    def information(self, first: int, second: int) -> float:
        """The information of one battle of two systems about the difference of their strengths: Var(outcome / 2)."""
        win, _, loss = outcome_probabilities(self.strengths[first] - self.strengths[second], self.tie)
        return float((win + loss - (win - loss) ** 2) / 4)


def outcome_probabilities(difference: float, tie: float) -> np.ndarray:
    """Return (3,): the probabilities that the first wins, of a tie, that the second wins."""
    logits = np.array([difference / 2, math.log(tie) if tie > 0 else -np.inf, -difference / 2])
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def fit(battles: Fought, systems: int, *, length: bool = False) -> Fit | None:
    """Estimate the strengths.

    Args:
        battles: at least one.
        systems: how many there are; one without a battle has the prior's mean.
        length: put the length of the captions into the model.

    Returns:
        None where `length` cannot be told from the strengths: no difference of length within the battles of two
        systems, or length decides every battle.
    """
    ties, decided = bool((battles.outcome == 0).any()), bool((battles.outcome != 0).any())
    prior = not decided or not _connected(battles, systems)
    n, size = len(battles.outcome), systems + length + ties
    design = np.zeros((n, systems + length))  # of d
    design[np.arange(n), battles.first] += 1
    design[np.arange(n), battles.second] -= 1
    if length:
        design[:, systems] = np.log2((battles.words[:, 0] + 1) / (battles.words[:, 1] + 1))
        own = design[:, systems]
        explained = design[:, :systems] @ np.linalg.lstsq(design[:, :systems], own, rcond=None)[0]
        if np.abs(own - explained).max() < 1e-9:
            return None
    precision = np.zeros(size)
    if prior:
        precision[:systems] = PRIOR**-2
    if not decided:
        precision[-1] = PRIOR**-2
    centre = np.zeros((size, size))
    centre[:systems, :systems] = 1 / systems  # fixes the mean of the strengths
    values = np.zeros(size)
    worth, gradient, information, scores = _derivatives(values, design, battles.outcome, ties)
    for _ in range(_STEPS):
        slope = gradient - precision * values
        step = np.linalg.solve(information + np.diag(precision) + centre * n, slope)
        now = worth - precision @ values**2 / 2
        for scale in 0.5 ** np.arange(30):
            new = values + scale * step
            found = _derivatives(new, design, battles.outcome, ties)
            if found[0] - precision @ new**2 / 2 >= now - 1e-9 * abs(now):
                break
        values, (worth, gradient, information, scores) = new, found
        if length and abs(values[systems]) > _LONGEST:
            return None
        if step @ slope <= _ENOUGH * n:
            break
    inverse = np.linalg.inv(information + np.diag(precision) + centre * n)
    middle = np.eye(size)
    middle[:systems, :systems] -= 1 / systems
    inverse = middle @ inverse @ middle
    images = np.unique(battles.image, return_inverse=True)[1]
    clusters = int(images.max()) + 1
    sums = np.zeros((clusters, size))
    np.add.at(sums, images, scores)
    robust = inverse @ (sums.T @ sums) @ inverse * clusters / max(1, clusters - 1)
    errors = np.sqrt(np.diag(robust).clip(0)) if clusters > 1 else np.full(size, np.nan)
    return Fit(
        strengths=values[:systems] - values[:systems].mean(),
        tie=math.exp(values[-1]) if ties else 0.0,
        length=float(values[systems]) if length else None,
        error=errors[:systems],
        length_error=float(errors[systems]) if length else math.nan,
        covariance=inverse[:systems, :systems],
        prior=prior,
    )


def _derivatives(
    values: np.ndarray, design: np.ndarray, outcome: np.ndarray, ties: bool
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """(log-likelihood, gradient (P,), information (P, P), the scores of each battle (n, P)) at `values`."""
    columns = design.shape[1]
    d = design @ values[:columns]
    logits = np.stack([d / 2, np.full(len(d), values[-1] if ties else -np.inf), -d / 2], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    win, tie, loss = np.exp(log_p).T
    mean, spread = (win - loss) / 2, (win + loss) / 4 - (win - loss) ** 2 / 4
    of_d = outcome / 2 - mean
    scores = design * of_d[:, None]
    information = design.T @ (design * spread[:, None])
    if ties:
        scores = np.concatenate([scores, ((outcome == 0) - tie)[:, None]], axis=1)
        cross = -(design * (mean * tie)[:, None]).sum(axis=0)
        information = np.block([[information, cross[:, None]], [cross[None], np.array([[(tie * (1 - tie)).sum()]])]])
    worth = float(log_p[np.arange(len(d)), 1 - outcome].sum())
    return worth, scores.sum(axis=0), information, scores


def _connected(battles: Fought, systems: int) -> bool:
    """Whether each system is above each other by some chain of battles won or tied: the maximum exists."""
    above = np.eye(systems, dtype=bool)
    for one, other, losing in ((battles.first, battles.second, -1), (battles.second, battles.first, 1)):
        chosen = battles.outcome != losing
        above[one[chosen], other[chosen]] = True
    for _ in range(systems.bit_length()):
        above = above @ above
    return bool(above.all())
