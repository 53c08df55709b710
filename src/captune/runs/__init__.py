"""Run directories and model cards."""

from __future__ import annotations

from captune.runs.run_dir import RunDir

__all__ = ["RunDir"]
