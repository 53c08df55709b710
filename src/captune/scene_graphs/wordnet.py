"""WordNet 3.0's words, synonym sets and inflections, from the file beside this module (see build_wordnet.py)."""

from __future__ import annotations

import functools
import lzma
from collections import defaultdict
from pathlib import Path

DATA = Path(__file__).with_name("wordnet.txt.xz")
PARTS = "nvar"  # noun, verb, adjective, adverb
# (ending, what replaces it), tried in this order: WordNet's own rules of detachment
_ENDINGS = {
    "n": ("s-", "ses-s", "ves-f", "xes-x", "zes-z", "ches-ch", "shes-sh", "men-man", "ies-y"),
    "v": ("s-", "ies-y", "es-e", "es-", "ed-e", "ed-", "ing-e", "ing-"),
    "a": ("er-", "est-", "er-e", "est-e"),
    "r": (),
}
_RULES = {part: tuple(rule.split("-") for rule in rules) for part, rules in _ENDINGS.items()}


class WordNet:
    """Look-ups by word; words of several parts are joined by "_", as in "hot_dog". Made once: `wordnet()`."""

    def __init__(self, text: str) -> None:
        self._synsets: list[list[str]] = []  # the words of each, as WordNet spells them
        self._files: list[int] = []
        self._of: dict[str, dict[str, list[int]]] = {part: {} for part in PARTS}  # lower-case word -> its synsets
        self._first: dict[str, dict[str, tuple[int, int]]] = {part: {} for part in PARTS}  # -> first synset, count
        self._exceptions: dict[str, dict[str, list[str]]] = {part: defaultdict(list) for part in PARTS}
        for line in text.splitlines():
            head, *words = line.split(" ")
            if head[0] == "e":
                self._exceptions[head[1]][words[0]] += words[1:]
                continue
            part, number, names = head[0], len(self._synsets), []
            for marked in words:
                name, star, count = marked.partition("*")
                names.append(name)
                self._of[part].setdefault(name.lower(), []).append(number)
                if star:
                    self._first[part][name.lower()] = number, int(count or 0)
            self._synsets.append(names)
            self._files.append(int(head[1:]))

    def forms(self, word: str, part: str) -> list[str]:
        """The dictionary forms that `word` may be an inflection of, itself first where it is one."""
        known, exceptions = self._of[part], self._exceptions[part]
        if word in exceptions:
            candidates = exceptions[word]
        else:
            candidates = [word[: -len(old)] + new for old, new in _RULES[part] if word.endswith(old)]
        return [form for form in dict.fromkeys([word, *candidates]) if form in known]

    def lemma(self, word: str, part: str) -> str:
        """The shortest dictionary form, the word itself where it has none (as NLTK's WordNetLemmatizer does)."""
        return min(self.forms(word, part), key=len, default=word)

    def count(self, lemma: str, part: str) -> int | None:
        """How often the lemma was seen as this part of speech in WordNet's tagged texts; None: it cannot be it."""
        found = self._first[part].get(lemma)
        return None if found is None else found[1]

    def file(self, lemma: str, part: str = "n") -> int | None:
        """The lexicographer file (nouns: 5 animals, 6 artifacts, 18 persons ...) of the most frequent sense."""
        found = self._first[part].get(lemma)
        return None if found is None else self._files[found[0]]

    @functools.lru_cache(maxsize=100_000)  # noqa: B019 (one object per process)
    def synsets(self, word: str) -> frozenset[int]:
        """Every synonym set that the word, of any part of speech and inflection, belongs to."""
        word = word.lower().replace(" ", "_")
        return frozenset(s for part in PARTS for form in self.forms(word, part) for s in self._of[part][form])

    @functools.lru_cache(maxsize=100_000)  # noqa: B019
    def synonyms(self, word: str) -> frozenset[str]:
        """The words, as WordNet spells them, of all those synonym sets."""
        return frozenset(name for synset in self.synsets(word) for name in self._synsets[synset])


@functools.cache
def wordnet() -> WordNet:
    """Read from disk at first use (about a second)."""
    return WordNet(lzma.decompress(DATA.read_bytes()).decode())
