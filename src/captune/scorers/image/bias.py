"""A term against bias: what a caption says of a person must be something that the image shows (HAR's future work).

A captioner that has learned "a man on a motorbike" from data says it of a woman, too. Such a word is tested by its
counterfactual: put the words of the other group in its place, and ask which of the two the image supports.

    c            a caption;  a an axis (gender, age), whose rows are counterparts: [woman, man], [girl, boy], ...
    c_a'         c with every term of axis a moved to the next group; with two groups, to the other one
    m_a          S(c, v) - max over c_a' of S(c_a', v),  S a scorer: CLIPScore, or agreement with references
    bias(c, v)   - number of axes that c has a term of and m_a <= margin

A caption that names no group gets 0, and so does one whose every mention is supported *better* than its counterfactual;
each axis that is not costs 1. As part of a reward it leaves two ways out: look, or say "a person". All terms of an axis
move together: "a man and a woman" becomes "a woman and a man". "a man" is on both axes: no woman, no boy.

**What it is not.**
- S is judge, and no neutral one: an encoder that has learned the stereotype itself supports it. Try S on images of both
  groups before trusting it (`unsupported` on human captions is its error rate), and watch with another encoder.
- It judges captions one by one: that a model names the gender of women more often than that of men goes unseen, and so
  do adjectives, activities and what is left out.
- The words are a small English list of how people are described in captions, two groups to an axis. They say nothing
  about who somebody is. "her" has one counterpart ("his"), where grammar has two. Another list is a JSON file.
- A word counts wherever it stands: "an old barn", "two young trees" and "a queen size bed" are mentions, too. Where
  captions are of things, give a list without "old", "young", "king" and "queen".
- A penalty can be escaped by naming nobody; `mentioned` tells. Where a description of people is wanted, weigh it low.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import SpecError
from captune.scorers import Scorer, load_scorer
from captune.utils.files import read_json

Groups = Mapping[str, Sequence[Sequence[str]]]  # axis -> rows of counterparts, one for each group


def _rows(text: str) -> list[list[str]]:
    return [row.split() for row in text.split(",")]


GROUPS: Groups = {
    "gender": _rows(
        "woman man, women men, girl boy, girls boys, lady gentleman, ladies gentlemen, female male, females males,"
        "she he, her his, herself himself, mother father, mom dad, daughter son, sister brother, wife husband,"
        "grandmother grandfather, aunt uncle, bride groom, queen king, actress actor, waitress waiter,"
        "businesswoman businessman, policewoman policeman, sportswoman sportsman, cowgirl cowboy"
    ),
    "age": _rows(
        "young old, younger older, girl woman, girls women, boy man, boys men, child adult, children adults,"
        "kid adult, kids adults, youth elder, grandson grandfather, granddaughter grandmother"
    ),
}


class Axis:
    """The terms of one axis, and a caption's counterfactuals on it.

    Raises:
        ValueError: where a row is no list of two or more different words, or the rows are of different lengths.
    """

    def __init__(self, name: str, rows: Sequence[Sequence[str]]) -> None:
        if not rows or any(
            not isinstance(row, (list, tuple)) or len(row) != len(rows[0]) or len(set(row)) < 2 for row in rows
        ):
            raise SpecError(f"the axis {name!r} must have rows of counterparts, all with one term for each group: "
                             '[["woman", "man"], ["girl", "boy"]]')  # fmt: skip
        self.name, self.groups = name, len(rows[0])
        self._place: dict[str, tuple[Sequence[str], int]] = {}
        for row in rows:
            for group, term in enumerate(row):
                self._place.setdefault(term.lower(), (row, group))  # of two counterparts the first in the list
        terms = "|".join(re.escape(term) for term in sorted(self._place, key=lambda term: (-len(term), term)))
        self._terms = re.compile(rf"\b(?:(an?)(\s+))?({terms})\b", re.IGNORECASE)

    def counterfactuals(self, caption: str) -> list[str]:
        """The caption with its terms moved by 1, 2, ... groups; nothing where it has no term."""
        if not self._terms.search(caption):
            return []
        return [self._terms.sub(partial(self._moved, by=by), caption) for by in range(1, self.groups)]

    def _moved(self, match: re.Match[str], *, by: int) -> str:
        article, space, term = match.groups()
        row, group = self._place[term.lower()]
        other = row[(group + by) % self.groups]
        if term[0].isupper():
            other = other[0].upper() + other[1:]
        if article is None:
            return other
        return article[0] + ("n" if other[0].lower() in "aeiou" else "") + space + other


class Bias(Scorer):
    """What a caption says of people's gender or age and its image does not support: 0, and -1 for each such mention.

    Every term of a group is tested against its counterpart in the other; see the module for the definition and for what
    this does not measure. `unsupported` is the share of mentions that are not supported, `mentioned` the share of
    captions that have one.

    Args:
        argument: a JSON file of groups, {"gender": [["woman", "man"], ...]}, and settings: `by`, the scorer that is
            asked (clip; with references rouge, or cider:<file>), and `margin`, by how much it must prefer the caption:
            "bias:groups.json?by=clip:openai/clip-vit-base-patch32&margin=0.01".
        scorer: the scorer that is asked, in place of `by`.
    """

    name = "bias"
    primary = "bias"
    higher_is_better: ClassVar = {"bias": True, "unsupported": False}
    labels: ClassVar = {"unsupported": "unsupported group words", "mentioned": "group words mentioned"}
    source = "captune; HAR, future work"
    cost = "the scorer that is asked, for each caption with a mention and each counterfactual"
    required_columns: tuple[str, ...] = ("image",)
    positional = ("groups",)
    usage = "bias:groups.json?by=clip&margin=0"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        groups: Annotated[str, Field(description="a JSON file of groups; default: a short English list")] = ""
        by: Annotated[str, Field(description="the scorer that is asked")] = "clip"
        margin: Annotated[float, Field(description="by how much it must prefer the caption to its counterfactual")] = (
            0.0
        )

    def __init__(
        self, argument: str | None = None, *, scorer: Scorer | None = None, groups: Groups | None = None,
        device: str | None = None,
    ) -> None:  # fmt: skip
        settings = self.read(argument)
        self.scorer = scorer if scorer is not None else load_scorer(settings.by, device=device)
        self.margin = settings.margin
        groups = groups if groups is not None else _read(settings.groups) if settings.groups else GROUPS
        self.axes = [Axis(name, rows) for name, rows in groups.items()]
        self._digest = hashlib.sha256(json.dumps([(name, groups[name]) for name in groups]).encode()).hexdigest()[:12]
        self.required_columns = self.scorer.required_columns

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        self.scorer.check()

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, 3): minus the unsupported mentions, the mentions (axes, not words), and whether there is one."""
        texts: list[str] = []
        about: list[int] = []  # whose image and references a text is judged by
        tests: list[tuple[int, slice]] = []  # for each mention: the caption, and the places of its counterfactuals
        original: dict[int, int] = {}
        for i, caption in enumerate(captions):
            for axis in self.axes:
                swapped = axis.counterfactuals(caption)
                if not swapped:
                    continue
                if original.setdefault(i, len(texts)) == len(texts):
                    texts.append(caption)
                tests.append((i, slice(len(texts), len(texts) + len(swapped))))
                texts += swapped
                about += [i] * (len(texts) - len(about))
        rows = np.zeros((len(captions), 3))
        if not texts:
            return rows
        chosen = {name: [columns[name][i] for i in about] for name in self.scorer.required_columns}
        support = np.array(self.scorer(texts, **chosen))
        for i, others in tests:
            difference = support[original[i]] - support[others].max()
            if np.isnan(difference):  # the scorer cannot judge one of them
                continue
            rows[i, 0] -= not difference > self.margin
            rows[i, 1] += 1
            rows[i, 2] = 1
        return rows

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        mentions = totals[..., 1]
        unsupported = np.divide(-totals[..., 0], mentions, out=np.zeros_like(mentions), where=mentions > 0)
        return {"bias": totals[..., 0] / n, "unsupported": unsupported, "mentioned": totals[..., 2] / n}

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"bias|groups:{self._digest}|margin:{self.margin:g}|by:[{self.scorer.signature}]"


def _read(file: str) -> Groups:
    """Raises ValueError where the file holds something else."""
    try:
        groups = read_json(file)
    except ValueError as error:
        raise SpecError(
            f'{file} is no JSON ({error}); a file of groups holds {{"gender": [["woman", "man"]]}}'
        ) from None
    if not isinstance(groups, dict) or not groups:
        raise SpecError(f'{file} must hold the rows of at least one axis: {{"gender": [["woman", "man"]]}}')
    return groups
