"""One kind of registry for scorers, decoders, methods, sources and shipped models.

A name stands for ``"module:attribute"``, imported when it is asked for, so that listing names stays cheap. A package
adds names without touching captune, through an entry point in its ``pyproject.toml``::

    [project.entry-points."captune.scorers"]
    my_scorer = "my_package.scorers:MyScorer"
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from captune.errors import CaptuneError, RegistryError


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """A sentence for an unknown name: the nearest known names and the whole list."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what} {name!r}{hint} (known: {', '.join(known)})"


class Registry(Mapping[str, Any]):
    """Names and what they stand for; a mapping whose values are imported on access.

    Args:
        group: the entry-point group, such as ``captune.scorers``.
        what: the noun in messages, such as ``scorer``.
        builtin: ``{name: "module:attribute"}`` in the order of listings.
        aliases: ``{old name: new name}``; an old name works and warns.
        error: raised for an unknown name.
    """

    def __init__(
        self,
        group: str,
        what: str,
        builtin: Mapping[str, str] | None = None,
        *,
        aliases: Mapping[str, str] | None = None,
        error: type[CaptuneError] = RegistryError,
    ) -> None:
        self.group, self.what, self.error = group, what, error
        self.builtin, self.aliases = dict(builtin or {}), dict(aliases or {})

    @cached_property
    def targets(self) -> dict[str, Any]:
        """What each name stands for: "module:attribute", or an object that was put there."""
        targets: dict[str, Any] = dict(self.builtin)
        for point in sorted(importlib.metadata.entry_points(group=self.group), key=lambda point: point.name):
            if targets.setdefault(point.name, point.value) != point.value:
                package = point.dist.name if point.dist else "a package"
                warnings.warn(
                    f"{package} registers the {self.what} {point.name!r} as {point.value}, a name that is taken by "
                    f"{targets[point.name]}; the former is ignored",
                    stacklevel=2,
                )
        return targets

    def canonical(self, name: str) -> str:
        """The registered name: `name`, or what it is an alias of (FutureWarning).

        Raises:
            CaptuneError: the registry's own kind, with the nearest names.
        """
        if name in self.targets:
            return name
        if name in self.aliases:
            new = self.aliases[name]
            warnings.warn(f"the {self.what} {name!r} is now called {new!r}", FutureWarning, stacklevel=3)
            return new
        raise self.error(nearest(name, self.targets, self.what))

    def __getitem__(self, name: str) -> Any:
        target = self.targets[self.canonical(name)]
        if not isinstance(target, str):
            return target
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self.builtin:  # a bug of ours, or a missing dependency: say it as it is
                raise
            raise self.error(f"the {self.what} {name!r} ({module}:{attribute}) cannot be imported: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __contains__(self, name: object) -> bool:
        return name in self.targets or name in self.aliases
