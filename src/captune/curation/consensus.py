"""`consensus`: several captions of one thing into the one that they agree on.

Embodied captioning (Galliena et al., 2025) collects the captions of several views of an object, counts equal ones, and
gives the list to a language model, which writes one for all views; a captioner is then trained on that. Here one of the
captions is chosen, so that nothing is said that none of them says. With c_1 ... c_n the captions of a thing:

    agreement   a(c_i) = 1 / (n - 1)  sum_{j != i} s(c_i, c_j)        the medoid under a scorer s; equal captions count
                                                                      as often as they are there (minimum Bayes risk)
    frequency   how many of the n have the same normalised text; of equal ones the one with more agreement
    lift        l(c_i) = mean over words w of c_i of  f(w) log(f(w) / F(w)),      f(w): the share of the n that have w,
                                                                      F(w): that of the whole set

The choice of published code is by frequency, over which a list of 104 banned words goes first, as substrings ("cat"
also bans "location"); nothing is banned here. Frequency and agreement converge to what a captioner says out of habit,
where that is as likely as the truth; lift takes out what it says of every image.

A thing is an image with its captions; with `views` it is several images, and each of them gets the chosen caption.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from captune.curation.base import Captions, Verdicts, Work, setting
from captune.curation.criteria import COLUMN, check_column
from captune.errors import CurationError, UsageError

_PART = 4096  # captions
_DIGITS = 6
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """Choose of several captions of one thing the one that they agree on (embodied captioning)."""

    example = "captune curate consensus samples.jsonl --by sbert --output runs/agreed"

    choose: Literal["agreement", "frequency", "lift"] = setting("what the chosen caption has most of", "agreement")
    by: str = setting("the scorer that compares two captions: rouge, cider, sbert, ...", "rouge")
    views: str | None = setting(
        "images of one thing: a regular expression whose first group names it in their ids, such as '(.+)_view', or "
        "column:NAME, a number for each (default: each image is a thing)",
        None,
        metavar="REGEX",
    )
    column: str = setting("the column that keeps the score of the chosen caption", "agreement", metavar="NAME")

    def __post_init__(self) -> None:
        from captune.scorers.expression import is_expression
        from captune.scorers.registry import known

        if is_expression(self.by):
            raise UsageError(f"captions are compared by one scorer, not by a sum ({self.by!r})")
        known(self.by)
        check_column(self.column)
        if self.views is not None and not self.views.startswith(COLUMN):
            try:
                groups = re.compile(self.views).groups
            except re.error as error:
                raise UsageError(f"views: {self.views!r} is no regular expression ({error})") from error
            if groups < 1:
                raise UsageError(f"views: {self.views!r} has no group in brackets, which would name the thing")

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts."""
        verdicts = Verdicts(len(captions))
        things = self._things(captions)
        order = np.argsort(things, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(things[order])) + 1, [len(order)]])
        judge = self._judge(captions, order, starts, verdicts)
        chosen = np.full(len(captions), np.nan)
        sizes: Counter[int] = Counter()
        for first, last in _spans(starts):
            own = starts[first : last + 1] - starts[first]
            members = order[starts[first] : starts[last]]
            texts = captions.table["text"].take(members).to_pylist()
            scores, keys = judge(texts, own)
            for a, b in itertools.pairwise(own.tolist()):
                best = min(range(a, b), key=lambda i: (keys[i], int(members[i])))
                self._decide(captions, verdicts, members[a:b], texts[a:b], best - a, chosen, float(scores[best]))
                sizes[b - a] += 1
            verdicts.score[members] = scores
        verdicts.columns[self.column] = chosen
        verdicts.notes["things by their number of captions"] = {str(n): sizes[n] for n in sorted(sizes)}
        return verdicts

    def _decide(
        self, captions: Captions, verdicts: Verdicts, members: np.ndarray, texts: list[str], best: int,
        chosen: np.ndarray, score: float,
    ) -> None:  # fmt: skip
        """Say what becomes of the captions of one thing."""
        from captune.curation.dedup import normalised

        winner = int(members[best])
        if len(members) == 1:
            chosen[winner] = score
            verdicts.keep(winner, "the only one")
            return
        same = normalised(texts[best])
        of_image: dict[int, list[int]] = {}
        for place, index in enumerate(members.tolist()):
            of_image.setdefault(int(captions.rows[index]), []).append(place)
        for places in of_image.values():
            alike = [place for place in places if place == best or normalised(texts[place]) == same]
            stays = best if best in alike else next(iter(alike), places[0])
            index = int(members[stays])
            chosen[index] = score
            if alike:
                verdicts.keep(index, f"chosen by {self.choose}")
            else:
                verdicts.change(index, texts[best], "the consensus of the views")
                verdicts.other[index] = winner
            others = [int(members[place]) for place in places if place != stays]
            if others:
                verdicts.drop(np.array(others), f"another one is chosen by {self.choose}")
                verdicts.other[others] = winner

    def _things(self, captions: Captions) -> np.ndarray:
        """(N,) the number of each caption's thing, in the order in which they come."""
        if self.views is None:
            return captions.rows
        if self.views.startswith(COLUMN):
            name = self.views.removeprefix(COLUMN)
            if name not in captions.columns:
                have = ", ".join(captions.columns) or "no column of numbers"
                raise CurationError(f"views: {captions.source} has no column {name!r} of numbers; it has {have}")
            keys = captions.column(name)
            if not np.isfinite(keys).all():
                at = int(np.flatnonzero(~np.isfinite(keys))[0])
                raise CurationError(f"views: {captions.name(at)} has no number in the column {name!r}")
        else:
            pattern, ids = re.compile(self.views), captions.image_ids.to_pylist()
            found = [pattern.search(image_id) for image_id in ids]
            rows = np.unique(captions.rows).tolist()
            without = [ids[row] for row in rows if found[row] is None]
            if without:
                raise CurationError(
                    f"views: {self.views!r} is not in the ids of {len(without)} images, such as {without[0]!r}"
                )
            keys = np.array([match.group(1) if match else "" for match in found])[captions.rows]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        place = np.empty(len(first), dtype=np.int64)
        place[np.argsort(first, kind="stable")] = np.arange(len(first))
        return place[inverse.reshape(-1)]

    def _judge(self, captions: Captions, order: np.ndarray, starts: np.ndarray, verdicts: Verdicts) -> Any:
        """What gives scores, and keys of which the least is chosen, of the captions of several things."""
        if self.choose == "lift":
            return _Lift(captions)
        from captune.scorers import load_scorer

        scorer = load_scorer(f"consensus:{self.by}")
        scorer.check()
        similarity = scorer.similarity  # type: ignore[attr-defined]
        if similarity.needs_fit:
            scorer.fit(_lists(captions, order, starts))
        verdicts.notes["scorer"] = scorer.signature
        return _Agreement(scorer, self.choose == "frequency")


