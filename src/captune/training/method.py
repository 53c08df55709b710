"""`Method`: what the command line needs to know of a training method.

A method's module holds one object, `METHOD`, which the registry `captune.methods` names: ``sft`` is
``"captune.training.sft:METHOD"``. A package adds a method through an entry point of that group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
        run: trains with such settings and returns the run's folder.
        presets: ``{preset: {field: default}}``, chosen by the field `preset`.
    """

    name: str
    summary: str
    description: str
    example: str
    config: type
    run: Callable[[Any], RunDir]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
