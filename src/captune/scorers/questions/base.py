"""What scorers that ask a language model have in common."""

from __future__ import annotations

from pathlib import Path

from captune.errors import SpecError
from captune.models.answerers import Answerer, load_answerer
from captune.scorers import Scorer


def file_and_answerer(
    scorer: Scorer, argument: str | None, file_of: str, answerer: Answerer | None, device: str | None
) -> tuple[Path, Answerer]:
    """Read "labels.csv?model=Qwen/Qwen3-8B": the file, and the answerer unless one is given.

    Raises:
        SpecError: without a file, or without something that answers.
    """
    settings = scorer.read(argument)
    if not settings.file or not (answerer or settings.model):
        missing = "a language model that answers" if settings.file else "a file, " + file_of
        raise SpecError(
            f"scorer {scorer.name!r} needs {missing}: write {scorer.usage!r}, with a model's folder, a hub name, or a "
            "server, ?model=http://host:port/v1#model-name"
        )
    return Path(settings.file).expanduser(), answerer or load_answerer(settings.model, device=device)
