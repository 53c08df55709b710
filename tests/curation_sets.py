"""Captioned sets for the tests of curation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from captune.curation import curate


def write(path: Path, texts: list[list[str]]) -> str:
    """Write JSON lines of the images i0, i1, ... with these captions; return the path."""
    path.write_text("".join(json.dumps({"image_id": f"i{n}", "references": t}) + "\n" for n, t in enumerate(texts)))
    return str(path)


def run(source: str, output: Path, step: dict[str, Any], **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Apply one step; return the report and the decisions."""
    report = curate(source, output, [step], progress=False, **options)
    return report, pq.read_table(output / "decisions" / f"1-{next(iter(step))}.parquet").to_pylist()
