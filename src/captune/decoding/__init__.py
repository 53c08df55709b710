"""How a caption is produced beyond `generate()`: one file per decoder, loaded by a spec.

    decoder = load_decoder("cfg:2.0")
    captions = decoder(captioner, images, max_new_tokens=40)  # list[str]

A decoder is a frozen dataclass whose fields are its settings; settings of the call are those of `Captioner.generate`.
To add one: a module with such a class, and a line in `DECODERS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl

from captune.errors import UnknownDecoder

#: name -> "module:class". Imported when asked for.
DECODERS: dict[str, str] = {
    "cfg": "captune.decoding.cfg:ClassifierFreeGuidance",
    "contrastive": "captune.decoding.contrastive:Contrastive",
    "best-of": "captune.decoding.best_of:BestOf",
    "self-correct": "captune.training.sc_captioner:SelfCorrection",
    "zerocap": "captune.decoding.zerocap:ZeroCap",
}


class Decoder(Protocol):
    """What turns images into captions with a captioner (`ZeroCap`: with a `FrozenPair`)."""

    positional: ClassVar[tuple[str, ...]]  # the fields that the spec gives by place: "best-of:8:clip"
    example: ClassVar[str]
    samples: ClassVar[bool]  # whether captions are drawn by lot

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns of the data without which it cannot work; all have the image."""

    @property
    def signature(self) -> str:
        """Everything that decides the captions beside captioner, images and the call's settings."""

    def __call__(self, captioner: Any, images: Sequence[Any], **settings: Any) -> list[str]:
        """One caption per image."""


def load_decoder(spec: str) -> Decoder:
    """ "cfg:2.0", "contrastive:0.5?beta=0.2", "best-of:8:clip - 0.1*length", "zerocap:?steps=3" -> a decoder.

    Raises:
        UnknownDecoder: with the nearest names.
        ValueError: for a setting that the decoder has not, or a value that it cannot use.
    """
    name, _, argument = spec.strip().partition(":")
    if name not in DECODERS:
        near = difflib.get_close_matches(name.lower(), DECODERS, n=2, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UnknownDecoder(f"no decoder is called {name!r}. {hint}The decoders are {', '.join(DECODERS)}.")
    module, _, attribute = DECODERS[name].partition(":")
    cls: Any = getattr(importlib.import_module(module), attribute)
    fields: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(cls)}
    query = ""
    if len(fields) > len(cls.positional):  # else a "?" belongs to what is named, such as best-of's scorer
        argument, _, query = argument.partition("?")
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        heads = argument.split(":", max(0, len(cls.positional) - 1)) if argument else []
        given = {**dict(zip(cls.positional, heads, strict=False)), **given}
        if (heads and not cls.positional) or not given.keys() <= fields.keys():
            raise ValueError(f"its settings are {', '.join(fields)}" if fields else "it has no settings")
        values = {key: fields[key](value) for key, value in given.items() if value or fields[key] is str}
    except ValueError as error:
        raise ValueError(f"decoder {spec!r} cannot be read: {error}. Write it like {cls.example!r}.") from error
    return cls(**values)


__all__ = ["DECODERS", "Decoder", "UnknownDecoder", "load_decoder"]
