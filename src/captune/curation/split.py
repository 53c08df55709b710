"""`split`: long captions into sentences, each a caption of its own.

DreamLIP (Zheng et al., ECCV 2024) takes each sentence of a long caption for a caption of the image; its code splits at
every full stop, also inside 1.5 and "e.g.". Here a sentence ends at . ! or ? (with closing quotes) that a space and the
beginning of a new one follow, not after an abbreviation, an initial or a number's point; and at a line break. With
`clauses` it ends at semicolons, and before "while", "and", "but", "with" after a comma, too. A `filter` behind it gives
each part a score of its own: the false sentence of a long caption leaves, the others stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from captune.curation.base import Captions, Verdicts, Work, setting

_AT_ONCE = 65_536
_TITLES = "mr mrs ms dr prof st mt sr jr gen col sgt capt lt gov sen rev hon e.g i.e eg ie cf vs"
_AT_THE_END = "etc approx ca co inc ltd dept est ft a.m p.m u.s u.k jan feb mar apr jun jul aug sep sept oct nov dec"
#: ends no sentence
BEFORE_A_NAME = frozenset(_TITLES.split())
#: ends one where a capital letter follows
ANYWHERE = frozenset(_AT_THE_END.split())
#: ends none where a number follows
BEFORE_A_NUMBER = frozenset({"no", "nos", "fig", "figs", "vol", "p", "pp", "ch"})
_END = re.compile(r"""([.!?]+["'\u201d\u2019)\]]*)\s+(?=["'\u201c\u2018(\[]*[^\W_])|\s*[\r\n\u2028\u2029]+\s*""")
_CLAUSE = re.compile(r"\s*;\s+|,\s+(?=(?:while|and|but|with)\s)", re.IGNORECASE)
_WORD = re.compile(r"[^\s(\[\"'\u201c\u2018]+$")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Split long captions into their sentences, each a caption of its own (DreamLIP)."""

    example = "captune curate split dense.jsonl --longer 20 --output runs/sentences"

    longer: Annotated[int, Field(ge=0)] = setting("captions of more words than that are split", 0)
    shortest: Annotated[int, Field(ge=1)] = setting("words that a part has at least; shorter ones join a neighbour", 3)
    clauses: bool = setting("split into clauses, not only into sentences", False)

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts."""
        verdicts = Verdicts(len(captions))
        for start in range(0, len(captions), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(captions))
            for index, text in enumerate(captions.texts(start, stop), start=start):
                if len(text.split()) <= self.longer:
                    continue
                parts = joined(sentences(text, clauses=self.clauses), self.shortest)
                if len(parts) > 1:
                    verdicts.split(index, parts, f"{'clauses' if self.clauses else 'sentences'} of their own")
        sizes = np.bincount([len(parts) for parts in verdicts.texts.values()]).tolist() if verdicts.texts else []
        verdicts.notes["captions by their number of parts"] = {n: count for n, count in enumerate(sizes) if count}
        return verdicts


def sentences(text: str, *, clauses: bool = False) -> list[str]:
    """Return the sentences of a text, in order; only the space between them is lost, and the mark between clauses.

    Args:
        text: a caption.
        clauses: split at the marks between clauses, too.
    """
    parts: list[str] = []
    start = 0
    for match in _END.finditer(text):
        mark = match.group(1)
        if mark == "." and _is_abbreviation(text[start : match.start()], text[match.end() :]):
            continue
        parts.append(text[start : match.start()] + (mark or ""))
        start = match.end()
    parts.append(text[start:])
    if clauses:
        parts = [clause for part in parts for clause in _CLAUSE.split(part)]
    return [part.strip() for part in parts if part.strip()]


def _is_abbreviation(before: str, after: str) -> bool:
    """Whether the full stop between two texts belongs to a word."""
    found = _WORD.search(before)
    word = found.group().lower() if found else ""
    if len(word) == 1 and word.isalpha() and found and found.group().isupper() and word != "i":  # an initial
        return True
    next_one = after.lstrip("\"'\u201c\u2018([")[:1]
    if word in BEFORE_A_NUMBER:
        return next_one.isdigit()
    return word in BEFORE_A_NAME or (word in ANYWHERE and not next_one.isupper())


def joined(parts: Sequence[str], shortest: int) -> list[str]:
    """Return the parts, of which those with fewer words than `shortest` stand with the one before, or the next."""
    made: list[str] = []
    for part in parts:
        if made and (len(part.split()) < shortest or len(made[-1].split()) < shortest):
            made[-1] = f"{made[-1]} {part}"
        else:
            made.append(part)
    return made
