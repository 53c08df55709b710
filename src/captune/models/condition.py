"""A condition that an adapter was trained under, such as NoC's alignment level, as words before the prompt.

NoC (Kang et al., ICCV 2023) gives its decoder an embedding per level; in words (`level 7`) every vision-language model
can be told, and LoRA learns what they mean. What was seen in training lies beside the adapter, or the weights that it
is merged into, in ``condition.json``: a level that was not is refused. Asked for nothing, an adapter with a condition
captions under the highest one, as in NoC's figure 3: under none it would be asked for what it never learned.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from captune.errors import CaptionerError, UsageError
from captune.utils.files import read_json, replace_file

FILE = "condition.json"
PROMPT_FILE = "prompt.json"
MOST = 100  # values: a number that differs from caption to caption is no condition


class Condition(NamedTuple):
    """What a captioner was told in training.

    Attributes:
        column: of the captions that it was trained on.
        prompts: {value: the text beside the image}, the highest value last.
    """

    column: str
    prompts: Mapping[str, str]

    @classmethod
    def of(cls, column: str, values: Any, prompt: str) -> Condition:
        """Make the condition of some values.

        Args:
            column: where they stand.
            values: numbers or texts.
            prompt: the text beside the image without them.

        Raises:
            UsageError: there is one value, or there are more than can be told apart.
        """
        named = {as_written(value): value for value in values}
        if not 2 <= len(named) <= MOST:
            raise UsageError(
                f"--condition {column}: the column has {len(named)} values, and a condition has 2 to {MOST}; "
                "captune curate levels sorts scores into levels"
            )
        try:
            order = sorted(named, key=lambda name: float(named[name]))
        except (TypeError, ValueError):
            order = sorted(named)
        return cls(column, {name: f"{column} {name}{f'. {prompt}' if prompt else ''}" for name in order})

    @property
    def highest(self) -> str:
        """The highest value."""
        return list(self.prompts)[-1]

    def save(self, folder: Path) -> None:
        """Write it beside an adapter."""
        replace_file(folder / FILE, json.dumps(self._asdict(), indent=1, ensure_ascii=False) + "\n")


def save_prompt(folder: Path, prompt: str | None) -> None:
    """Write the prompt that weights were trained under beside them; None: remove what an earlier one says."""
    if prompt is None:
        (folder / PROMPT_FILE).unlink(missing_ok=True)
    else:
        replace_file(folder / PROMPT_FILE, json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n")


def read_prompt(folder: str | os.PathLike[str] | None) -> str | None:
    """Return the prompt that the folder or hub name of an adapter, or of merged weights, says; None without one.

    Raises:
        CaptionerError: the file names none.
    """
    file = _beside(folder, PROMPT_FILE)
    if file is None:
        return None
    found = read_json(file, error=CaptionerError)
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise CaptionerError(f"{file} does not say which prompt the weights were trained under")
    return str(found["prompt"])


def _beside(weights: str | os.PathLike[str] | None, name: str) -> Path | None:
    """The file of a name beside weights: in their folder, or in their repository on the hub."""
    if weights is None:
        return None
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils import cached_file

    with suppress(OSError, ValueError):  # there is no such file, or the weights' own loader says what is wrong
        found = cached_file(str(weights), name)
        return None if found is None else Path(found)
    return None


def as_written(value: Any) -> str:
    """Return a value as a prompt has it: 7 for 7.0."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def read_condition(adapter: str | os.PathLike[str] | None) -> Condition | None:
    """Return the condition that the folder or hub name of an adapter, or of merged weights, says; None without one.

    Raises:
        CaptionerError: the file is not one.
    """
    file = _beside(adapter, FILE)
    if file is None:
        return None
    found = read_json(file, error=CaptionerError)
    prompts = found.get("prompts") if isinstance(found, dict) else None
    if not (isinstance(prompts, dict) and prompts and all(isinstance(prompt, str) for prompt in prompts.values())):
        raise CaptionerError(f"{file} does not say which conditions the captioner knows; train it again")
    return Condition(str(found.get("column")), prompts)


def prompt_under(
    adapter: str | os.PathLike[str] | None, asked: str, model: str | os.PathLike[str] | None = None
) -> str:
    """Return the prompt of what is asked, ``level=7``.

    Args:
        adapter: its folder.
        asked: column and value.
        model: the folder of the model; an adapter may be merged into it.

    Raises:
        UsageError: both have no condition, another one, or have not seen that value.
    """
    condition = read_condition(adapter) or read_condition(model)
    if condition is None:
        raise UsageError(
            f"--condition {asked}: {adapter or model or 'the model'} was not trained under a condition; train an "
            "adapter with captune sft --condition COLUMN, and name it with --adapter"
        )
    column, equals, value = asked.partition("=")
    seen = ", ".join(condition.prompts)
    if column.strip() != condition.column or not equals:
        raise UsageError(f"--condition {asked}: the condition is {condition.column}=N, N one of {seen}")
    if value.strip() not in condition.prompts:
        raise UsageError(f"--condition {asked}: training has never seen {condition.column} {value}; it knows {seen}")
    return condition.prompts[value.strip()]
