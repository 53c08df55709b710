"""The operations by name, and lists of steps in Python or in YAML.

As a file of steps::

    - filter: {by: clip, keep: 0.3}
    - dedup: {of: captions, near: 0.95}
    - levels: {by: clip}

A package adds an operation through an entry point ``captune.operations``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from captune.errors import CaptuneError, UsageError
from captune.utils.files import LARGEST_CONFIG, parse_yaml, read_file
from captune.utils.registry import Registry, nearest
from captune.utils.spec import convert, show

if TYPE_CHECKING:
    from captune.curation.base import Operation

OPERATIONS = Registry(
    "captune.operations",
    "operation",
    {
        "filter": "captune.curation.filter:Filter",
        "dedup": "captune.curation.dedup:Dedup",
        "levels": "captune.curation.levels:Levels",
        "split": "captune.curation.split:Split",
        "reassign": "captune.curation.reassign:Reassign",
        "consensus": "captune.curation.consensus:Consensus",
        "rewrite": "captune.curation.rewrite:Rewrite",
        "fuse": "captune.curation.fuse:Fuse",
    },
    error=UsageError,
)

#: For listings, which must not import an operation. A test compares them with the operations' own.
SUMMARIES = {
    "filter": "Keep the captions that a scorer, or a sum of scorers, judges to be good enough.",
    "dedup": "Drop captions that say the same again, images that are there again, or what another set holds, too.",
    "levels": "Sort captions into levels of a score, a condition to train and to caption under (NoC).",
    "split": "Split long captions into their sentences, each a caption of its own (DreamLIP).",
    "reassign": "Give captions the images that fit them best, or images the captions that do (SynC).",
    "consensus": "Choose of several captions of one thing the one that they agree on (embodied captioning).",
    "rewrite": "Caption images again with a captioner, all of them or a share of them (RECAP).",
    "fuse": "Fuse each caption with those of models and with what experts found, by a writer (CapsFusion).",
}

Step = tuple[str, "Operation"]


def read_steps(steps: Sequence[Step | Mapping[str, Any]] | str | Path) -> list[Step]:
    """Return the steps of a YAML file or a list, each an operation's name with an instance of it.

    Args:
        steps: a file; or a list of ``(name, settings)``, ``(name, operation)`` or ``{name: settings}``.

    Raises:
        UsageError: an unknown operation or setting (with the nearest), a value of the wrong kind, or no step.
    """
    where = "steps"
    if isinstance(steps, str | Path):
        where = str(steps)
        steps = parse_yaml(read_file(steps, error=UsageError, largest=LARGEST_CONFIG), where, error=UsageError)
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise UsageError(f"{where} must hold a list of steps, such as '- filter: {{by: clip, keep: 0.3}}'")
    return [_step(step, f"{where}, step {number}") for number, step in enumerate(steps, start=1)]


def _step(step: Any, place: str) -> Step:
    if isinstance(step, str):
        step = {step: {}}
    if isinstance(step, Mapping) and len(step) == 1:
        step = next(iter(step.items()))
    if not (isinstance(step, tuple | list) and len(step) == 2 and isinstance(step[0], str)):
        raise UsageError(
            f"{place}: {show(step)} is no step; write one operation with its settings, '- filter: {{...}}'"
        )
    name, settings = step
    if name not in OPERATIONS:
        raise UsageError(f"{place}: {nearest(name, OPERATIONS, 'operation')}")
    kind = OPERATIONS[name]
    if isinstance(settings, kind):
        return name, settings
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise UsageError(f"{place}: {name} takes settings, 'name: value', not {show(settings)}")
    hints, fields = get_type_hints(kind, include_extras=True), dataclasses.fields(kind)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in [field.name for field in fields]:
            raise UsageError(f"{place}: {name}: {nearest(str(key), [field.name for field in fields], 'setting')}")
        try:
            values[key] = convert(value, hints[key])
        except ValueError as error:
            raise UsageError(f"{place}: {name}: {key}: {error}") from error
    missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in values]
    if missing:
        raise UsageError(f"{place}: {name} needs {' and '.join(missing)}")
    try:
        return name, kind(**values)
    except CaptuneError as error:
        raise UsageError(f"{place}: {name}: {error}") from error
