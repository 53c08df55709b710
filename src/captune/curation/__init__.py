"""Curation: a captioned set in, a better one out, and a record of what became of every caption.

    from captune.curation import curate
    report = curate("storybook:train?caption=alt_text", "runs/curated", [("filter", {"by": "clip", "keep": 0.3})])

The unit is a caption: an image, a number (its place among the captions of the source, counted from 0; captions that a
step makes count on) and a text. A step is an operation with its settings; it decides about each caption that the step
before left: keep, drop, change, move to another image, or split into several. Every decision is written, with its
reason, into ``decisions/``; the runner checks that none is missing.

To add an operation: one file with one dataclass, whose fields are the settings (each with `base.setting`) and whose
method ``decide(captions, work)`` returns a `Verdicts`, and one line in `registry.OPERATIONS`, or an entry point
``captune.operations`` in a package of your own. Command line, YAML, resuming, records and reference pages follow from
that. Costly parts are kept by ``work.kept``: one that is on the disk is not made again.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.curation.base import Captions as Captions
    from captune.curation.base import Verdicts as Verdicts
    from captune.curation.base import Work as Work
    from captune.curation.registry import OPERATIONS as OPERATIONS
    from captune.curation.registry import read_steps as read_steps
    from captune.curation.run import curate as curate
    from captune.errors import CurationError as CurationError

_EXPORTS = {
    "Captions": "captune.curation.base",
    "CurationError": "captune.errors",
    "OPERATIONS": "captune.curation.registry",
    "Verdicts": "captune.curation.base",
    "Work": "captune.curation.base",
    "curate": "captune.curation.run",
    "read_steps": "captune.curation.registry",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'captune.curation' has no attribute {name!r}")
