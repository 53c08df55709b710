"""Words and their parts of speech: a hidden Markov model over WordNet's counts with a hand-written grammar of tags.

Tags are letters: D determiner, A adjective, N noun, V finite or base verb, G -ing form, E past form, R adverb,
P preposition, C conjunction, O pronoun, B be/have/do/modal, M number, T "to", W relative word, K comma, X end of a
sentence. How likely a word is under an open tag comes from WordNet's tagged texts; which tag follows which is the
table below, rough weights that were set by hand.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence

from captune.scene_graphs.wordnet import wordnet

TAGS = "DANVGERPCOBMTWKX"
_NEXT = {
    "X": "D8 A2 N3 V.3 G.5 E.3 R1 P2 C1 O3 B.3 M1 T.3 W.5",
    "D": "N10 A5 E.7 R.6 G.5 M.5",
    "A": "N10 A2 K1 X1 C.8 P.8 T.2 R.1 G.1 E.1 M.1 V.05",
    "N": "P5 X3 K3 B2.5 C2 N1.8 V1.2 G1.2 E1.2 W.8 R.5 T.4 A.15 D.1 O.1 M.1",
    "V": "D5 P3 N1.5 A1 R1 O.7 X.5 M.3 K.3 T.3 C.3 G.1 E.1",
    "G": "D4 P4 N1.5 A1 R1 X.7 K.5 O.5 C.4 T.4 M.3",
    "E": "P6 N.8 D.7 R.7 X.7 K.6 C.6 A.5 T.5 M.2 G.1",
    "R": "A2.5 P2 E1.5 G1 V1 D1 X1 K1 R.6 C.5 M.3 N.3 B.3",
    "P": "D8 N3 A2 M.7 G.7 O.6 P.3 W.3 E.2 R.2",
    "C": "D3 N3 A2 O.8 V.7 G.7 P.7 E.6 R.6 B.5 M.4",
    "O": "B4 V4 P1 X1 K.7 R.6 G.3 W.3 E.2",
    "B": "B4 E3 G3 D2.5 A2 P2 R1.5 V1.5 N.5 M.5 T.3 O.2",
    "M": "N8 A2 P.6 X.5 K.5 G.3 E.3",
    "T": "V8 B1.5 D1 N.5 A.2",
    "W": "B4 V3 D1.5 O1 N.8 P.3 G.2",
    "K": "D3 C2 A1.5 N1.5 P1.5 W1 G1 R.8 O.8 E.7 M.4 V.3 B.3",
}
_CLOSED = {
    "D": """a an the this these those some any every each my your his her its our their no another other both all
        several many few various such more most same multiple numerous certain either neither half whose what
        whole entire first second third last next""",
    "P": """of in on at with without by from for into onto upon over under above below beneath behind beside besides
        between among amongst amid against along alongside across around through throughout toward towards near
        inside outside underneath atop within past down up off during before after as like than about via per
        beyond""",
    "C": "and or but nor & plus",
    "O": "it he she they we you i them him us me one ones something someone anything there everything itself",
    "B": """is are was were be been being am has have had having do does did can could will would may might must
        should shall 's isn't aren't doesn't don't wasn't can't cannot""",
    "T": "to",
    "W": "that which who whom where when while because if so whereas although though since until",
    "R": """not n't very also just quite slightly mostly almost only too here then now together away apart out
        upwards downwards forward forwards outwards inwards sideways horizontally vertically mainly rather
        somewhat""",
    "M": "two three four five six seven eight nine ten eleven twelve dozen hundred zero couple-of",
    "K": ', ( ) [ ] : " “ ” — –',
    "X": ". ; ! ? …",
}
# words of the lists above that are open-class words, too, and words that WordNet counts in senses captions lack
_ALSO = {
    "PV": "like",
    "PN": "past",
    "PR": "down up off around inside outside behind over along across",
    "P": "near as",
    "OMD": "one",
    "WDO": "that",
    "DO": "this these those all both each some another several many few her",
    "DR": "most more",
    "DN": "other half",
    "O": "others",
    "OR": "there",
    "TP": "to",
    "DA": "last second",
    "RP": "out",
    "D": "no",
    "BN": "can",
    "CN": "plus",
    "WR": "so",
    "NA": "front top light",
    "NR": "back",
    "NAE": "left",
    "NAR": "right",
    "AR": "close",
    "AN": "white black red green blue orange brown yellow",
    "A": "pink purple gray grey wooden upper",
    "R": "well",
    "N": "plant plants picture water building buildings glasses people ground bottom side hand hands park street",
    "VN": "saw show",
    "NV": "leaves",
    "NE": "set",
    "E": "found made",
    "AV": "open",
    "V": "shows",
}
_TOTALS = {"N": 88_000, "V": 36_000, "G": 13_000, "E": 28_000, "A": 31_000, "R": 23_000}  # WordNet's tagged texts
_SHARES = {"V": 0.45, "G": 0.18, "E": 0.37}  # of a verb's occurrences
_UNSEEN = 0.3 / 88_000  # added to each frequency
_NOUNS = 2.0  # captions name more things than WordNet's texts do
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:[-'’][^\W\d_]+)*|'s|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and signs; possessive endings ("dog's") apart."""
    found = []
    for word in _WORD.findall(text.lower().replace("’", "'")):
        if word.endswith("'s") and len(word) > 2:
            found += [word[:-2], "'s"]
        else:
            found.append(word)
    return found


@functools.lru_cache(maxsize=50_000)
def candidates(word: str) -> dict[str, float]:
    """Return tag -> the word's log-probability under the tag."""
    if "_" in word:  # several words that make one preposition
        return {"P": math.log(0.01)}
    closed = _closed().get(word)
    if closed:
        return {tag: math.log(0.01) for tag in closed}
    if word[0].isdigit():
        return {"M": math.log(0.01)}
    if not word[0].isalpha():
        return {"K": math.log(0.01)}
    counts = _counts(word) or _counts(word.replace("-", "_")) or _guess(word)
    return {
        tag: math.log((count / _TOTALS[tag] + _UNSEEN) * (_NOUNS if tag == "N" else 1.0))
        for tag, count in counts.items()
    }


@functools.cache
def _closed() -> dict[str, str]:
    return {word: tags for table in (_CLOSED, _ALSO) for tags, text in table.items() for word in text.split()}


def _counts(word: str) -> dict[str, float]:
    net, found = wordnet(), {}
    for tag, part in (("N", "n"), ("A", "a"), ("R", "r")):
        forms = net.forms(word, part)
        if forms:
            found[tag] = float(max(net.count(form, part) or 0 for form in forms))
    for form in net.forms(word, "v"):
        tag = "G" if word.endswith("ing") and form != word else "V" if word in (form, form + "s", form + "es") else "E"
        if form.endswith("y") and word == form[:-1] + "ies":
            tag = "V"
        found[tag] = max(found.get(tag, 0.0), _SHARES[tag] * (net.count(form, "v") or 0))
    return found


def _guess(word: str) -> dict[str, float]:
    """An unknown word by its ending; a compound by its last part."""
    last = word.rpartition("-")[2]
    if last != word and last:
        if last.endswith(("ed", "ing", "like", "style", "shaped", "sized", "up", "toned", "free")):
            return {"A": 2.0, "N": 0.2}
        return {"A": 1.0, "N": 1.0}
    endings = (
        ("ly", "R"),
        ("ing", "G"),
        ("ed", "E"),
        ("ish", "A"),
        ("ous", "A"),
        ("ful", "A"),
        ("less", "A"),
        ("able", "A"),
        ("like", "A"),
    )
    tag = next((tag for ending, tag in endings if word.endswith(ending)), "N")
    return {tag: 1.0, "N": 0.3} if tag != "N" else {"N": 1.0, "A": 0.1}


@functools.cache
def _transitions() -> dict[str, dict[str, float]]:
    table = {}
    for tag, row in _NEXT.items():
        weights = {item[0]: float(item[1:]) for item in row.split()}
        weights = {other: weights.get(other, 0.02) for other in TAGS}
        total = sum(weights.values())
        table[tag] = {other: math.log(weight / total) for other, weight in weights.items()}
    return table


def tag(tokens: Sequence[str], fixed: Mapping[int, str] | None = None) -> list[str]:
    """Return the most likely tag of each word of one sentence (Viterbi); ties go to the first in TAGS.

    Args:
        tokens: the words.
        fixed: tags that are known, by the word's index.
    """
    fixed = fixed or {}
    table = _transitions()
    best: dict[str, tuple[float, list[str]]] = {"X": (0.0, [])}
    for i, token in enumerate(tokens):
        known = {fixed[i]: math.log(0.01)} if i in fixed else candidates(token)
        best = {
            tag: max(
                ((score + table[before][tag] + p, [*path, tag]) for before, (score, path) in best.items()),
                key=lambda found: found[0],
            )
            for tag, p in sorted(known.items(), key=lambda item: TAGS.index(item[0]))
        }
    return max(best.values(), key=lambda found: found[0] + table[found[1][-1] if found[1] else "X"]["X"])[1]
