"""A small trained head on frozen encoders, as a folder: config.json, and model.safetensors with the head alone.

config.json names the encoders with their digests: a head says nothing of another encoder's vectors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from captune.errors import CaptuneError, EncoderError, first_line
from captune.utils.files import read_json, replace_file, replacing
from captune.utils.loads import check_keys

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1


class Frozen(BaseModel):
    """An encoder that a head stands on: its name, its digest, and the size of its vectors."""

    model_config = ConfigDict(extra="forbid")

    name: str
    digest: str
    size: int = Field(ge=1)


class HeadConfig(BaseModel):
    """What every config.json of a head holds; a subclass adds its own, and what messages call it.

    Attributes:
        noun: what it is, such as "an encoder pair".
        verb: what makes one.
        error: what is raised for a folder that is not one.
    """

    model_config = ConfigDict(extra="forbid")
    file: ClassVar[str] = CONFIG
    noun: ClassVar[str]
    verb: ClassVar[str]
    error: ClassVar[type[CaptuneError]] = EncoderError

    model_type: str
    format: int = FORMAT

    def check(self, what: str, needed: Frozen, given: Any, name: str) -> None:
        """See that an encoder is the one that the head was trained on.

        Args:
            what: the noun in the message.
            needed: as this config says.
            given: an encoder that is loaded.
            name: of the head's folder.

        Raises:
            CaptuneError: of the kind `error`: it is another one.
        """
        if needed.digest != given.digest:
            raise self.error(
                f"{name} was trained on the {what} {needed.name}@{needed.digest}, not on "
                f"{given.name}@{given.digest}: its heads say nothing of another encoder's vectors"
            )


C = TypeVar("C", bound=HeadConfig)


def read_config(folder: Path, kind: type[C]) -> C:
    """Read the config.json of a head.

    Raises:
        CaptuneError: of the kind's own class: it is another thing's, of another format, or not whole.
    """
    path = folder / CONFIG
    content = read_json(path, error=kind.error)
    if not isinstance(content, Mapping) or content.get("model_type") != kind.model_fields["model_type"].default:
        raise kind.error(f"{path} is not that of {kind.noun}; train one with {kind.verb}")
    if content.get("format") != FORMAT:
        raise kind.error(f"{path} has format {content.get('format')!r}; this captune reads {FORMAT}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise kind.error(f"{path}: {where}: {first['msg']}; train it again with {kind.verb}") from error


def read_weights(folder: Path, head: nn.Module, kind: type[HeadConfig], name: str) -> None:
    """Load a head's weights into it.

    Raises:
        CaptuneError: of the kind's own class: they cannot be read, or are those of another head.
    """
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise kind.error(f"{folder / WEIGHTS} cannot be read: {first_line(error)}") from error
    what, remedy = f"{kind.noun.partition(' ')[2]} {name!r}", f"Train it again with {kind.verb}."
    check_keys(weights, head.state_dict(), what=what, remedy=remedy, error=kind.error)
    head.load_state_dict(weights)


def save_head(folder: Path, head: nn.Module, config: HeadConfig) -> None:
    """Write the head, then config.json, without which the folder is nothing; each in one step."""
    with replacing(folder / WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, temporary)
    replace_file(folder / CONFIG, json.dumps(config.model_dump(), indent=1, ensure_ascii=False) + "\n")