class _Agreement:
    """By the scorer `consensus`, and by equal texts.

    Args:
        scorer: `captune.scorers.text.consensus.Consensus`.
        frequency: whether equal texts come first.
    """

    def __init__(self, scorer: Any, frequency: bool) -> None:
        self.scorer, self.frequency = scorer, frequency

    def __call__(self, texts: Sequence[str], own: np.ndarray) -> tuple[np.ndarray, list[tuple[float, ...]]]:
        sizes = np.diff(own)
        thing = np.repeat(np.arange(len(sizes)), sizes)
        several = np.flatnonzero(sizes[thing] > 1)
        agreement = np.full(len(texts), np.nan)
        if len(several):
            chosen = [texts[i] for i in several.tolist()]
            agreement[several] = self.scorer.rows(chosen, image_id=thing[several].tolist())[:, 0]
        if not self.frequency:
            return agreement, [(-round(float(value), _DIGITS),) for value in agreement]
        from captune.curation.dedup import normalised

        said = [(int(at), normalised(text)) for at, text in zip(thing, texts, strict=True)]
        count = Counter(said)
        scores = np.array([count[key] for key in said]) / sizes[thing]
        return scores, [(-a, -round(float(b), _DIGITS)) for a, b in zip(scores.tolist(), agreement, strict=True)]


class _Lift:
    """By words that the captions of the thing have, and others have not."""

    def __init__(self, captions: Captions) -> None:
        self.total, self.have = len(captions), Counter[str]()
        for start in range(0, len(captions), _PART):
            for text in captions.texts(start, min(start + _PART, len(captions))):
                self.have.update(_words(text))

    def __call__(self, texts: Sequence[str], own: np.ndarray) -> tuple[np.ndarray, list[tuple[float, ...]]]:
        scores = np.zeros(len(texts))
        for a, b in itertools.pairwise(own.tolist()):
            words = [_words(text) for text in texts[a:b]]
            here = Counter(itertools.chain.from_iterable(words))
            for i, said in enumerate(words):
                lifts = [
                    here[w] / (b - a) * math.log(here[w] / (b - a) * self.total / self.have[w]) for w in sorted(said)
                ]
                scores[a + i] = sum(lifts) / len(lifts) if lifts else 0.0
        return scores, [(-round(score, _DIGITS),) for score in scores.tolist()]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _spans(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of things, last not included, that have about `_PART` captions together."""
    first = 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _PART, side="right")) - 1)
        yield first, last
        first = last


def _lists(captions: Captions, order: np.ndarray, starts: np.ndarray) -> Iterator[list[str]]:
    """The captions of each thing."""
    for first, last in _spans(starts):
        texts = captions.table["text"].take(order[starts[first] : starts[last]]).to_pylist()
        own = starts[first : last + 1] - starts[first]
        yield from (texts[a:b] for a, b in itertools.pairwise(own.tolist()))
