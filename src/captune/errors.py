"""Every error that captune raises on purpose; the message is one sentence that says what is wrong and what to do.

`CaptuneError` is the base: the command line prints its message and exits with its `exit_code`. Whatever else escapes
is a bug. Each also is the builtin error of its kind, so that `except ValueError` works.
"""

from __future__ import annotations

import os
import re

_IN_URL = re.compile(  # a password that holds / or # as it is, too, but not a port: http://host:8000/v1#model@1
    r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#'\"|]+|[^\s/?#@:'\"|]*:(?!\d+(?:[/?#\s]|$))[^\s'\"|]*)@", re.IGNORECASE
)
_IN_QUERY = re.compile(r"([?&;](?:[\w-]*(?:key|token|secret|signature|password))=)[^&\s#'\"|]+", re.IGNORECASE)
_BEARER = re.compile(r"(\bBearer\s+)[^\s'\"]{4,}", re.IGNORECASE)
_SECRET_NAMES = re.compile(r"(API_?KEY|ACCESS_KEY(_ID)?|SECRET(_KEY)?|TOKEN|PASSWORD|PASSWD)$")
_HIDDEN = "***"


def redact(text: str) -> str:
    """Return a text without secrets: passwords and keys in URLs, bearer tokens, and what the environment calls a key.

    Every message, log line, signature and file that could hold one goes through this function.
    """
    for name, value in os.environ.items():
        secret = value.strip()
        if len(secret) >= 8 and secret in text and _SECRET_NAMES.search(name.upper()):
            text = text.replace(secret, _HIDDEN)
    text = _IN_URL.sub(rf"\1{_HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\1{_HIDDEN}", text)
    return _BEARER.sub(rf"\1{_HIDDEN}", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without secrets; its kind where it has none."""
    return redact(next(iter(str(error).strip().splitlines()), type(error).__name__))


class CaptuneError(Exception):
    """The base of captune's errors.

    Attributes:
        exit_code: what the command line exits with: 1 for work that failed, 2 for wrong usage.
    """

    exit_code = 1

    def __str__(self) -> str:
        return redact(super().__str__())


class UsageError(CaptuneError, ValueError):
    """An invalid command line or configuration; the message says how to fix it."""

    exit_code = 2


class SettingError(UsageError):
    """Settings that cannot be used together, or a value out of range; the message names the setting."""


class SourceError(CaptuneError, ValueError):
    """A source of images or references that cannot be used; the message says what is wrong and what to do."""


class BadImage(CaptuneError, ValueError):
    """An image that cannot be used: ``item`` names it, ``why`` says what is wrong with it."""

    def __init__(self, item: str, why: str) -> None:
        super().__init__(item, why)  # both in args, so that it survives pickling between worker processes
        self.item = item
        self.why = why

    def __str__(self) -> str:
        return redact(f"{self.item}: {self.why}")


class CaptionFileError(CaptuneError, ValueError):
    """A caption file that cannot be used; the message names the file, the place and the reason."""


class CaptionerError(CaptuneError, ValueError):
    """A captioner cannot be loaded or used; the message says what is missing and what to do."""


class ServerError(CaptuneError, RuntimeError):
    """A server that gave no answer; the message names it and says why and what to do."""


class EncoderError(CaptuneError, ValueError):
    """An encoder that cannot be loaded or used; the message says which, why and what to do."""


class DetectorError(CaptuneError, ValueError):
    """A detector that cannot be loaded or used; the message says which, why and what to do."""


class CorpusError(CaptuneError, ValueError):
    """A corpus that cannot be built, opened or searched as asked; the message says why and what to do."""


class UnknownScorer(UsageError):
    """A scorer's name that the registry does not hold; the message has the nearest names."""


class MissingColumn(CaptuneError, ValueError):
    """A column that a scorer needs and the data lack; raised before any work starts."""


class ScorerError(CaptuneError, RuntimeError):
    """What a scorer runs on is missing or failed: Java, a model, a server, an invalid answer.

    The message is one sentence that says what and how to get it. An evaluation continues with the other scorers.
    """


class ExpressionError(UsageError):
    """An expression that cannot be read; the message shows the place."""


class UnknownDecoder(UsageError):
    """A decoder's name that the registry does not hold; the message has the nearest names."""


class EvaluationError(CaptuneError, ValueError):
    """An evaluation that cannot be done, or would mean nothing; the message says why and what to do."""


class RunError(CaptuneError, ValueError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


class TrainingError(CaptuneError, RuntimeError):
    """Training that cannot go on; the message names the step, the reason and what was kept."""


class ReportError(CaptuneError, NotADirectoryError, ValueError):
    """A report that cannot be made: a folder that is not there, or none named."""


class CurationError(CaptuneError, ValueError):
    """A set that cannot be curated as asked; the message says why and what to do."""


class AnnotationError(CaptuneError, RuntimeError):
    """A page for judging or correcting captions that cannot be served, or data that it cannot take; says why."""


class RegistryError(UsageError):
    """A name that a registry does not hold; the message has the nearest names."""


class SpecError(UsageError):
    """A spec (scorer, decoder, source, corpus) that cannot be read; the message says what is known instead."""
