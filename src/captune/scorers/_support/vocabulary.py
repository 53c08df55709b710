"""Classes of objects with their synonyms, and which of them a text mentions."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from captune.errors import ScorerError
from captune.scorers._support import ptb
from captune.utils.files import read_json

COCO = Path(__file__).with_name("coco_objects.json")


class Vocabulary:
    """Classes of objects, found in texts by the longest phrase at a place; see `captune.scorers.reference.chair`.

    Args:
        file: a JSON object {"class": ["synonym", ...]}; default: COCO's 80 classes with CHAIR's synonyms.

    Attributes:
        classes: {phrase in the singular: class}; "" is the class of phrases that name no object.
        longest: words in the longest phrase.

    Raises:
        ScorerError: the file is something else, or a phrase is in two classes.
    """

    def __init__(self, file: Path = COCO) -> None:
        self.classes = _read(file)
        self.longest = max((phrase.count(" ") + 1 for phrase in self.classes), default=1)

    def mentions(self, text: str) -> list[str]:
        """The class of each object that a text mentions, in order, repetitions included."""
        words = [singular(word) for word in ptb.words(text)]
        found: list[tuple[str, str]] = []
        place = 0
        while place < len(words):
            phrases = (" ".join(words[place : place + n]) for n in range(min(self.longest, len(words) - place), 0, -1))
            phrase = next((p for p in phrases if p in self.classes), "")
            if phrase:
                found.append((phrase, self.classes[phrase]))
            place += phrase.count(" ") + 1
        said = {phrase for phrase, _ in found}
        on_toilet = not said.isdisjoint({"toilet", "toilet seat"})
        return [name for phrase, name in found if name and not (on_toilet and phrase == "seat")]

    def named(self, label: str) -> list[str]:
        """The class of the longest phrase that ends a label: a dog bed is a bed, and a ski boot no object.

        Of a label that lists names ("mouse, computer mouse") each counts; what is in brackets after one does not.
        """
        found = []
        for name in [label, *re.split("[,;]", re.sub(r"\(.*?\)", " ", label))]:
            words = [singular(word) for word in ptb.words(name)]
            phrases = (" ".join(words[place:]) for place in range(len(words)))
            found.append(next((self.classes[phrase] for phrase in phrases if phrase in self.classes), ""))
        return [name for name in found if name]


def _read(file: Path) -> dict[str, str]:
    content = read_json(file, error=ScorerError)
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise ScorerError(f'vocabulary {file} must be a JSON object {{"class": ["synonym", ...], ...}}')
    classes: dict[str, str] = {}
    for name, synonyms in content.items():
        for phrase in [name, *synonyms] if name else synonyms:
            key = " ".join(singular(word) for word in ptb.words(phrase))
            if classes.setdefault(key, name) != name:
                raise ScorerError(f"vocabulary {file}: {phrase!r} is in two classes, {classes[key]!r} and {name!r}")
    return classes


# Plurals, as far as names of things go. First the words that have no rule, or that a rule would get wrong.
_SAME = """series species news lens gas canvas christmas atlas pajamas pyjamas was has as its always perhaps
    specimen omen abdomen ramen semen regimen stamen amen"""
_IRREGULAR = {
    "people": "person", "peoples": "person", "children": "child", "grandchildren": "grandchild", "mice": "mouse",
    "geese": "goose", "teeth": "tooth", "feet": "foot", "oxen": "ox", "dice": "die", "lice": "louse", "lenses": "lens",
    "gases": "gas", "skis": "ski", "taxis": "taxi", "kiwis": "kiwi", "bikinis": "bikini", "zucchinis": "zucchini",
    "safaris": "safari", "axes": "axe", "aches": "ache", "headaches": "headache", "moustaches": "moustache",
    "mustaches": "mustache", "caches": "cache", "avalanches": "avalanche", "quiches": "quiche", "quizzes": "quiz",
    "cacti": "cactus", "irises": "iris", "cookies": "cookie", "movies": "movie", "selfies": "selfie",
    "hoodies": "hoodie", "brownies": "brownie", "smoothies": "smoothie", "zombies": "zombie", "rookies": "rookie",
    "birdies": "birdie", "collies": "collie", **{word: word for word in _SAME.split()},
}  # fmt: skip
_PLURALS = [  # the first that fits
    (re.compile(plural), ending)
    for plural, ending in (
        (r"men$", "man"),
        (r"^([dlptv])ies$", r"\1ie"),  # ties
        (r"ies$", "y"),
        (r"(cal|hal|lea|loa|thie|shel|sel|wol|hoo|scar|dwar|whar|^el)ves$", r"\1f"),
        (r"(kni|wi|^li)ves$", r"\1fe"),  # not gloves, sleeves, olives
        (r"(ss|sh|ch|zz|x)es$", r"\1"),
        (r"([bcmnprtl]us)es$", r"\1"),  # buses, not houses
        (r"((?:sh|can|ob|ipt|^t|^h)oe)s$", r"\1"),  # shoes, canoes
        (r"oes$", "o"),
        (r"(?<![sui'])s$", ""),  # not glass, bus, tennis, 's
    )
]


@lru_cache(maxsize=2**16)
def singular(word: str) -> str:
    """The singular of an English noun in lower case; a word that is no plural comes back as it is, nearly always."""
    if word in _IRREGULAR or len(word) < 3:
        return _IRREGULAR.get(word, word)
    for plural, ending in _PLURALS:
        changed, times = plural.subn(ending, word)
        if times:
            return changed
    return word
