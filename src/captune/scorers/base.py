"""`Scorer`: one shape serves as a metric and as a reward."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from captune.errors import EvaluationError, MissingColumn, SpecError
from captune.utils import spec as specs


class Cache(Protocol):
    """Where the rows of costly scorers are kept (`captune.evaluation.cache.Cache`)."""

    def rows(self, scorer: Scorer, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """Return the scorer's rows, those that are known from the cache."""


class Reward(Protocol):
    """What a trainer maximises: something called as trl calls a reward, made of weighted parts."""

    name: str
    required_columns: tuple[str, ...]
    optional_columns: tuple[str, ...]

    @property
    def parts(self) -> Sequence[tuple[Any, float]]:
        """What the reward is the weighted sum of."""
        ...

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        """Return one number per completion, a sequence of texts or messages."""
        ...


class Scorer:
    """What judges captions. Subclasses define `rows`; most need nothing else but `from_totals` and `signature`.

    A subclass's constructor takes the text after the colon of its spec ("clip:folder") or None, and keyword context.

    Attributes:
        name: the registry's name; `load_scorer` replaces it by the whole spec where that has an argument.
        source: where it was published, such as ``"Vedantam et al., CVPR 2015"``.
        cost: roughly, per caption, such as ``"0.1 ms"`` or ``"one pass of the encoder"``.
        required_columns: columns without which it cannot work: image, references, scene, image_id.
        optional_columns: columns that add figures where they are there.
        primary: the figure that comes first; default: the first of `higher_is_better`. A pattern such as
            ``"recall_*"`` where its name depends on settings.
        higher_is_better: ``{figure: whether more of it is better}``; a figure without an entry has no direction. A key
            may be a pattern: ``"recall_*"`` stands for ``recall_1`` and ``recall_5``.
        labels: ``{figure: its name in tables}``, patterns too; default: the key without underscores.
        no_interval: figures of the whole corpus that resampling says nothing about.
        is_additive: whether the corpus figures are functions of the rows' totals (`from_totals`). A class that
            overrides `corpus` is not, unless it says so.
        cached: whether its rows are costly and depend on nothing but caption, columns and signature, so that they are
            kept in `cache`.
        cache: where they are kept.
        kept_every: how many captions are judged between two writes to it.
        truncated: the share of the captions judged last that its encoder cut, so that their ends decided nothing.
        fitted_file: the file of a run directory that keeps what `fit` froze.
        grouped: whether it compares the captions of an image with each other, so that one alone has no score.
        together: whether a caption's number depends on the other captions, or images, that are judged with it.
        group: reference, image, questions or text; for listings of scorers from other packages.
        Settings: a dataclass of what a spec sets, read by `captune.utils.spec.parse`; listings show its fields.
        positional: the fields of `Settings` that a spec gives by position, as in "clip:MODEL".
        usage: a whole spec, for messages.
    """

    name: str = ""
    source: str = ""
    cost: str = ""
    required_columns: tuple[str, ...] = ()
    optional_columns: tuple[str, ...] = ()
    primary: str = ""
    higher_is_better: ClassVar[Mapping[str, bool]] = {}
    labels: ClassVar[Mapping[str, str]] = {}
    no_interval: tuple[str, ...] = ()
    is_additive: bool = True
    cached: bool = False
    cache: Cache | None = None
    kept_every: int = 128
    grouped: bool = False
    together: bool = False
    truncated: float = 0.0
    fitted_file: str = ""
    group: str = ""
    Settings: ClassVar[type | None] = None
    positional: tuple[str, ...] = ()
    usage: str = ""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "primary" not in vars(cls) and "higher_is_better" in vars(cls):
            cls.primary = next(iter(cls.higher_is_better), "")
        if "corpus" in vars(cls) and "is_additive" not in vars(cls):
            cls.is_additive = False
        for old, new in _FORMER.items():
            if old in vars(cls):
                _warn_former(old, new)
                setattr(cls, new, vars(cls)[old])
                delattr(cls, old)

    def __init__(self, argument: str | None = None) -> None:
        if argument is not None:
            raise SpecError(
                f"scorer {self.name!r} takes no argument; write {self.name!r}, not '{self.name}:{argument}'"
            )

    @classmethod
    def read(cls, argument: str | None, **defaults: Any) -> Any:
        """Return the class's `Settings` with what a spec says behind the name.

        Raises:
            SpecError: for an unknown setting (with the nearest), or a value of the wrong type or out of range.
        """
        assert cls.Settings is not None, f"{cls.__name__} has no Settings"
        return specs.parse(
            argument,
            cls.Settings,
            what=f"scorer {cls.name!r}",
            positional=cls.positional,
            example=cls.usage,
            defaults=defaults,
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """The former name of `required_columns`."""
        _warn_former("needs", "required_columns")
        return self.required_columns

    @needs.setter
    def needs(self, columns: tuple[str, ...]) -> None:
        _warn_former("needs", "required_columns")
        self.required_columns = columns

    @property
    def uses(self) -> tuple[str, ...]:
        """The former name of `optional_columns`."""
        _warn_former("uses", "optional_columns")
        return self.optional_columns

    @uses.setter
    def uses(self, columns: tuple[str, ...]) -> None:
        _warn_former("uses", "optional_columns")
        self.optional_columns = columns

    def bind(self, captioner: Any, *, end_token: bool | None = None) -> None:
        """Meet the captioner before it is trained on this scorer as a reward; most scorers do nothing.

        Args:
            captioner: the captioner that is trained.
            end_token: whether the method treats the end of a caption as a word; None: it does not say.
        """

    def forget(self) -> None:
        """Warn again of what was warned of once; what is remembered of images and texts is `captune.utils.memory`'s."""

    @property
    def needs_fit(self) -> bool:
        """Whether, as a reward, it must first be fitted to the training images' references."""
        return False

    def fit(self, references: Iterable[Sequence[str]]) -> Scorer:
        """Freeze what is taken from references, a list per image; most scorers do nothing. Returns self."""
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save what `fit` froze."""
        raise NotImplementedError(f"scorer {self.name!r} keeps nothing of what it is fitted to")

    @property
    def identity(self) -> str:
        """The signature without what the captions decide: what a kept row depends on beside its own entries."""
        return "|".join(part for part in self.signature.split("|") if not part.startswith("truncated:"))

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing. Costs nothing: it loads and downloads nothing."""

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Raise ScorerError where what it knows of images lies in a file, and the file lacks one of these."""

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, D) float64: what each caption adds to the corpus figures."""
        raise NotImplementedError

    def measure(self, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """Return `rows` of the columns that it reads, checked; from the cache where there is one."""
        chosen = columns_for(self, columns, len(captions))
        if self.cache is not None and self.cached:
            return self.cache.rows(self, captions, chosen)
        return self.rows(captions, **chosen)

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows.

        Args:
            totals: (..., D); many resamples come at once.
            n: the number of rows.

        Returns:
            Each figure with the leading shape of `totals`.
        """
        return {type(self).name or self.name.partition(":")[0]: totals[..., 0] / n}

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        """Return the corpus figures, the primary one first.

        A figure that is no function of the rows' totals overrides this method; intervals then call it on resampled
        rows, which is slower.
        """
        if not len(rows):
            raise EvaluationError(f"scorer {self.name}: there is no caption to score")
        return {key: float(value) for key, value in self.from_totals(rows.sum(axis=0), len(rows)).items()}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the figure of each caption by itself, which is also the reward."""
        return rows[:, 0]

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version. Figures of equal signatures compare."""
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
        # of all that TRL sends
        known = ("image", "references", "image_id", "scene", *self.required_columns, *self.optional_columns)
        given = {key: given[key] for key in known if given.get(key) is not None}
        captions = [completion_text(c) for c in completions]
        chosen = columns_for(self, given, len(captions))
        return [float(score) for score in self.per_caption(self.rows(captions, **chosen))]


def completion_text(completion: Any) -> str:
    """Return the text of a completion: a string, or messages whose content is a string or a list of parts.

    It is stripped, as every caption is that is read elsewhere: trl leaves the space before a first word.
    """
    if isinstance(completion, str):
        return completion.strip()
    texts = []
    for message in completion:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [p["text"] for p in content if p.get("type") == "text"]
        texts.extend(parts)
    return " ".join(texts).strip()


def columns_for(scorer: Scorer | Reward, columns: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return the columns that the scorer reads.

    Raises:
        MissingColumn: one that it requires is not there.
        EvaluationError: one does not have one entry per caption.
    """
    missing = [need for need in scorer.required_columns if need not in columns]
    if missing:
        have = ", ".join(columns) or "nothing besides the captions"
        raise MissingColumn(
            f"scorer {scorer.name!r} needs {' and '.join(missing)}; the data have {have}. "
            f"Give a source with {' and '.join(missing)}, or leave {scorer.name!r} out."
        )
    chosen = {name: columns[name] for name in (*scorer.required_columns, *scorer.optional_columns) if name in columns}
    for name, column in chosen.items():
        if len(column) != n:
            raise EvaluationError(f"scorer {scorer.name!r}: {n} captions but {len(column)} entries in column {name!r}")
    return chosen


def check_needs(scorers: Iterable[Scorer | Reward], columns: Mapping[str, Any], n: int) -> None:
    """Raise MissingColumn for the first scorer that requires a column which is not there. Costs nothing."""
    for scorer in scorers:
        columns_for(scorer, columns, n)


def check_references(name: str, references: Sequence[Sequence[str]]) -> None:
    """Raise EvaluationError for the first caption without references: 0 would be a wrong score."""
    for i, texts in enumerate(references):
        if isinstance(texts, str):
            raise TypeError(f"scorer {name!r}: the references of caption {i} are one text; give a list of texts")
        if not texts:
            raise EvaluationError(
                f"scorer {name!r}: caption {i} has no reference; leave such images out and say how many"
            )


def weighted_sum(scores: Sequence[Any], weights: Sequence[float]) -> np.ndarray:
    """Return (N,): the sum of the parts that can judge a caption, as in TRL; NaN where none can.

    Args:
        scores: (N,) of each part; None or NaN where it cannot judge.
        weights: one of each part.
    """
    weighted = np.stack([weight * np.asarray(own, float) for own, weight in zip(scores, weights, strict=True)])
    return np.where(np.isnan(weighted).all(axis=0), np.nan, np.nansum(weighted, axis=0))


def scorers_in(scorer: Scorer) -> list[Scorer]:
    """Return the scorers of a sum, or the one."""
    return [part for part, _ in getattr(scorer, "parts", [(scorer, 1.0)])]


def safe_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, and 0 where there is nothing to divide by."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)


_FORMER = {"needs": "required_columns", "uses": "optional_columns"}


def _warn_former(old: str, new: str) -> None:
    warnings.warn(f"a scorer's {old!r} is now called {new!r}", FutureWarning, stacklevel=3)
