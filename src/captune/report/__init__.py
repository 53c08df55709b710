"""Run directories, or caption files -> one self-contained HTML page: table, curves, gallery, configuration."""

from __future__ import annotations

from captune.report.page import render, render_files

__all__ = ["render", "render_files"]
