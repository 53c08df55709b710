"""A scorer from a Python file of one's own: `path/to/file.py:Class`, or `path/to/file.py:function`.

The class is a `Scorer`; the function has the signature of trl's rewards, `f(completions, **columns) -> list[float]`.
Naming a file runs its code, with all that the user may do on this machine: name only files that you have read.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from captune.errors import CaptuneError, ScorerError, UnknownScorer, first_line
from captune.scorers.base import Scorer
from captune.utils.hashing import fingerprint
from captune.utils.registry import nearest

FILE = re.compile(r"(?P<file>[^\s*:]+\.py):(?P<attribute>[A-Za-z_]\w*)(?::(?P<argument>.*))?", re.DOTALL)
_GIVEN = ("completions", "prompts", "completion_ids", "trainer_state")  # what trl sends beside the data's columns
_COLUMNS = ("image", "references", "image_id", "scene")


class FunctionScorer(Scorer):
    """A reward function of trl as a scorer; more is better.

    Its figure is the mean over the captions that it judges, under the function's name; None, as in trl, and nan mean
    that it does not judge one (`judged` is the share of the others). Parameters without a default are the columns that
    it requires; a function with ``**columns`` gets image, references, image_id and scene where they are there.
    """

    function: ClassVar[Callable[..., Sequence[float | None]]]
    origin: ClassVar[str] = ""

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 2): what the function says of each caption, 0 where it says nothing; 1 where it says something."""
        scores = list(type(self).function(list(captions), **columns))
        if len(scores) != len(captions):
            raise ScorerError(
                f"the reward function {self.name!r} gave {len(scores)} scores for {len(captions)} captions"
            )
        said = np.array([np.nan if s is None else float(s) for s in scores], dtype=np.float64)
        judged = ~np.isnan(said)
        return np.stack([np.where(judged, said, 0.0), judged], axis=1)

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the mean over the captions that are judged, nan where none is, and their share."""
        score, judged = totals[..., 0], totals[..., 1]
        mean = np.divide(score, judged, out=np.full(np.shape(score), np.nan), where=judged > 0)
        return {self.primary: mean, "judged": judged / n}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption, nan where it is not judged."""
        return np.where(rows[:, 1] > 0, rows[:, 0], np.nan)

    @property
    def signature(self) -> str:
        """The function's name and a digest of its file."""
        return f"function:{self.primary}@{self.origin}"


def from_function(function: Callable[..., Any], origin: str = "") -> type[FunctionScorer]:
    """Make a scorer class of a reward function with trl's signature.

    Args:
        function: ``f(completions, **columns) -> list[float]``.
        origin: what its code is known by in the signature, such as a digest of its file.
    """
    name = function.__name__
    required: list[str] = []
    optional: list[str] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            optional += [column for column in _COLUMNS if column not in (*required, *optional)]
        elif parameter.name not in _GIVEN:
            (required if parameter.default is parameter.empty else optional).append(parameter.name)
    return type(
        name,
        (FunctionScorer,),
        {
            "__doc__": inspect.getdoc(function) or f"The reward function {name}.",
            "name": name,
            "primary": name,
            "higher_is_better": {name: True},
            "required_columns": tuple(required),
            "optional_columns": tuple(optional),
            "function": staticmethod(function),
            "origin": origin,
        },
    )


def guarded(scorer: type[Scorer], origin: str, digest: str) -> type[Scorer]:
    """Return the class with errors of its `rows` said as what they are, those of the user's file, and signed with it.

    Args:
        scorer: a class that a file defines.
        origin: the file and the name in it, for messages.
        digest: of the file: with other code, figures that are kept do not count any more.
    """

    def signature(self: Scorer) -> str:
        own: str = cast(Any, super(made, self)).signature
        return own if digest in own else f"{own}@{digest}"

    def rows(self: Scorer, captions: Sequence[str], **columns: Any) -> np.ndarray:
        try:
            return np.asarray(scorer.rows(self, captions, **columns), dtype=np.float64)
        except CaptuneError:
            raise
        except Exception as error:
            raise ScorerError(f"the scorer {origin} fails: {type(error).__name__}: {first_line(error)}") from error

    namespace = {"rows": rows, "signature": property(signature)}
    namespace |= {"__module__": scorer.__module__, "__doc__": scorer.__doc__}
    made: type[Scorer] = type(scorer.__qualname__, (scorer,), namespace)
    return made


def loaded_from_file(file: str, attribute: str) -> type[Scorer] | None:
    """Return what `scorer_from_file` returns if the file was run in this process already, and None otherwise."""
    try:
        content = Path(file).expanduser().resolve().read_bytes()
    except (OSError, RuntimeError, ValueError):
        return None
    if f"captune_scorers_of_{Path(file).stem}_{fingerprint(content)}" not in sys.modules:
        return None
    return scorer_from_file(file, attribute)


def scorer_from_file(file: str, attribute: str) -> type[Scorer]:
    """Run a Python file and return the scorer class that it defines, or makes of a function.

    Raises:
        UnknownScorer: the file or the name is not there, or what the name stands for is no scorer.
        ScorerError: the file's own code fails.
    """
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UnknownScorer(f"there is no file {file}, which should define the scorer {attribute!r}")
    content = path.read_bytes()
    digest = fingerprint(content)
    name = f"captune_scorers_of_{path.stem}_{digest}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ScorerError(f"{file} fails when it is run: {type(error).__name__}: {first_line(error)}") from error
    found = getattr(module, attribute, None)
    if found is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UnknownScorer(f"{file}: {nearest(attribute, names or ['nothing'], 'scorer')}")
    if isinstance(found, type) and issubclass(found, Scorer):
        if not found.name:
            found.name = attribute
        return guarded(found, f"{file}:{attribute}", digest)
    if isinstance(found, type) or not callable(found):
        raise UnknownScorer(
            f"{file}:{attribute} is neither a subclass of captune.scorers.Scorer nor a function "
            "f(completions, **columns) -> list[float]"
        )
    return guarded(from_function(found, digest), f"{file}:{attribute}", digest)
