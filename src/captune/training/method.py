"""`Method`: what the command line needs to know of a training method.

A method's module of settings holds one object, `METHOD`, which the registry `captune.methods` names: ``sft`` is
``"captune.training.sft.config:METHOD"``. A package adds a method through an entry point of that group. What trains is
named, not imported, so that flags and files are checked before torch is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.runs.run_dir import RunDir


@dataclass(frozen=True)
class Method:
    """A way to train a captioner.

    Args:
        name: the verb of the command line, such as ``sc-captioner``.
        summary: one line for listings.
        description: a paragraph for the method's own help.
        example: a whole command line.
        config: a dataclass of settings; its fields are flags and YAML keys.
        run: trains with such settings and returns the run's folder; or "module:function", imported when it is called.
        presets: ``{preset: {field: default}}``, chosen by the field `preset`.
    """

    name: str
    summary: str
    description: str
    example: str
    config: type
    run: Callable[[Any], RunDir] | str
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.run, str):
            object.__setattr__(self, "run", partial(_run, self.run))


def _run(target: str, config: Any) -> RunDir:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(config)
