"""Models that answer multiple-choice questions: local language models, vision-language models, servers.

answerer = load_answerer("Qwen/Qwen3-8B")                  # or a folder, or "http://host:8000/v1#model-name"
answerer.answer_probabilities([Question("Is a dog an animal?", ("Yes", "No"), "dogs")])  # [array([0.99, 0.01])]
"""

from __future__ import annotations

from pathlib import Path

from captune.models.answerers.base import Answerer, Question, is_server, one_line
from captune.utils.spec import read_argument

__all__ = ["Answerer", "Question", "file_and_answerer", "is_server", "load_answerer", "one_line"]


def load_answerer(spec: str, *, device: str | None = None) -> Answerer:
    """Return the answerer that a spec names; nothing is loaded before the first question.

    Args:
        spec: a language model's folder or hub name, or "http(s)://host:port/v1#model-name".
        device: of a local model; default: cuda where there is one, else cpu.

    Raises:
        SettingError: a server's address without a model's name.
    """
    if is_server(spec):
        from captune.models.answerers.server import Server

        return Server(spec)
    from captune.models.answerers.local import LanguageModel

    return LanguageModel(spec, device=device)


def file_and_answerer(
    argument: str | None, scorer: str, file_of: str, answerer: Answerer | None, device: str | None
) -> tuple[Path, Answerer]:
    """Read "labels.csv?model=Qwen/Qwen3-8B": the file, and the answerer unless one is given."""
    example = f"{scorer}:{file_of}?model=Qwen/Qwen3-8B"
    file, settings = read_argument(scorer, argument, ("model",), example)
    if not file or not (answerer or settings.get("model")):
        missing = "a language model that answers" if file else "a file, " + file_of
        raise ValueError(
            f"scorer {scorer!r} needs {missing}: write {example!r}, with a model's folder, a hub name, or a server, "
            "?model=http://host:port/v1#model-name"
        )
    return Path(file).expanduser(), answerer or load_answerer(settings["model"], device=device)
