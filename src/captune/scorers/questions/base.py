"""What scorers that ask a language model have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from captune.errors import SpecError
from captune.models.answerers import Answerer, load_answerer
from captune.models.hub import DEFAULT_ANSWERER
from captune.models.packaged import WEAK
from captune.scorers import Scorer

MODEL = (
    "the language model that answers: a folder, a hub name, or a server, http://host:port/v1#model-name; default: "
    f"{DEFAULT_ANSWERER}, which is weak: {WEAK}"
)


@dataclass(frozen=True)
class FileAndModel:
    """What a spec sets: a file about the images, and who answers."""

    file: Annotated[str, Field(description="what is known about each image: CSV or JSON")] = ""
    model: Annotated[str, Field(description=MODEL)] = ""


class QuestionScorer(Scorer):
    """Asks a language model about a caption; a file says what is true of the image.

    Args:
        argument: the file and the model: "labels.csv?model=Qwen/Qwen3-8B".
        answerer: who answers, in place of the model that the argument names.
        device: where a local model runs.

    Raises:
        SpecError: without a file.
    """

    required_columns = ("image_id",)
    cached = True
    positional = ("file",)
    Settings = FileAndModel
    file_of: str = ""  # a file's name, for messages

    def __init__(
        self, argument: str | None = None, *, answerer: Answerer | None = None, device: str | None = None
    ) -> None:
        settings = self.read(argument)
        if not settings.file:
            raise SpecError(
                f"scorer {self.name!r} needs a file, {self.file_of}: write {self.usage!r}, with a model's folder, a "
                "hub name, or a server, ?model=http://host:port/v1#model-name"
            )
        self.file = Path(settings.file).expanduser()
        self.answerer = answerer or load_answerer(settings.model or DEFAULT_ANSWERER, device=device)

    def check(self) -> None:
        """Raise ScorerError where the file or the model is missing or invalid."""
        self._read  # noqa: B018
        self.answerer.check()

    @property
    def _read(self) -> Any:
        """What the file says; a subclass reads it once."""
        raise NotImplementedError
