"""Weighted sums of scorers, written as a person would: `cider + 0.5*clip - 0.1*length`.

    expression := ["+" | "-"] term (("+" | "-") term)*
    term       := [number "*"] scorer ["*" number]
    scorer     := name [":" argument] | file.py:name [":" argument]      the argument ends at a space or an asterisk

Nothing is evaluated but this grammar. A sum is linear, so its corpus value is the sum of the corpus values, and its
bootstrap interval comes from the resamples of all its parts together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from captune.errors import ExpressionError, redact
from captune.scorers.base import Scorer

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SCORER = r"(?:[^\s()*:]+\.py:)?[A-Za-z_]\w*"
_TERM = re.compile(
    rf"\s*(?P<sign>[-+]?)\s*(?:(?P<before>{_NUMBER})\s*\*\s*)?(?P<scorer>{_SCORER}(?::[^\s()*]+)?)"
    rf"(?:\s*\*\s*(?P<after>{_NUMBER}))?\s*"
)
_ONE = re.compile(rf"{_SCORER}(:.*)?", re.DOTALL)
_WRONG = {
    "": "a scorer is missing here",
    "(": "brackets are not supported: give each scorer its own number",
    ")": "brackets are not supported: give each scorer its own number",
    "/": "division is not supported: multiply by a number",
    "*": "a scorer is multiplied by a number only",
}


def is_expression(spec: str) -> bool:
    """Return whether a spec is more than one scorer with its argument (a folder's name may hold any character)."""
    return not _ONE.fullmatch(spec.strip()) or bool(re.search(r"\s[-+*/]\s|\*", spec))


def parse(text: str) -> dict[str, float]:
    """Return {scorer's spec: weight} of an expression.

    Raises:
        ExpressionError: shows the place and why.
    """
    weights: dict[str, float] = {}
    at = 0
    while at < len(text) or not weights:
        term = _TERM.match(text, at)
        if term is None or (weights and not term["sign"]):
            raise _error(text, at)
        weight = float(term["before"] or 1) * float(term["after"] or 1)
        if not 1e-12 <= weight <= 1e12:
            raise ExpressionError(
                f"the weight {term['before'] or ''}{' * ' if term['before'] and term['after'] else ''}"
                f"{term['after'] or ''} of {term['scorer']!r} is {weight:g}, in the expression\n    {text}\n"
                "A weight is a number between 1e-12 and 1e12; leave out a scorer that should not count"
            )
        scorer = term["scorer"]
        weights[scorer] = weights.get(scorer, 0.0) + (-weight if term["sign"] == "-" else weight)
        at = term.end()
    if gone := next((scorer for scorer, weight in weights.items() if weight == 0), None):
        raise ExpressionError(f"{gone!r} is added and taken away again in the expression\n    {text}\nLeave it out")
    return weights


def _error(text: str, at: int) -> ExpressionError:
    """Find the place behind what can be read, and why it ends there."""
    at += len(re.match(rf"\s*[-+]?\s*(?:{_NUMBER}\s*\*\s*)?", text[at:])[0])  # type: ignore[index]
    why = _WRONG.get(text[at : at + 1])
    if why is None and re.match(_NUMBER, text[at:]):
        why = "a number stands alone: a constant changes no comparison and no reward"
    if why is None and re.match(_SCORER, text[at:]):
        why = "an operator is missing here"
    return ExpressionError(
        f"{why or 'this cannot be read'}, in the expression\n    {text}\n    {' ' * at}^\n"
        "Write a weighted sum of scorers, such as: cider + 0.5*clip - 0.1*length"
    )


class Expression(Scorer):
    """A weighted sum of scorers; as a reward, the weighted sum of their rewards.

    Args:
        text: the expression as it was written; its name.
        parts: each scorer with its weight.
    """

    def __init__(self, text: str, parts: Sequence[tuple[Scorer, float]]) -> None:
        self.name = redact(text)
        self.parts = list(parts)
        self.required_columns = tuple(dict.fromkeys(need for part, _ in self.parts for need in part.required_columns))
        self.optional_columns = tuple(dict.fromkeys(use for part, _ in self.parts for use in part.optional_columns))
        self._widths: list[int] = []  # columns of each part's rows

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        for part, _ in self.parts:
            part.check()

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Raise ScorerError where a part's file lacks an image."""
        for part, _ in self.parts:
            part.check_images(image_ids)

    def forget(self) -> None:
        """Warn again of what was warned of once."""
        for part, _ in self.parts:
            part.forget()

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """The parts' rows side by side."""
        rows = [part.measure(captions, columns) for part, _ in self.parts]
        self._widths = [own.shape[1] for own in rows]
        return np.concatenate(rows, axis=1)

    def _split(self, rows: np.ndarray) -> Iterator[tuple[Scorer, float, np.ndarray]]:
        ends = np.cumsum(self._widths)
        for (part, weight), end, width in zip(self.parts, ends, self._widths, strict=True):
            yield part, weight, rows[..., end - width : end]

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        figures = [weight * next(iter(part.from_totals(own, n).values())) for part, weight, own in self._split(totals)]
        return {self.name: np.sum(figures, axis=0)}

    @property
    def is_additive(self) -> bool:
        """Whether the corpus figures of all parts are functions of the rows' totals."""
        return all(part.is_additive for part, _ in self.parts)

    @property
    def truncated(self) -> float:
        """The largest share of the captions that the encoder of a part cut."""
        return max(part.truncated for part, _ in self.parts)

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        """Return the corpus figures."""
        return {self.name: sum(w * next(iter(part.corpus(own).values())) for part, w, own in self._split(rows))}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return np.sum([weight * part.per_caption(own) for part, weight, own in self._split(rows)], axis=0)

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        """TRL's reward. Each part is asked as a reward, so that it can refuse (CIDEr without frozen frequencies).

        A caption that one part cannot judge has none (NaN): its sum would be of other parts than the others'. A trainer
        that has the parts adds up those that can judge, as TRL does with several functions.
        """
        rewards = [weight * np.array(part(completions, **columns), dtype=float) for part, weight in self.parts]
        return [float(reward) for reward in np.sum(rewards, axis=0)]

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return " ".join(f"{weight:+g} * [{part.signature}]" for part, weight in self.parts)

    @property
    def identity(self) -> str:
        """The signature without what the captions decide."""
        return " ".join(f"{weight:+g} * [{part.identity}]" for part, weight in self.parts)
