"""How a caption is produced beyond `generate()`: one file per decoder, loaded by a spec.

    decoder = load_decoder("cfg:2.0")
    captions = decoder(captioner, images, max_new_tokens=40)  # list[str]

A decoder is a frozen dataclass whose fields are its settings; settings of the call are those of `Captioner.generate`.
To add one: such a class in a package with an entry point `captune.decoders`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from captune.errors import SettingError, UnknownDecoder
from captune.utils import spec as specs
from captune.utils.registry import Registry

#: Imported when asked for.
DECODERS = Registry(
    "captune.decoders",
    "decoder",
    {
        "cfg": "captune.decoding.cfg:ClassifierFreeGuidance",
        "contrastive": "captune.decoding.contrastive:Contrastive",
        "best-of": "captune.decoding.best_of:BestOf",
        "self-correct": "captune.decoding.self_correct:SelfCorrection",
        "zerocap": "captune.decoding.zerocap:ZeroCap",
    },
    error=UnknownDecoder,
)


class Decoder(Protocol):
    """What turns images into captions with a captioner (`ZeroCap`: with a `ZeroCapModel`).

    Attributes:
        positional: the fields that a spec gives by position, as in "best-of:8:clip".
        example: a whole spec, for messages.
        samples: whether captions are sampled.
        needs_model: whether it works inside the model, so that samples and log-probabilities, which a server or vLLM
            gives, are not enough; one that does not say counts as True.
    """

    positional: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    samples: ClassVar[bool]
    needs_model: ClassVar[bool] = True

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns of the data without which it cannot work; all have the image."""

    @property
    def signature(self) -> str:
        """Everything that decides the captions beside captioner, images and the call's settings."""

    def __call__(self, captioner: Any, images: Sequence[Any], **settings: Any) -> list[str]:
        """Return one caption per image."""


def load_decoder(spec: str) -> Decoder:
    """Return the decoder of a spec.

    Args:
        spec: "cfg:2.0", "contrastive:0.5?beta=0.2", "best-of:8:clip - 0.1*length", "zerocap:?steps=3".

    Raises:
        UnknownDecoder: with the nearest names.
        SettingError: for a setting that the decoder does not have, or a value out of range.
    """
    name, _, argument = spec.strip().partition(":")
    cls = DECODERS[name]
    more = len(dataclasses.fields(cls)) > len(cls.positional)  # else a "?" belongs to what is named, best-of's scorer
    return specs.parse(
        argument,
        cls,
        what=f"decoder {name!r}",
        positional=cls.positional,
        example=cls.example,
        error=SettingError,
        query="first" if more else "never",
    )


__all__ = ["DECODERS", "Decoder", "UnknownDecoder", "load_decoder"]
