"""Weighted sums of scorers, written as a person would: `cider + 0.5*clip - 0.1*length`.

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "/") factor)*              one side of * is a number, and so is the right side of /
    factor     := number | scorer | "-" factor | "(" expression ")"
    scorer     := name [":" argument]                       the argument ends at a space, a bracket, or an asterisk

Nothing is evaluated but this grammar. A sum is linear, so its corpus value is the sum of the corpus values, and its
bootstrap interval comes from the resamples of all its parts together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from captune.errors import ExpressionError
from captune.scorers.base import Scorer

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|([A-Za-z_]\w*(?::[^\s()*]+)?)|([-+*/()]))")
_NAME = re.compile(r"[A-Za-z_]\w*(:.*)?", re.DOTALL)


def is_expression(spec: str) -> bool:
    """Whether a spec is more than one scorer's name with its argument (a folder's name may hold any character)."""
    return not _NAME.fullmatch(spec.strip()) or bool(re.search(r"\s[-+*/]\s|\*", spec))


Weights = dict[str, float]  # what a term of the sum is: weights by scorer; {"": x} is the number x


class _Reader:
    """Recursive descent over the grammar above."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.start = text, 0, 0
        self.kind, self.token = "", ""
        self.advance()

    def advance(self) -> None:
        rest = self.text[self.at :]
        self.start = self.at + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self.kind, self.token = "end", ""
            return
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            raise self.error("this cannot be read")
        self.at = match.end()
        number, name, sign = match.groups()
        self.kind = "number" if number else "scorer" if name else "sign"
        self.token = number or name or sign

    def error(self, why: str) -> ExpressionError:
        return ExpressionError(
            f"{why}, in the expression\n    {self.text}\n    {' ' * self.start}^\n"
            "Write a weighted sum of scorers, such as: cider + 0.5*clip - 0.1*length"
        )

    def takes(self, signs: str) -> str:
        """The sign, one of `signs`, if it is next; it is consumed."""
        sign = self.token if self.kind == "sign" and self.token in signs else ""
        if sign:
            self.advance()
        return sign

    def sum(self) -> Weights:
        total = dict(self.term())
        while sign := self.takes("+-"):
            for name, weight in self.term().items():
                total[name] = total.get(name, 0.0) + (weight if sign == "+" else -weight)
        return total

    def term(self) -> Weights:
        left = self.factor()
        while sign := self.takes("*/"):
            right = self.factor()
            if set(left) != {""} and set(right) != {""}:
                raise self.error("a scorer is multiplied or divided by a number only")
            if sign == "/":
                if set(right) != {""} or not right[""]:
                    raise self.error("what divides must be a number other than 0")
                right = {"": 1 / right[""]}
            left = {a or b: x * y for a, x in left.items() for b, y in right.items()}
        return left

    def factor(self) -> Weights:
        if self.takes("-"):
            return {name: -weight for name, weight in self.factor().items()}
        if self.takes("("):
            inside = self.sum()
            if not self.takes(")"):
                raise self.error("a bracket is not closed")
            return inside
        if self.kind not in ("number", "scorer"):
            raise self.error("a number or a scorer is missing here")
        weights = {"": float(self.token)} if self.kind == "number" else {self.token: 1.0}
        self.advance()
        return weights


def parse(text: str) -> Weights:
    """{scorer's spec: weight} of an expression.

    Raises:
        ExpressionError: shows the place and why.
    """
    reader = _Reader(text)
    weights = reader.sum()
    if reader.kind != "end":
        raise reader.error("an operator is missing here")
    if weights.pop("", 0.0):
        raise ExpressionError(f"a number stands alone in {text!r}: a constant changes no comparison and no reward")
    if not weights:
        raise ExpressionError(f"there is no scorer in {text!r}")
    return weights


class Expression(Scorer):
    """A weighted sum of scorers; as a reward, the weighted sum of their rewards.

    Args:
        text: the expression as it was written; its name.
        parts: each scorer with its weight.
    """

    def __init__(self, text: str, parts: Sequence[tuple[Scorer, float]]) -> None:
        self.name = text
        self.parts = list(parts)
        self.required_columns = tuple(dict.fromkeys(need for part, _ in self.parts for need in part.required_columns))
        self.optional_columns = tuple(dict.fromkeys(use for part, _ in self.parts for use in part.optional_columns))
        self._widths: list[int] = []  # columns of each part's rows

    def check(self) -> None:
        for part, _ in self.parts:
            part.check()

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
        figures = [weight * next(iter(part.from_totals(own, n).values())) for part, weight, own in self._split(totals)]
        return {self.name: np.sum(figures, axis=0)}

    @property
    def is_additive(self) -> bool:  # type: ignore[override]
        return all(part.is_additive for part, _ in self.parts)

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        return {self.name: sum(w * next(iter(part.corpus(own).values())) for part, w, own in self._split(rows))}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        return np.sum([weight * part.per_caption(own) for part, weight, own in self._split(rows)], axis=0)

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """TRL's reward. Each part is asked as a reward, so that it can refuse (CIDEr without frozen frequencies)."""
        rewards = [weight * np.array(part(completions, **columns)) for part, weight in self.parts]
        return [float(reward) for reward in np.sum(rewards, axis=0)]

    @property
    def signature(self) -> str:
        return " ".join(f"{weight:+g} * [{part.signature}]" for part, weight in self.parts)
