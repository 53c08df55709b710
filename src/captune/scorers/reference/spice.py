"""SPICE (Anderson et al., ECCV 2016), by its own Java program and CoreNLP 3.6.0."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import ScorerError
from captune.scorers import Scorer, check_references
from captune.scorers._support import java, ptb

_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_FETCH = (
    "fetch stanford-corenlp-full-2015-12-09.zip from https://nlp.stanford.edu/software/, or the two files from "
    "https://repo1.maven.org/maven2/edu/stanford/nlp/stanford-corenlp/3.6.0/, and name their folder: 'spice:<folder>', "
    "or CORENLP_HOME=<folder>"
)
# The program writes its result through the JavaScript engine that Java 15 no longer has.
_FIRST_JAVA, _LAST_JAVA = 8, 14
_SUBSETS = ("Object", "Attribute", "Relation", "Cardinality", "Color", "Size")


class Spice(Scorer):
    """SPICE: the objects, attributes and relations that caption and references share, as an F-measure.

        P = |T(c) n T(R)| / |T(c)|,   R = |T(c) n T(R)| / |T(R)|,   SPICE = 2 P R / (P + R)

    T are the tuples of the scene graph that Stanford's parser finds in the caption, and in all references together;
    WordNet synonyms match. The corpus figure is the mean over captions. The further figures are the program's: the mean
    precision and recall, and F on the tuples of one kind (object, attribute, relation, number, colour, size), averaged
    over the captions whose references have a tuple of that kind (0 if none has). Captions are tokenized as
    pycocoevalcap does before.

    Needs Java 8 to 14, `pip install 'captune[scorers]'` and CoreNLP 3.6.0, which that does not bring. The program loads
    its parser again for every call and takes minutes for a thousand captions: a figure, hardly a reward. It was tested
    here with stand-ins for CoreNLP only.

    Args:
        argument: CoreNLP's folder and settings, "spice:<folder>?timeout=3600&memory=8G". Without a folder:
            CORENLP_HOME, or where pycocoevalcap's own SPICE has put it. Seconds for one call, and the limit of the
            heap.
    """

    name = "spice"
    primary = "spice"
    higher_is_better: ClassVar = {"spice*": True}
    labels: ClassVar = {"spice": "SPICE"}
    source = "Anderson et al., ECCV 2016"
    cost = "0.1 s or more in Java"
    required_columns = ("references",)
    cached = True
    positional = ("folder",)
    usage = "spice:<folder>?timeout=3600&memory=8G"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        folder: Annotated[
            str, Field(description="CoreNLP's; default: CORENLP_HOME, or where pycocoevalcap has put it")
        ] = ""
        timeout: Annotated[float, Field(gt=0, description="seconds for one call")] = 3600
        memory: Annotated[str, Field(description="the limit of the program's heap")] = "8G"

        def __post_init__(self) -> None:
            java.check_memory(self.memory)

    def __init__(self, argument: str | None = None, *, timeout: float = 3600, memory: str = "8G") -> None:
        settings = self.read(argument, timeout=timeout, memory=memory)
        self.timeout, self.memory = settings.timeout, settings.memory
        self._folder = Path(settings.folder) if settings.folder else None

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        program = java.find_java()
        version = java.java_version(program)
        if not _FIRST_JAVA <= version <= _LAST_JAVA:
            raise ScorerError(
                f"SPICE runs on Java {_FIRST_JAVA} to {_LAST_JAVA}, and {program} is Java {version}: conda create "
                "-p ./java11 -c conda-forge openjdk=11, and set JAVA_HOME to that folder"
            )
        self._class_path()

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]], **others: Any) -> np.ndarray:
        """(N, 15): F, P and R on all tuples; for each kind, F (0 where undefined) and whether it is defined."""
        check_references(self.name, references)
        if not captions:
            return np.zeros((0, 3 + 2 * len(_SUBSETS)))
        self.check()
        items = [
            {"image_id": i, "test": ptb.tokenize(caption), "refs": [ptb.tokenize(text) for text in own]}
            for i, (caption, own) in enumerate(zip(captions, references, strict=True))
        ]
        arguments = ["-cp", self._class_path(), "edu.anu.spice.SpiceScorer", "input.json", "-out", "output.json",
                     "-subset", "-silent"]  # fmt: skip
        # Without -cache: the database of parsed references is what would be written to disk and stay there.
        with java.JavaProgram(
            "SPICE", arguments, memory=self.memory, timeout=self.timeout, files={"input.json": json.dumps(items)}
        ) as program:
            program.wait()
            return _read(program.folder / "output.json", len(captions))

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        figures = {key: totals[..., i] / n for i, key in enumerate(("spice", "spice_precision", "spice_recall"))}
        for i, kind in enumerate(_SUBSETS):
            score, defined = totals[..., 3 + 2 * i], totals[..., 4 + 2 * i]
            figures[f"spice_{kind.lower()}"] = score / np.maximum(defined, 1)
        return figures

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"spice-1.0|jar:pycocoevalcap-{java.package_version()}|parser:corenlp-3.6.0|synsets|tok:{ptb.VERSION}"

    def _class_path(self) -> str:
        spice = java.package_file("spice", "spice-1.0.jar")  # which names the libraries beside it itself
        folder = self._folder or Path(os.environ.get("CORENLP_HOME") or spice.parent / "lib")
        missing = [name for name in _CORENLP if not (folder / name).is_file()]
        if missing:
            raise ScorerError(f"SPICE needs CoreNLP 3.6.0, and {folder} lacks {' and '.join(missing)}: {_FETCH}")
        return os.pathsep.join(str(file.absolute()) for file in (*(folder / name for name in _CORENLP), spice))


def _read(file: Path, n: int) -> np.ndarray:
    """The program's JSON as rows, in the captions' order. An F that does not exist is null there."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        scores = {item["image_id"]: item["scores"] for item in results}
        if len(results) != n or scores.keys() != set(range(n)):
            raise ValueError(f"{len(results)} results for {n} captions")
        rows = np.array([_row(scores[i]) for i in range(n)])
        if not ((rows >= 0) & (rows <= 1)).all():
            raise ValueError("a score that is not between 0 and 1")
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ScorerError(f"SPICE ended well but its result is invalid: {type(e).__name__}: {e}") from e
    return rows


def _row(scores: Mapping[str, Mapping[str, float | None]]) -> list[float]:
    everything = scores["All"]
    row = [float(everything[key]) for key in ("f", "pr", "re")]  # type: ignore[arg-type]
    for kind in _SUBSETS:
        f = scores[kind]["f"]
        row += [0.0, 0.0] if f is None else [float(f), 1.0]
    return row
