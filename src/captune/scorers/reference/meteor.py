"""METEOR 1.5 (Denkowski and Lavie, WMT 2014), by its own Java program."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import ScorerError
from captune.scorers import Scorer, check_references
from captune.scorers._support import java, ptb

# METEOR 1.5's parameters for English, task "rank", and the weights of its matchers: exact, stem, synonym, paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
# The program's statistics of a caption: lengths, function words; for each matcher the matched content words and
# function words; chunks; matched words. Each pair is caption, reference.
_LENGTH, _FUNCTION, _MATCHES, _CHUNKS, _MATCHED = slice(0, 2), slice(2, 4), slice(4, 20), 20, slice(21, 23)
_COLUMNS = 23


class Meteor(Scorer):
    """METEOR 1.5: words matched with the best reference (exact, stem, synonym, paraphrase), their recall and order.

        F = P R / (alpha P + (1 - alpha) R),   METEOR = F (1 - gamma (chunks / matches)^beta)

    P and R are the weights of the matched words over those of all words, in the caption and in the reference: content
    words count delta, function words 1 - delta, and a match by its kind (1, .6, .8, .6). alpha = .85, beta = .2,
    gamma = .6 and delta = .75 are the original's for English. pycocoevalcap's Java program
    (`-l en -norm`) aligns the words; captions are tokenized as pycocoevalcap does. The corpus figure is the program's
    own: the formula on the summed statistics of the captions, not the mean of their figures. As in the program, a
    caption that equals its reference adds no chunk.

    Needs Java and `pip install 'captune[scorers]'`. The program takes about 1 GB and some seconds to start; it is kept
    for the next captions until `close()`, the end of a `with` block, of the scorer, or of Python.

    Args:
        argument: settings, if other than these: "meteor:?timeout=300&memory=2G". Seconds without an answer after
            which the program is ended, and the limit of its heap. A caption of 200 words takes a second, one that
            repeats a word a thousand times takes minutes.
    """

    name = "meteor"
    primary = "meteor"
    higher_is_better: ClassVar = {"meteor": True}
    labels: ClassVar = {"meteor": "METEOR"}
    source = "Denkowski and Lavie, WMT 2014"
    cost = "2 ms in Java"
    required_columns = ("references",)
    cached = True
    usage = "meteor:?timeout=300&memory=2G"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        timeout: Annotated[
            float, Field(gt=0, description="seconds without an answer after which the program is ended")
        ] = 300
        memory: Annotated[str, Field(description="the limit of the program's heap")] = "2G"

        def __post_init__(self) -> None:
            java.check_memory(self.memory)

    def __init__(self, argument: str | None = None, *, timeout: float = 300, memory: str = "2G") -> None:
        settings = self.read(argument, timeout=timeout, memory=memory)
        self.timeout, self.memory = settings.timeout, settings.memory
        self._program: java.JavaProgram | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        java.java_version(java.find_java())
        self._jar()

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the Java program; the next captions start it again."""
        if self._program is not None:
            self._program.close()
            self._program = None

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]], **others: Any) -> np.ndarray:
        """(N, 23): the program's statistics of each caption against its best reference."""
        check_references(self.name, references)
        if not captions:
            return np.zeros((0, _COLUMNS))
        lines = [
            " ||| ".join(("SCORE", *map(_words, own), _words(caption)))
            for caption, own in zip(captions, references, strict=True)
        ]
        with self._lock:
            answers = self._running().ask(lines)
        rows = np.array([_statistics(answer) for answer in answers])
        perfect = (_matches(rows).sum(axis=-2) == rows[:, _LENGTH]).all(axis=1) & (rows[:, _CHUNKS] == 1)
        rows[perfect, _CHUNKS] = 0
        return rows

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """A function of the totals alone: n does not matter."""
        function = totals[..., _FUNCTION]
        length = _DELTA * (totals[..., _LENGTH] - function) + (1 - _DELTA) * function
        weights = np.outer(_WEIGHTS, [_DELTA, 1 - _DELTA]).reshape(-1, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = (_matches(totals) * weights).sum(axis=-2) / length
            mean = 1 / ((1 - _ALPHA) / shares[..., 0] + _ALPHA / shares[..., 1])
            chunks = totals[..., _CHUNKS] / totals[..., _MATCHED].mean(axis=-1)
            score = mean * (1 - _GAMMA * chunks**_BETA)
        return {"meteor": np.maximum(np.nan_to_num(score, nan=0.0), 0.0)}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return self.from_totals(rows, 1)["meteor"]

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"meteor-1.5|jar:pycocoevalcap-{java.package_version()}|lang:en|norm|task:rank|tok:{ptb.VERSION}"

    def _jar(self) -> str:
        java.package_file("meteor", "data", "paraphrase-en.gz")  # without it the program would not match paraphrases
        return str(java.package_file("meteor", "meteor-1.5.jar"))

    def _running(self) -> java.JavaProgram:
        if self._program is None or not self._program.running:
            arguments = ["-jar", self._jar(), "-", "-", "-stdio", "-l", "en", "-norm"]
            self._program = java.JavaProgram("METEOR", arguments, memory=self.memory, timeout=self.timeout)
        return self._program


def _words(text: str) -> str:
    """The text's words on one line. "|||" separates texts in the program's input."""
    return ptb.tokenize(text).replace("|||", "").replace("  ", " ")


def _matches(rows: np.ndarray) -> np.ndarray:
    """(..., 8, 2): content words and function words of each matcher in turn; caption and reference."""
    return rows[..., _MATCHES].reshape(*rows.shape[:-1], 8, 2)


def _statistics(answer: str) -> list[float]:
    try:
        values = [float(word) for word in answer.split()]
    except ValueError:
        values = []
    if len(values) != _COLUMNS or not np.isfinite(values).all():
        raise ScorerError(f"METEOR answered {answer[:200]!r}, which is not a caption's {_COLUMNS} statistics")
    return values
