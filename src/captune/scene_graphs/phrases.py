"""From tagged words to phrases: noun phrases with their modifiers, relation words, and what stands between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from captune.scene_graphs.tagger import candidates, tag, words
from captune.scene_graphs.wordnet import wordnet


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SENTENCE = re.compile(r"[.!?;…]+(?=\s|$)|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_PLACE = r"left|right|top|bottom|front|back|middle|center|centre|side|edge|corner|end|rear|foot|base|inside|outside|tip"
_LOCATION = (
    rf"(?:(?:far|very|upper|lower|other|opposite|either|both|each|right|left|hand|top|bottom|-)[ -])*(?:{_PLACE})s?"
)
_AT = r"(?:to|on|at|in|along|from|near|towards?)"
# expressions that are one preposition; what the match is called in a relation
_PREPOSITIONS = (
    (
        re.compile(
            r"\b(in front|on top|on the top|at the top|on the front|on the back|on the bottom|at the bottom) of\b"
        ),
        lambda m: f"{m[1].replace('the ', '')} of",
    ),
    (
        re.compile(rf"\b{_AT} (?:the |its |his |her )?({_LOCATION})(?: hand)?(?: sides?)? of\b"),
        lambda m: f"{re.findall(_PLACE, m[1])[0]} of",
    ),
    (re.compile(r"\b(left|right|inside|outside|ahead|on board) of\b"), lambda m: f"{m[1]} of"),
    (re.compile(r"\b(next|close|adjacent|attached|parallel|perpendicular) to\b"), lambda m: f"{m[1]} to"),
    (re.compile(r"\b(out|off|up|down|away) (of|from|against|into|on|onto|to)\b"), lambda m: f"{m[1]} {m[2]}"),
    (re.compile(r"\b(along|together) with\b"), lambda m: "with"),
)
_MEDIA = r"(?:picture|image|photo|photograph|frame|shot|scene|view|picture frame)s?"
# expressions that say where in the picture something is, or how it was taken: they relate no two objects
_ADVERBIALS = re.compile(
    rf"\b(?:{_AT}|across|of) (?:the |its |this |either |a )?"
    rf"(?:{_LOCATION}(?: (?:portion|part|section|area|half|hand side))? of (?:the |this )?{_MEDIA}|"
    rf"(?:{_LOCATION}|background|foreground|distance|{_MEDIA}|daytime|display|air|(?:[a-z]+ )?colou?r)(?=$| (?:[^\w\s]|"
    r"[a-z]+ing\b|(?:and|or|but|is|are|was|were|has|have|that|which|with|there|in|on|at|to|by|behind|the|a|an|we|i|it)\b)))"
)
_VAGUE = _words(
    """side top bottom front back left right middle center centre edge corner end rear part portion section area view
    background foreground distance picture image photo photograph frame shot scene camera way kind type sort
    direction lot other one thing something everything angle half rest time day order it color colour shape size
    style use majority variety number none medium close-up fashion manner position place case fact addition
    line-up shade"""
)
_MEASURES = _words(
    """group pair couple number bunch lot row set variety piece series collection stack pile cluster line patch bit
    crowd herd flock type kind sort view shot picture image photo photograph close-up part portion section
    majority rest half top bottom side front back edge corner end middle center one some all each both many few
    several most none any amount slice cup glass bowl plate layer field reflection"""
)
_CONTAINERS = _words("cup glass bowl plate field crowd reflection layer")
_PLURAL = _words("glasses sunglasses pants trousers shorts jeans tights overalls clothes headphones scissors")
_NO_ATTRIBUTES = _words("visible able seen made similar different actual medium due such")
COLOURS = _words(
    """red orange yellow green blue purple pink white black brown gray grey beige tan gold silver teal maroon
    turquoise violet navy cream golden"""
)
_SHADES = _words("light dark bright pale deep vivid off")
NEGATIONS = frozenset(("no", "without", "not", "n't", "never", "doesn't", "don't", "isn't", "aren't", "wasn't"))
#: noun.act, cognition, event, feeling, motive, process, relation, state, time: what a picture does not show
_ABSTRACT = frozenset((4, 9, 11, 12, 16, 22, 24, 26, 28))
_DONE = frozenset((4, 10, 11))  #: noun.act, communication, event: what a participle may be as a noun
_SHOWN = _words(
    """game match party parade reflection wedding race class exercise sport ride crack opening drawing painting
    writing graffiti street picture stripe stitch wave crossing crosswalk wear makeup shade shadow damage tear
    hole"""
)


@dataclass
class Phrase:
    """A piece of a sentence. kind: NP, A (adjectives of a predicate), "not", or a tag of the tagger."""

    kind: str
    text: str = ""  # an NP's head, a preposition, a verb's dictionary form; "" for an NP that names no object
    modifiers: list[str] = field(default_factory=list)
    pronoun: bool = False
    owned: bool = False  # "its stem"
    negated: bool = False


def sentences(text: str) -> list[str]:
    """Split a text into its sentences."""
    return [part for part in _SENTENCE.split(text) if part and part.strip()]


def phrases(sentence: str) -> list[Phrase]:
    """Return the phrases of one sentence in order; adverbs and numbers are left out."""
    tokens, names = _tokens(sentence)
    tags = tag(tokens)
    if activities := _activities(tokens, tags):
        subjects = (i - 1 for i in activities)
        tags = tag(tokens, dict.fromkeys(subjects, "N") | dict.fromkeys(activities, "G"))
    for i in range(len(tokens) - 1):  # "a blue striped ball", "a red and white dress"
        beyond = i + 2 if tags[i + 1] in "KC" and i + 2 < len(tokens) else i + 1
        if tokens[i] in COLOURS and (
            tags[beyond] in "AGE" or tags[i + 1] == "N" or (beyond > i + 1 and tokens[beyond] in COLOURS)
        ):
            tags[i] = "A"
    found: list[Phrase] = []
    i = 0
    while i < len(tokens):
        end = _noun_phrase_end(tokens, tags, i)
        if end > i:
            found.extend(_noun_phrases(tokens[i:end], tags[i:end], found))
            i = end
            continue
        token, letter = tokens[i], tags[i]
        if token in NEGATIONS:
            found.append(Phrase("not"))
        elif letter == "A" or (token in COLOURS and letter == "N"):
            found.append(Phrase("A", modifiers=_adjectives([token])))
        elif letter == "O":
            found.append(Phrase("NP", pronoun=token in ("it", "they", "he", "she", "them", "him"), text=""))
        elif letter in "VGE":
            found.append(Phrase(letter, verb(token)))
        elif letter in "PT":
            found.append(Phrase("P", names.get(token, token)))
        elif letter not in "RM":
            found.append(Phrase(letter, token))
        i += 1
    return found


def _activities(tokens: list[str], tags: list[str]) -> list[int]:
    """Indices of participles that WordNet has as nouns, too, behind their subject: "two bears growling on a log".

    A noun of a thing ("building", "painting"), of a compound ("horse racing") or before its noun ("parking lot") is
    none.
    """
    net = wordnet()
    return [
        i
        for i in range(1, len(tokens))
        if tags[i] == "N"
        and tokens[i].endswith("ing")
        and tokens[i] not in _SHOWN
        and tags[i - 1] in "NV"
        and "N" in candidates(tokens[i - 1])
        and tags[i + 1 : i + 2] != ["N"]
        and verb(tokens[i]) != tokens[i]
        and net.file(tokens[i]) in _DONE
        and net.count(f"{noun(tokens[i - 1])}_{tokens[i]}", "n") is None
    ]


def _tokens(sentence: str) -> tuple[list[str], dict[str, str]]:
    """Words, with each expression of several words that is a preposition as one of them, and the names of those."""
    text, names = " ".join(words(sentence)).replace(" - ", "-"), {}
    text = _ADVERBIALS.sub(" ", text)
    for pattern, name in _PREPOSITIONS:
        for match in list(pattern.finditer(text)):
            names[match[0].replace(" ", "_")] = name(match)
        text = pattern.sub(lambda match: match[0].replace(" ", "_"), text)
    return text.split(), names


def _noun_phrase_end(tokens: list[str], tags: list[str], start: int) -> int:
    """Where the noun phrase that starts here ends: a determiner or modifiers, then nouns. `start`: there is none."""
    i, last_noun = start, start
    while i < len(tokens):
        if tags[i] == "N" or (tokens[i] == "'s" and last_noun == i) or (tags[i] in "AD" and tokens[i - 1] == "'s"):
            last_noun = i + 1
        elif last_noun > start or not _before_noun(tokens, tags, start, i):
            break
        i += 1
    if tags[start] in "GE" and last_noun > start and not _modifies(tokens, tags, start):
        return start
    if last_noun == start and tags[start] == "D" and tokens[start] not in NEGATIONS:
        return start + 1  # "each", "the other"
    return last_noun


def _before_noun(tokens: list[str], tags: list[str], start: int, i: int) -> bool:
    """Whether word i may stand in a noun phrase that started before its noun."""
    if tags[i] == "R":
        return i > start and tokens[i] not in NEGATIONS
    if tags[i] in "KC":  # "a red, shiny ball", "a red and white ball"
        return i > start and tags[i - 1] == "A" and _more(tags, i + 1)
    return tags[i] in "DMAGE"


def _more(tags: list[str], i: int) -> bool:
    """Whether adjectives and then a noun follow, and nothing else before it."""
    while i < len(tags) and tags[i] in "AE":
        i += 1
    return i < len(tags) and tags[i] == "N"


def _modifies(tokens: list[str], tags: list[str], i: int) -> bool:
    """Whether a participle that starts a noun phrase belongs to it ("parked cars") rather than governing it."""
    before = tags[i - 1] if i else "X"
    return tags[i + 1] in "NAE" and before in "XKCPDB" and not (tags[i] == "G" and before in "BX")


def _noun_phrases(tokens: list[str], tags: list[str], before: list[Phrase]) -> Iterator[Phrase]:
    """The phrases of one run of words: a possessor ("the dog's"), then what it possesses."""
    negated = tokens[0] == "no" or (bool(before) and (before[-1].kind == "not" or before[-1].text == "without"))
    if "'s" in tokens:
        cut = tokens.index("'s")
        yield from _noun_phrases(tokens[:cut], tags[:cut], before) if cut else ()
        yield Phrase("P", "'s")
        tokens, tags = tokens[cut + 1 :], tags[cut + 1 :]
    content = [token for token, letter in zip(tokens, tags, strict=True) if letter in "AGEN"]
    nouns = 0
    while nouns < len(content) and tags[len(tokens) - 1 - nouns] == "N":
        nouns += 1
    if content and not nouns and wordnet().forms(content[-1], "n") and content[-1] not in COLOURS:
        nouns = 1  # "the car's key"
    if not nouns:
        yield Phrase("NP", negated=negated)
        return
    if nouns == len(content) == 1 and content[0] in COLOURS and tags[0] == "N":  # "it is long and black"
        yield Phrase("A", modifiers=content)
        return
    head, rest = _head(content[-nouns:])
    if head in COLOURS and not rest:
        yield Phrase("A", modifiers=_adjectives([*content[:-nouns], head]))
        return
    modifiers = _adjectives(content[:-nouns]) + [noun(word) for word in rest]
    yield Phrase("NP", head, modifiers, owned=tokens[0] in ("its", "their", "his", "her"), negated=negated)


def _head(nouns: list[str]) -> tuple[str, list[str]]:
    """The object that a run of nouns names, and the nouns that modify it: the longest compound that WordNet knows."""
    net = wordnet()
    for start in range(max(0, len(nouns) - 3), len(nouns) - 1):
        compound = "_".join([*nouns[start:-1], noun(nouns[-1])])
        if net.count(compound, "n") is not None:
            return compound.replace("_", " "), nouns[:start]
    return noun(nouns[-1]), nouns[:-1]


def noun(word: str) -> str:
    """The dictionary form of a noun: WordNet's shortest, but "glasses" are no glass."""
    return word if word in _PLURAL else wordnet().lemma(word, "n")


def verb(word: str) -> str:
    """The most frequent dictionary form of a verb: "rides" is of "ride", not of "rid"."""
    net = wordnet()
    return max(net.forms(word, "v"), key=lambda form: net.count(form, "v") or 0, default=word)


def _adjectives(found: list[str]) -> list[str]:
    """Attributes; a shade and its colour are one ("dark blue")."""
    attributes: list[str] = []
    for word in found:
        if attributes and attributes[-1] in _SHADES and word in COLOURS:
            attributes[-1] += f" {word}"
        else:
            attributes.append(wordnet().lemma(word, "a"))
    return [attribute for attribute in attributes if attribute not in _NO_ATTRIBUTES]


def is_measure(word: str) -> bool:
    """Whether "word of X" is about X: "a group of people"."""
    return word in _MEASURES and word not in _CONTAINERS


def is_object(noun: str) -> bool:
    """Whether the noun names something that a picture can show."""
    if not noun or noun in _VAGUE:
        return False
    if noun in _SHOWN:
        return True
    net, last = wordnet(), noun.rpartition(" ")[2]
    file = net.file(noun.replace(" ", "_"))
    if file is None:
        file = net.file(last)
    return file not in _ABSTRACT
