"""Run directories -> one self-contained HTML page: table, curves, gallery, configuration."""

from __future__ import annotations

from captune.report.page import render

__all__ = ["render"]
