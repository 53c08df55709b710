"""What a study has measured: one JSON file a row, with the versions and the command that made it.

The files are `results/SECTION/SEED-NAME.json`. Older rows are lines of `results/runs.jsonl`, or files that name no
versions (`results/versions.json` has those of the newest of them); they are read and stay as they are.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from captune.utils.files import read_jsonl, replace_file
from captune.utils.versions import versions

logger = logging.getLogger(__name__)


def slug(*names: Any) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, names)).lower()).strip("-")


class Store:
    """The rows of a results folder, oldest first."""

    def __init__(self, results: Path, sections: Iterable[str]) -> None:
        self.results = results
        old = results / "runs.jsonl"
        self.rows: list[dict[str, Any]] = read_jsonl(old) if old.is_file() else []
        files = [file for section in sections for file in sorted((results / section).glob("*.json"))]
        self.rows += sorted(filter(None, map(_read, files)), key=lambda row: row.get("finished", ""))

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def file(self, key: dict[str, Any]) -> Path:
        """Where a row is kept that is known by `key`."""
        base = [key["base"]] if key.get("base", "storybook") != "storybook" else []
        return self.results / key["section"] / f"{slug(key['seed'], *base, key['name'])}.json"

    def add(self, row: dict[str, Any], key: dict[str, Any]) -> None:
        row, file = {**row, **key}, self.file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(row, indent=1, ensure_ascii=False) + "\n")
        self.rows.append(row)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return {"section": file.parent.name, **json.loads(file.read_text(encoding="utf-8"))}
    except json.JSONDecodeError as error:
        logger.warning("%s is torn (%s); its row counts as missing", file, error)
        return None


def provenance(command: str, seconds: float) -> dict[str, Any]:
    """With what a row was made, and when it was finished."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"versions": versions(), "command": command, "seconds": round(seconds, 1), "finished": now}
