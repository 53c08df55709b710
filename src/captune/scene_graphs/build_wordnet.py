"""Build `wordnet.txt.xz` from a WordNet 3.0 database folder.

    python -m captune.scene_graphs.build_wordnet DICT_FOLDER

The folder holds data.noun, index.noun, noun.exc, cntlist.rev and their siblings: Debian's package wordnet-base has them
in /usr/share/wordnet, and wordnet.princeton.edu in dict/. The result is the whole of WordNet's words and synonym sets
without glosses and pointers, one synset a line:

    n06 hot_dog frank frankfurter* ...      part of speech, lexicographer file, words as WordNet spells them

A mark after a word, `*` or `*42`, says that this is the word's first (most frequent) sense in this part of speech, and
how often the word was seen in it, in all its senses, in WordNet's tagged texts. Lines `en agones agon` are the
exceptions to the rules of inflection.
"""

from __future__ import annotations

import lzma
import sys
from collections import Counter
from pathlib import Path

PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_SENSE_TYPES = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
TARGET = Path(__file__).with_name("wordnet.txt.xz")


def build(folder: Path) -> str:
    """Return the text of `wordnet.txt`, made from a WordNet database folder."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        word, _, sense = key.partition("%")
        counts[_SENSE_TYPES[sense[0]], word] += int(count)
    lines = []
    for part, name in PARTS.items():
        first = {}  # word -> the offset of its first sense
        for line in (folder / f"index.{name}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                first[fields[0]] = fields[-int(fields[2])]
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):
                continue
            offset, file, _, number, *rest = line.split(" | ")[0].split()
            names = [word.partition("(")[0] for word in rest[: 2 * int(number, 16) : 2]]  # galore(ip) -> galore
            marked = [
                f"{word}*{counts[part, word.lower()] or ''}" if first[word.lower()] == offset else word
                for word in names
            ]
            lines.append(f"{part}{file} {' '.join(marked)}")
        for line in (folder / f"{name}.exc").read_text(encoding="utf-8").splitlines():
            lines.append(f"e{part} {line}")
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_bytes(lzma.compress(build(Path(sys.argv[1])).encode(), preset=9 | lzma.PRESET_EXTREME))
