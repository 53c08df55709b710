"""The model card that a run leaves beside its adapter, in the form that model hubs read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from captune.models.hub import is_local
from captune.utils.wording import span

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def model_card(
    *,
    name: str,
    adapter: str,
    method: str,
    base: str,
    data: str,
    command: str,
    versions: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Any]] | None = None,
    trained: str | None = None,
    source: str | None = None,
    images: Collection[int] = (),
    trained_on: bool = False,
    rewarded: Collection[str] = (),
    gate: str = "",
    description: str = "",
) -> str:
    """What the model is, where it comes from, what it was measured to do, and how to make and use it, as Markdown.

    Args:
        name: the model's name.
        adapter: the folder of the adapter, as a command names it.
        method: how it was trained.
        base: the captioner that it was trained from, a folder or a name on the hub.
        data: the training data.
        command: the command that made it.
        versions: of the libraries; see `captune.utils.versions`.
        figures: {row: {figure: number}}, a table with a column for each row.
        trained: the row of this model, whose figures go into the metadata as evaluation results.
        source: what `figures` were measured on.
        images: how many; several numbers where scorers could not judge all.
        trained_on: whether these are training images; no figure then goes into the metadata.
        rewarded: figures that the model was trained to raise; they do not go into the metadata.
        gate: what the reward was worth before training, a sentence.
        description: the first paragraph; by default that it is an adapter of `base`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name, method, base, data, gate, description = map(one_line, (name, method, base, data, gate, description))
    source = one_line(source) if source else source
    rows = {
        one_line(row): {one_line(key): value for key, value in row_figures.items()}
        for row, row_figures in (figures or {}).items()
    }
    figures, trained = rows, one_line(trained) if trained else trained
    own = {figure: value for figure, value in figures.get(trained or "", {}).items() if figure not in rewarded}
    results = [] if trained_on else list(_results(own, source))
    card_data = ModelCardData(
        library_name="peft",
        pipeline_tag="image-to-text",
        tags=["captune", "image-captioning"],
        base_model=None if is_local(base, bare=False) else base,
        model_name=name if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_str=(resources.files("captune.runs") / "card.md.j2").read_text(encoding="utf-8"),
        name=name,
        adapter=one_line(adapter),
        description=description,
        base=base,
        method=method,
        data=data,
        gate=gate,
        figures={cell(row): row_figures for row, row_figures in figures.items()},
        cell=cell,
        code=code,
        quoted=lambda text: shlex.quote(text.replace("`", "")),
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0)),
        names=list(dict.fromkeys(figure for row in figures.values() for figure in row)),
        number=lambda value: f"{value:.3f}" if isinstance(value, int | float) else "–",
        source=source,
        images=span(images),
        trained_on=trained_on,
        rewarded=rewarded,
        command=command.replace("\r", " "),
        made_with=_made_with(versions),
    )
    return f"{card}\n"


def one_line(text: str) -> str:
    """A name that may come from anywhere, as one line of UTF-8 without control characters."""
    text = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return "".join(character for character in text if character.isprintable())


def code(text: str) -> str:
    """A text as an inline code span, which holds backticks where its own fence is longer than theirs."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def cell(text: str) -> str:
    """A text in a table or a heading: nothing in it is markup."""
    return re.sub(r"([\\`*\[\]<>|~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _results(figures: Mapping[str, Any], source: str | None) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for figure, value in figures.items():
        if source and isinstance(value, int | float):
            yield EvalResult(
                task_type="image-to-text",
                dataset_type=source.partition("?")[0],
                dataset_name=source,
                metric_type=figure,
                metric_value=value,
            )


def _made_with(versions: Mapping[str, Any]) -> str:
    names = ("captune", "torch", "transformers", "trl", "peft")
    parts = [f"{name} {versions[name]}" for name in names if versions.get(name)]
    if versions.get("git_commit"):
        parts[0] = f"{parts[0]} (commit {versions['git_commit']})"
    return ", ".join(parts) or "unknown versions"
