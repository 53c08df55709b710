"""How a benchmark ends: with what it was measured, and its result as JSON beside a page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from captune.utils.versions import versions

KEPT = ("python", "platform", "torch", "transformers", "trl")


def machine() -> dict[str, Any]:
    """Cores, torch's threads, the load of the last minute, and the versions that decide speed."""
    known = versions()
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
            **{name: known[name] for name in KEPT}}  # fmt: skip


def write(result: dict[str, Any], page: str | None, output: Path | None) -> None:
    """Writes OUTPUT.json and, with a page, OUTPUT.md; prints the page or, without one, the JSON."""
    text = json.dumps(result, indent=1)
    if output:
        output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        if page is not None:
            output.with_suffix(".md").write_text(page, encoding="utf-8")
    print(text if page is None else page)
