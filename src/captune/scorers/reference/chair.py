"""CHAIR: objects that a caption mentions and its image does not show (Rohrbach et al., EMNLP 2018)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import ScorerError
from captune.scorers import Scorer, check_references, safe_ratio
from captune.scorers._support import ptb
from captune.scorers._support.objects import read_by_image
from captune.utils.hashing import fingerprint

COCO = Path(__file__).with_name("coco_objects.json")


class Chair(Scorer):
    """Object hallucination: the share of the objects mentioned that the image does not show; lower is better.

        CHAIR_i = hallucinated objects mentioned / objects mentioned
        CHAIR_s = captions with a hallucinated object / captions
        recall  = objects of the image that its caption mentions / objects of the image

    counted over the whole corpus; `mentions` is the number of objects mentioned per caption, for a captioner that names
    nothing hallucinates nothing. An object mentioned twice is two mentions. A figure with nothing to divide by is 0.
    As a reward it is the caption's own CHAIR_i, to be subtracted: `cider - chair`.

        chair                               an image shows what its references mention
        chair:instances_val2014.json        and what COCO's instance annotations say
        chair:objects.jsonl                 and what a file of {image id: [objects]} says, JSON or a line per image
        chair:FILE?vocabulary=words.json    classes of objects with their synonyms, {"sofa": ["couch"], ...}

    The default vocabulary is the original's: COCO's 80 classes, their synonyms, and its rules for pairs of words. In a
    vocabulary, the class "" holds phrases that name no object, so that their words do not ("train track", "baby
    animal"); the longest phrase at a place counts. One rule is in the code: next to a toilet, a "seat" is no chair.

    Like the original, this takes any use of a word for the object: the colour "orange", the "bow" of a boat. Unlike
    it, words come from the PTB tokenizer that the other scorers use; plurals are undone by rules of our own, on
    captions and synonyms alike, which leave "bus" and "glass" whole; "motor bike", "cheesecake" and "iphone", which
    the original lists but cannot match, are matched; "stove top oven" is one mention, not two.
    """

    name = "chair"
    primary = "chair_i"
    higher_is_better: ClassVar = {"chair_i": False, "chair_s": False, "recall": True}
    labels: ClassVar = {
        "chair_i": "CHAIRi",
        "chair_s": "CHAIRs",
        "recall": "object recall",
        "mentions": "objects mentioned",
    }
    source = "Rohrbach et al., EMNLP 2018"
    cost = "0.1 ms"
    required_columns = ("references",)  # with a file: image_id, and references where there are any
    positional = ("file",)
    usage = "chair:objects.jsonl?vocabulary=words.json"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        file: Annotated[
            str,
            Field(
                description="objects of the images: COCO annotations, or JSON; default: those that references mention"
            ),
        ] = ""
        vocabulary: Annotated[
            str, Field(description="classes of objects with their synonyms, JSON; default: COCO's 80")
        ] = ""

    def __init__(self, argument: str | None = None) -> None:
        settings = self.read(argument)
        self.file = Path(settings.file).expanduser() if settings.file else None
        self.vocabulary_file = Path(settings.vocabulary or COCO).expanduser()
        if self.file:
            self.required_columns, self.optional_columns = ("image_id",), ("references",)  # of this object
        self._referenced = not self.file

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        for file, what in ((self.file, "objects of the images"), (self.vocabulary_file, "vocabulary")):
            if file and not file.is_file():
                raise ScorerError(f"scorer {self.name!r} needs the {what} in {file}, and there is no such file; write "
                                  "one with a JSON object of lists of names in it")  # fmt: skip

    @cached_property
    def classes(self) -> dict[str, str]:
        """{phrase in the singular: class}; "" is the class of phrases that name no object."""
        self.check()
        return _vocabulary(self.vocabulary_file)

    @cached_property
    def longest(self) -> int:
        """Words in the vocabulary's longest phrase."""
        return max((phrase.count(" ") + 1 for phrase in self.classes), default=1)

    @cached_property
    def truth(self) -> dict[str, frozenset[str]]:
        """{image id: classes} of the file."""
        assert self.file is not None
        self.check()
        found = _objects_by_image(self.file)
        return {key: frozenset(c for name in names for c in self.mentions(name)) for key, names in found.items()}

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

    def rows(
        self,
        captions: Sequence[str],
        *,
        references: Sequence[Sequence[str]] | None = None,
        image_id: Sequence[str] | None = None,
        **columns: Any,
    ) -> np.ndarray:
        """(N, 5): hallucinated mentions, mentions, whether any is hallucinated, objects recalled, objects there."""
        if self.file is None:
            check_references(self.name, references or [[]] * len(captions))
        self._referenced = references is not None and any(references)
        rows = np.zeros((len(captions), 5))
        for i, caption in enumerate(captions):
            there = {name for text in (references[i] if references else ()) for name in self.mentions(text)}
            if image_id is not None and self.file is not None:
                there |= self._of_image(image_id[i])
            mentioned = self.mentions(caption)
            false = sum(name not in there for name in mentioned)
            rows[i] = false, len(mentioned), false > 0, len(there & set(mentioned)), len(there)
        return rows

    def _of_image(self, image_id: str) -> frozenset[str]:
        key = _key(image_id)
        if key not in self.truth:
            known = next(iter(self.truth), "none")
            raise ScorerError(f"scorer {self.name!r}: {self.file} says nothing about image {image_id!r}; it has "
                              f"{len(self.truth)} images with ids like {known!r}")  # fmt: skip
        return self.truth[key]

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        return {
            "chair_i": safe_ratio(totals[..., 0], totals[..., 1]),
            "chair_s": totals[..., 2] / n,
            "recall": safe_ratio(totals[..., 3], totals[..., 4]),
            "mentions": totals[..., 1] / n,
        }

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return safe_ratio(rows[:, 0], rows[:, 1])

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        self.check()
        truth = [f"{self.file.name}@{fingerprint(self.file.read_bytes())}"] if self.file else []
        truth += ["references"] if self._referenced else []
        own = self.vocabulary_file != COCO
        vocabulary = (
            f"{self.vocabulary_file.name}@{fingerprint(self.vocabulary_file.read_bytes())}" if own else "coco80"
        )
        return f"chair|truth:{'+'.join(truth)}|vocabulary:{vocabulary}|tok:{ptb.VERSION}"


def _vocabulary(file: Path) -> dict[str, str]:
    content = _json(file, file.read_text(encoding="utf-8"))
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


def _objects_by_image(file: Path) -> dict[str, list[str]]:
    """{image id: names of objects} from COCO's instance annotations, {id: [names]}, or such objects line by line."""
    try:
        content = read_by_image(file)
    except ValueError as error:
        raise ScorerError(f"{file} is not JSON: {error}") from error
    if isinstance(content, dict) and {"annotations", "categories"} <= content.keys():
        try:
            return _coco(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ScorerError(
                f"{file}: COCO instance annotations lack a part or have another form ({error!r})"
            ) from error
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise ScorerError(f'{file} is neither COCO instance annotations nor {{"image id": ["object", ...]}}')
    return {_key(key): names for key, names in content.items()}


def _coco(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """An image without annotations has none; images can be asked for by number or by file name."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[str, list[str]] = {}
    for image in content.get("images", []):
        shared = objects.setdefault(_key(image["id"]), [])
        if "file_name" in image:
            objects[_key(image["file_name"])] = shared
    for annotation in content["annotations"]:
        objects.setdefault(_key(annotation["image_id"]), []).append(names[annotation["category_id"]])
    return objects


def _key(image_id: Any) -> str:
    """COCO's 42, "42" and "000000000042" are one image."""
    text = str(image_id)
    return str(int(text)) if text.isascii() and text.isdecimal() else text


def _json(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ScorerError(f"{file} is not JSON: {error}") from error


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
