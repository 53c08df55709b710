"""The model card that a run leaves beside its adapter, in the form that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(
    *,
    name: str,
    method: str,
    base: str,
    data: str,
    command: str,
    versions: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Any]] | None = None,
    source: str | None = None,
    description: str = "",
) -> str:
    """What the model is, where it comes from, what it was measured to do, and how to make and use it, as Markdown."""
    head: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "image-to-text",
        "tags": ["captune", "image-captioning"],
    }
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        head["base_model"] = base  # a name on the hub
    paragraphs = [
        f"# {name}",
        description or f"A LoRA adapter for the image captioner `{base}`, trained with captune.",
        f"- Base model: `{base}`\n- Method: {method}\n- Training data: `{data}`",
        "## Figures\n\n" + (_table(figures, source) if figures else "Not measured in this run."),
        f"## Make it again\n\n```\n{command}\n```\n\n`config.yaml` holds every setting.  Made with {_with(versions)}.",
        f"## Use it\n\n```\ncaptune caption --model {base} --adapter {name}/adapter --images ./photos "
        "--output caps.jsonl\n```",
        "## Licence\n\nThe adapter is of use only with its base model; the licences of the base model and of the "
        "training data apply to it.  See there before you pass it on.",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n\n".join(paragraphs) + "\n"


def _with(versions: Mapping[str, Any]) -> str:
    names = ("captune", "torch", "transformers", "trl", "peft")
    parts = [f"{name} {versions[name]}" for name in names if versions.get(name)]
    if versions.get("git_commit"):
        parts[0] = f"{parts[0]} (commit {versions['git_commit']})"
    return ", ".join(parts) or "unknown versions"


def _table(figures: Mapping[str, Mapping[str, Any]], source: str | None) -> str:
    """A line for each figure, a column for each captioner: there are dozens of figures and few captioners."""
    lines = [f"| | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    for figure in dict.fromkeys(figure for row in figures.values() for figure in row):
        values = (row.get(figure) for row in figures.values())
        cells = (f"{value:.3f}" if isinstance(value, int | float) else "–" for value in values)
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines) + (f"\n\nMeasured on `{source}`." if source else "")
