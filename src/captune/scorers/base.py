"""`Scorer`: one shape serves as a metric and as a reward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from captune.errors import MissingColumn


class Cache(Protocol):
    """Where the rows of costly scorers are kept (`captune.evaluation.cache.Cache`)."""

    def rows(self, scorer: Scorer, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray: ...


class Scorer:
    """What judges captions. Subclasses define `rows`; most need nothing else but `from_totals` and `signature`.

    A subclass's constructor takes the text after the colon of its spec ("clip:folder") or None, and keyword context.
    """

    name: str = ""  # the registry's name; `load_scorer` replaces it by the whole spec where that has an argument
    source: ClassVar[str] = ""  # where it was published: "Vedantam et al., CVPR 2015"
    cost: ClassVar[str] = ""  # roughly, per caption: "0.1 ms", "one pass of the encoder", "one answer of the judge"
    needs: ClassVar[tuple[str, ...]] = ()  # columns without which it cannot work: image, references, scene, image_id
    uses: ClassVar[tuple[str, ...]] = ()  # columns that add figures where they are there
    cached: bool = False  # costly rows that depend on nothing but caption, columns and signature are kept
    cache: Cache | None = None  # where they are kept
    # {figure: whether more of it is better}; a figure without an entry has no direction; "recall_*" stands for several
    higher_is_better: ClassVar[Mapping[str, bool]] = {}
    labels: ClassVar[Mapping[str, str]] = {}  # {figure: its name in tables}; default: the key without underscores
    no_interval: ClassVar[tuple[str, ...]] = ()  # figures of the whole corpus that resampling says nothing about

    def __init__(self, argument: str | None = None) -> None:
        if argument is not None:
            raise ValueError(
                f"scorer {self.name!r} takes no argument; write {self.name!r}, not '{self.name}:{argument}'"
            )

    @property
    def identity(self) -> str:
        """The signature without what the captions decide: what a kept row depends on beside its own entries."""
        return "|".join(part for part in self.signature.split("|") if not part.startswith("truncated:"))

    @property
    def sums(self) -> bool:
        """Whether the corpus figures are functions of the rows' totals."""
        return type(self).corpus is Scorer.corpus

    def check(self) -> None:
        """Raises ScorerError where what it runs on is not there. Costs nothing: it loads and downloads nothing."""

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, D) float64: what each caption adds to the corpus figures."""
        raise NotImplementedError

    def measure(self, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """`rows` with those of the columns that it reads, checked; from the cache where there is one."""
        chosen = columns_for(self, columns, len(captions))
        if self.cache is not None and self.cached:
            return self.cache.rows(self, captions, chosen)
        return self.rows(captions, **chosen)

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Corpus figures, the primary one first, from the sums over n rows.

        :param totals: (..., D); every figure has the leading shape. Many resamples come at once.
        """
        return {self.name.partition(":")[0]: totals[..., 0] / n}

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        """Corpus figures, the primary one first. A figure that no function of sums can give: override this method,
        and intervals are found by calling it on resampled rows, more slowly."""
        if not len(rows):
            raise ValueError(f"scorer {self.name}: there is no caption to score")
        return {key: float(value) for key, value in self.from_totals(rows.sum(axis=0), len(rows)).items()}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """(N,): the primary figure of each caption by itself; also the reward."""
        return rows[:, 0]

    @property
    def signature(self) -> str:
        """Everything that a reader needs to compare the figure with another: settings, model, version."""
        return self.name

    @property
    def __name__(self) -> str:  # TRL logs a reward function under this name
        return self.name

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        prompts: Any = None,
        image: Any = None,
        **columns: Any,
    ) -> list[float]:
        """The reward of each completion (text, or a chat's messages), in TRL's signature."""
        if image is None and columns.get("images") is not None:  # TRL's other name: a list of images per row
            image = [images[0] if images else None for images in columns["images"]]
        given = {"image": image, **columns}
        known = ("image", "references", "image_id", "scene", *self.needs, *self.uses)  # of all that TRL sends
        given = {key: given[key] for key in known if given.get(key) is not None}
        captions = [completion_text(c) for c in completions]
        chosen = columns_for(self, given, len(captions))
        return [float(score) for score in self.per_caption(self.rows(captions, **chosen))]


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or a list of messages whose content is a string or a list of parts."""
    if isinstance(completion, str):
        return completion
    texts = []
    for message in completion:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [p["text"] for p in content if p.get("type") == "text"]
        texts.extend(parts)
    return " ".join(texts)


def columns_for(scorer: Scorer, columns: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The columns that the scorer reads, checked: they are there and have one entry per caption."""
    missing = [need for need in scorer.needs if need not in columns]
    if missing:
        have = ", ".join(columns) or "nothing besides the captions"
        raise MissingColumn(
            f"scorer {scorer.name!r} needs {' and '.join(missing)}; the data have {have}. "
            f"Give a source with {' and '.join(missing)}, or leave {scorer.name!r} out."
        )
    chosen = {name: columns[name] for name in (*scorer.needs, *scorer.uses) if name in columns}
    for name, column in chosen.items():
        if len(column) != n:
            raise ValueError(f"scorer {scorer.name!r}: {n} captions but {len(column)} entries in column {name!r}")
    return chosen


def check_needs(scorers: Iterable[Scorer], columns: Mapping[str, Any], n: int) -> None:
    """Raises MissingColumn for the first scorer whose needs the columns do not meet. Costs nothing: call it first."""
    for scorer in scorers:
        columns_for(scorer, columns, n)
