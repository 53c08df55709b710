"""Judges of statements that follow rules, for the scorers of statements: alone, and behind a server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from captune.models.answerers import Prompt, Question

MOOD = "lovely"


def split(text: str) -> list[dict[str, Any]]:
    """A fact per part between commas; one that is lovely is not descriptive."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [{"fact": part, "descriptive": MOOD not in part} for part in parts]


def numbered(text: str) -> list[str]:
    return re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)


def write(prompt: str) -> str:
    """What a model writes: a text is split at its commas, a statement is true if the description has it word for word,
    two statements match if they begin with the same word."""
    if prompt.startswith("Split"):
        return json.dumps(split(re.findall('Description: "(.*)"\n', prompt)[0]))
    if prompt.startswith("Look"):
        reference, _, rest = prompt.partition("Say of each statement")
        return json.dumps([fact in reference for fact in numbered(rest)])
    assert prompt.startswith("Here are two lists")
    ours, _, theirs = prompt.partition("List B:")
    known = [fact.split()[0] for fact in numbered(theirs)]
    firsts = [fact.split()[0] for fact in numbered(ours)]
    return "```json\n" + json.dumps([known.index(f) + 1 if f in known else None for f in firsts]) + "\n```"


def verdict(prompt: str) -> int:
    """Of (Entailed, Contradicted, Neutral): word for word, else by mood."""
    description, statement = re.findall('Description: "(.*)"\nStatement: "(.*)"\n', prompt)[0]
    return 0 if statement in description else 2 if MOOD in statement else 1


def shown(prompt: str) -> int:
    """Of (Yes, No, Unsure): whether a word is in the captions; nobody knows about a shadow."""
    captions, _, question = prompt.partition("Does the image show this: ")
    noun = question.partition("?")[0]
    return 2 if noun == "shadow" else 0 if re.search(rf"\b{noun}\b", captions) else 1


class FactJudge:
    """In the slot for a model that answers.

    Args:
        says: a rule for the written answers, in place of `write`.
        chooses: a rule for the choices.
    """

    label = "judge@1"

    def __init__(self, says: Callable[[str], str] = write, chooses: Callable[[str], int] = verdict) -> None:
        self.says, self.chooses = says, chooses
        self.prompts: list[Prompt] = []
        self.questions: list[Question] = []
        self.settings: list[dict[str, Any]] = []

    def check(self) -> None:
        pass

    def complete(self, prompts: Sequence[Prompt], **settings: Any) -> list[str]:
        self.prompts += prompts
        self.settings.append(settings)
        return [self.says(prompt.text) for prompt in prompts]

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        self.questions += questions
        return [np.eye(len(q.answers))[self.chooses(q.text)] * 0.7 + 0.1 for q in questions]


def reply(payload: dict, n: int) -> dict:
    """The same judge behind a server of the OpenAI kind."""
    content = payload["messages"][0]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    if not payload.get("logprobs"):
        return {"choices": [{"message": {"role": "assistant", "content": write(text)}, "finish_reason": "stop"}]}
    import tiny_llm

    three = ("Yes", "No", "Unsure") if "Does the image show" in text else ("Entailed", "Contradicted", "Neutral")
    said = three[(shown if three[0] == "Yes" else verdict)(text)]
    return tiny_llm.completion({said: 0.9, "The": 0.1})
