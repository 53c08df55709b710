"""Species and breed: hierarchical classification of the image from its caption alone (CIM, section 3.1, Table 1)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from captune.errors import ScorerError
from captune.models.answerers import Question, one_line
from captune.scorers.questions.base import QuestionScorer
from captune.utils.files import parse_json
from captune.utils.hashing import fingerprint
from captune.utils.tables import header_of, refuse_repeated, rows_of

NOT_STATED = "not stated in the caption"
CHOICES = 19  # and "not stated": 20 letters, whose probabilities a server shows all
PROMPT = """\
Tell from its caption alone what an image shows.
Caption: "{caption}"
Which {level} is it?
{choices}
Answer with just the letter:"""

Labels = dict[str, tuple[str, ...]]


class Species(QuestionScorer):
    """Species and breed: the share of captions from which a language model tells the image's class, level by level.

        <level>_acc = #{captions whose class at this level is told right} / N,   "not stated" is not right

    The finest level comes first and is each caption's score. Beside each: `<level>_stated`, the share of captions that
    state a class at all, and `<level>_acc_stated`, the accuracy among those (0 where no caption states one). CIM's
    Table 1 has species_acc and breed_acc on Oxford-IIIT Pet (2 species, 37 breeds).

    The model chooses among lettered classes and "not stated in the caption". What CIM leaves open: at the coarsest
    level all labels of the file are offered, below it those under the class that was *chosen* above, so that the truth
    is never given away; what follows a wrong class is wrong, and what follows one not stated is not stated. More than
    19 classes are asked about in groups of equal size in alphabetical order, and the groups' winners against each
    other.

    Args:
        argument: the classes and the answering model (a folder, a hub name or a server). The classes are a CSV with
            the columns image_id, <coarsest level>, ..., <finest level>, or JSON {image_id: {level: class}}:
            "species:labels.csv?model=http://localhost:8000/v1#Qwen/Qwen3-8B".
    """

    name = "species"
    primary = "*_acc"
    higher_is_better: ClassVar = {"*_acc": True, "*_acc_stated": True}
    source = "Jia et al., 2026 (CIM), Table 1"
    cost = "2 to 4 answers of a language model"
    usage = "species:labels.csv?model=Qwen/Qwen3-8B"

    file_of = "labels.csv"

    @cached_property
    def _read(self) -> tuple[list[str], Labels, str]:
        """The levels from coarse to fine, each image's classes, and the file's fingerprint."""
        try:
            data = self.file.read_bytes()
            text = data.decode("utf-8-sig")
            table = parse_json(text, str(self.file)) if self.file.suffix.lower() == ".json" else _csv(self.file, text)
            levels = list(next(iter(table.values())))
            labels = {str(i): tuple(str(own[level]).strip() for level in levels) for i, own in table.items()}
            if not levels or not all(all(own) for own in labels.values()):
                raise ValueError("a class is empty")
        except OSError as error:
            raise ScorerError(f"the classes {str(self.file)!r} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, LookupError, AttributeError, StopIteration) as error:
            raise ScorerError(
                f"{self.file} names no classes ({error!r}): it must be a CSV with the columns image_id,species,breed, "
                'or JSON {image_id: {"species": "dog", "breed": "Chihuahua"}}, with every level for every image'
            ) from error
        return levels, labels, fingerprint(data)

    def rows(self, captions: Sequence[str], *, image_id: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, 2 levels): right and stated at each level, the coarsest first."""
        levels, labels, _ = self._read
        unknown = [i for i in image_id if str(i) not in labels]
        if unknown:
            raise ScorerError(f"{len(unknown)} of {len(captions)} captions have no class in {self.file}, for example "
                              f"of image {unknown[0]!r}; its ids look like {next(iter(labels))!r}")  # fmt: skip
        rows = np.zeros((len(captions), 2 * len(levels)))
        chosen: dict[int, tuple[str, ...]] = dict.fromkeys(range(len(captions)), ())
        for depth, level in enumerate(levels):
            offered = {row: self._under(path) for row, path in chosen.items()}
            winners = self._choose(captions, offered, {row: _asked(level, path) for row, path in chosen.items()})
            chosen = {row: (*chosen[row], winner) for row, winner in winners.items() if winner is not None}
            for row, path in chosen.items():
                truth = labels[str(image_id[row])][: depth + 1]
                rows[row, 2 * depth : 2 * depth + 2] = path == truth, 1
        return rows

    def _under(self, path: tuple[str, ...]) -> list[str]:
        """The classes below a chosen one, in alphabetical order."""
        _, labels, _ = self._read
        depth = len(path)
        return sorted({own[depth] for own in labels.values() if own[:depth] == path})

    def _choose(
        self, captions: Sequence[str], offered: dict[int, list[str]], asked: dict[int, str]
    ) -> dict[int, str | None]:
        """The class that each caption states, of those offered to it, or None; one round for all captions at a time."""
        decided: dict[int, str | None] = {}
        left = offered
        while left:
            questions, owners = [], []
            for row, names in left.items():
                for places in np.array_split(np.arange(len(names)), -(-len(names) // CHOICES)):
                    group = [names[i] for i in places]
                    questions.append(_question(captions[row], asked[row], group))
                    owners.append((row, group))
            winners: dict[int, list[str]] = {row: [] for row in left}
            for (row, group), p in zip(owners, self.answerer.answer_probabilities(questions), strict=True):
                winners[row] += group[p.argmax() : p.argmax() + 1]  # nothing where the last answer, not stated, won
            final = {row for row in left if len(winners[row]) < 2}
            decided |= {row: next(iter(winners[row]), None) for row in final}
            left = {row: names for row, names in winners.items() if row not in final}
        return decided

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        levels, _, _ = self._read
        figures = {}
        for depth, level in reversed(list(enumerate(levels))):
            right, stated = totals[..., 2 * depth], totals[..., 2 * depth + 1]
            figures[f"{level}_acc"], figures[f"{level}_stated"] = right / n, stated / n
            figures[f"{level}_acc_stated"] = right / np.maximum(stated, 1)
        return figures

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return rows[:, -2]

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        levels, labels, digest = self._read
        sizes = ",".join(f"{level}:{len({own[: i + 1] for own in labels.values()})}" for i, level in enumerate(levels))
        return (
            f"species|classes:{sizes}@{digest}|model:{self.answerer.label}|prompt:{fingerprint(PROMPT)}"
            "|below:chosen|not-stated:wrong"
        )


def _question(caption: str, asked: str, names: list[str]) -> Question:
    options = [*(name.replace("_", " ") for name in names), NOT_STATED]
    letters = tuple(string.ascii_uppercase[: len(options)])
    choices = "\n".join(f"{letter}) {option}" for letter, option in zip(letters, options, strict=True))
    text = PROMPT.format(caption=one_line(caption), level=asked, choices=choices)
    return Question(text, letters, f"the {asked} in caption {caption[:60]!r}")


def _asked(level: str, path: tuple[str, ...]) -> str:
    return f"{level} of {path[-1].replace('_', ' ')}" if path else level


def _csv(path: Path, text: str) -> dict[str, dict[str, str]]:
    header = header_of(text, lower=False)
    if header[:1] != ["image_id"]:
        raise ValueError("the first column is not image_id")
    refuse_repeated(path, header, header, ScorerError)
    table: dict[str, dict[str, str]] = {}
    for number, _, (image_id, *own) in rows_of(path, text, ScorerError):
        if image_id in table:
            raise ScorerError(f"{path}, line {number}: a second row of image {image_id!r}; keep one")
        table[image_id] = dict(zip(header[1:], own, strict=True))
    return table
