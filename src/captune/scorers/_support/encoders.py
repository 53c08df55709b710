"""What scorers that load an encoder have in common."""

from __future__ import annotations

from captune.errors import EncoderError, ScorerError


def check_encoder(name: str) -> None:
    """Raise ScorerError where an encoder's folder is not there. Loads nothing."""
    from captune.models.hub import resolve_encoder

    try:
        resolve_encoder(name)
    except EncoderError as error:
        raise ScorerError(str(error)) from error
