"""Models that answer multiple-choice questions, and in free text: language models, vision-language models, servers.

answerer = load_answerer("Qwen/Qwen3-8B")                  # or a folder, or "http://host:8000/v1#model-name"
answerer.answer_probabilities([Question("Is a dog an animal?", ("Yes", "No"), "dogs")])  # [array([0.99, 0.01])]
answerer.complete([Prompt("Name an animal.")])                                           # ["A dog."]
"""

from __future__ import annotations

from typing import Any

from captune.models.answerers.base import Answerer, Cut, Prompt, Question, one_line
from captune.models.answerers.replies import ask_json
from captune.models.server import is_server

__all__ = [
    "Answerer",
    "Cut",
    "Prompt",
    "Question",
    "ask_json",
    "is_server",
    "load_answerer",
    "load_vision_answerer",
    "one_line",
]


def load_vision_answerer(
    spec: str, *, captioner: Any = None, device: str | None = None, opening: str = "", what: str = "judge"
) -> Answerer:
    """Return what answers about images: a server, or any model that `Captioner` loads.

    Args:
        spec: a vision-language model's folder or hub name, or "http(s)://host:port/v1#model-name".
        captioner: a loaded captioner, used in place of the name.
        device: of a local model.
        opening: the first words of every answer of a local model; a server cannot be made to begin so.
        what: the noun in messages.
    """
    if captioner is None and is_server(spec):
        return load_answerer(spec)
    from captune.models.answerers.vision import VisionModel

    return VisionModel(spec, captioner=captioner, device=device, opening=opening, what=what)


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
