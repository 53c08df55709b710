"""What scorers that read with a frozen encoder have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from captune.errors import BadImage, EncoderError, ScorerError
from captune.models import hub
from captune.scorers.base import Scorer

if TYPE_CHECKING:
    from captune.models.encoders.sentence import TextEncoder

Encoder = TypeVar("Encoder")


class EncoderScorer(Scorer, Generic[Encoder]):
    """A scorer that reads with an encoder, which `check` looks for and the first use loads.

    Subclasses set `_model`, the encoder's name, `_encoder`, one that is loaded, or None, and `_device`; they say how
    their kind is found and loaded where it does not encode images and texts.
    """

    _model: str = ""
    _encoder: Encoder | None = None
    _device: str | None = None

    def find_encoder(self) -> None:
        """Raise EncoderError where the encoder is missing; loads nothing."""
        check_encoder(self._model)

    def load_encoder(self) -> Encoder:
        """Load the encoder."""
        from captune.models.encoders import load_encoder

        return cast(Any, load_encoder(self._model, self._device))

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if self._encoder is None:
            with as_scorer_error(self.name):
                self.find_encoder()

    @property
    def encoder(self) -> Encoder:
        """Loaded at first use."""
        if self._encoder is None:
            with as_scorer_error(self.name):
                self._encoder = self.load_encoder()
        return self._encoder


class SentenceScorer(EncoderScorer["TextEncoder"]):
    """A scorer that reads with a model of sentence-transformers."""

    def find_encoder(self) -> None:
        """Raise EncoderError where the encoder is missing; loads nothing."""
        from captune.models.encoders.sentence import TextEncoder

        TextEncoder.check(self._model)

    def load_encoder(self) -> TextEncoder:
        """Load the encoder."""
        from captune.models.encoders.sentence import TextEncoder

        return TextEncoder.load(self._model, device=self._device)


def check_encoder(name: str) -> None:
    """Raise EncoderError where an encoder of images, or of images and texts, is not there. Loads nothing."""
    hub.check(name, what="encoder", example="openai/clip-vit-base-patch32", error=EncoderError)


@contextmanager
def as_scorer_error(name: str) -> Iterator[None]:
    """What an encoder or a corpus refuses is told as the scorer's failure."""
    try:
        yield
    except (BadImage, ScorerError):  # an image is for the evaluation, which leaves it out
        raise
    except ValueError as error:  # EncoderError, CorpusError
        raise ScorerError(f"scorer {name!r}: {error}") from error
