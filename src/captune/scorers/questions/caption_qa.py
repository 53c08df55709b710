"""CaptionQA: multiple-choice questions answered from the caption alone, with a refusal that is worth something."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.data.questions import MultipleChoice
from captune.errors import SpecError
from captune.models.answerers import Answerer
from captune.scorers._support.choices import MODEL, QUESTIONS, REFUSAL, Asked, ChoiceScorer
from captune.scorers.base import safe_ratio
from captune.utils.hashing import fingerprint

BONUS = 0.05
PUBLISHED_PROMPT = """\
You get a caption of an image and a question about the image. Answer with a SINGLE LETTER (A, B, C, ...), nothing else.

Caption:
{caption}

Question:
{question}

Options:
{options}

Answer:"""
_VERBS = "is are was were do does did have has had can could will would should shall may might must"
YES_NO_OPENINGS = tuple(f"{word} " for word in _VERBS.split())


class CaptionQA(ChoiceScorer):
    """CaptionQA: right answers from the caption alone count 1, wrong ones 0, a refusal a little more than a guess.

        s(q) = 1 if the answer is the key;  1/K + 0.05 if it is "cannot answer";  0 otherwise.  K options without it

    The figure is the mean over all questions; beside it `accuracy`, `cannot_ratio` (refusals of all questions) and the
    accuracy of each category. With K = 4 a refusal is worth 0.30, so a caption that says nothing is not at 0: read the
    cannot ratio with the score. Each question is asked once, its options and the refusal in an order shuffled by the
    seed; the likeliest letter is the answer.

    A question whose options are just Yes and No offers no refusal. The released script decides this by substring
    ("north" and "eyes" pass for No and Yes) and takes every question that begins with Is, Are, Do ... for one; then the
    reader must guess. `compat=published` brings that back, with its reading of texts (what follows the first line
    break, a letter or a number; unreadable counts 0), its scores rounded to 4 digits and its order of options, which is
    that of one generator for the whole file: as there where every image of the file has a caption. An exact reader that
    finds nothing where no refusal is offered is wrong there.

        caption_qa, caption_qa:storybook              a source's own questions, its exact reader
        caption_qa:natural.json?model=Qwen/Qwen2.5-72B-Instruct
    """

    name = "caption_qa"
    primary = "caption_qa"
    higher_is_better: ClassVar = {"caption_qa": True, "accuracy": True, "accuracy_*": True, "cannot_ratio": False}
    labels: ClassVar = {"caption_qa": "CaptionQA", "cannot_ratio": "cannot answer"}
    source = "CaptionQA (Yang et al., 2025)"
    cost = "storybook: 1 ms; else one answer per question"
    usage = "caption_qa:natural.json?model=Qwen/Qwen3-8B"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        questions: Annotated[str, Field(description=QUESTIONS)] = "storybook"
        model: Annotated[str, Field(description=MODEL)] = ""
        seed: Annotated[int, Field(ge=0, description="of the order of the options")] = 0
        hard: Annotated[bool, Field(description="a source's wrong options come from the same image first")] = True
        compat: Annotated[
            Literal["none", "published"], Field(description="published: the released script, its faults included")
        ] = "none"

    def __init__(
        self, argument: str | None = None, *, answerer: Answerer | None = None, device: str | None = None
    ) -> None:
        super().__init__(argument, answerer=answerer, device=device)
        self._published: dict[str, list[tuple[int, ...]]] | None = None
        if self.settings.compat == "published" and (self.scheme is not None or self.answerer is None):
            raise SpecError(f"scorer {self.name!r}: compat=published reads a model's texts on a file's questions: "
                            "caption_qa:FILE?compat=published&model=MODEL")  # fmt: skip

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, 4 + 2 C): points, right, refused and asked; then right and asked of each category."""
        questions = self.questions(captions, columns)
        images = self.images(len(captions), columns)
        asked: list[Asked] = []
        owners: list[int] = []
        for i, (caption, own, image) in enumerate(zip(captions, questions, images, strict=True)):
            orders = self.orders(own, columns["image_id"][i] if self.scheme is None else image)
            asked += [Asked(caption, question, order, image) for question, order in zip(own, orders, strict=True)]
            owners += [i] * len(own)
        answers = self._texts(asked) if self.settings.compat == "published" else self._likeliest(asked)
        places = {category: 4 + 2 * i for i, category in enumerate(self.categories)}
        rows = np.zeros((len(captions), 4 + 2 * len(places)))
        for i, item, answer in zip(owners, asked, answers, strict=True):
            k = len(item.question.options)
            right, refused = answer == item.question.answer, answer == k and k in item.order
            points = 1.0 if right else 1 / k + BONUS if refused else 0.0
            points = round(points, 4) if self.settings.compat == "published" else points
            rows[i, :4] += [points, right, refused, 1]
            if item.question.category:
                place = places[item.question.category]
                rows[i, place : place + 2] += [right, 1]
        return rows

    def orders(self, questions: Sequence[MultipleChoice], image: str) -> list[tuple[int, ...]]:
        """Return the order of each question's options, the refusal among them where it is offered."""
        if self.settings.compat == "published":
            return self._published_orders[str(image)]
        found = []
        for question in questions:
            n = len(question.options) + (not is_yes_no(question))
            rng = random.Random(f"caption_qa/{self.settings.seed}/{image}/{question.text}")
            found.append(tuple(rng.sample(range(n), n)))
        return found

    @property
    def _published_orders(self) -> Mapping[str, list[tuple[int, ...]]]:
        if self._published is None:
            assert self.file is not None
            rng = random.Random(self.settings.seed)
            self._published = {}
            for image, own in self.file.questions.items():
                orders = []
                for question in own:
                    order = list(range(len(question.options) + (not is_yes_no_published(question))))
                    rng.shuffle(order)
                    orders.append(tuple(order))
                self._published[image] = orders
        return self._published

    def _likeliest(self, asked: Sequence[Asked]) -> list[int]:
        return [int(p.argmax()) for p in self.probabilities(asked)]

    def _texts(self, asked: Sequence[Asked]) -> list[int]:
        letters = [tuple(string.ascii_uppercase[: len(item.order)]) for item in asked]
        texts = self.texts(asked, PUBLISHED_PROMPT, letters, REFUSAL, 4, 0.0, form="{letter}. {text}")
        said = [published_answer(text.strip(), len(item.order)) for text, item in zip(texts, asked, strict=True)]
        return [-1 if place is None else item.order[place] for place, item in zip(said, asked, strict=True)]

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        points, right, refused, asked = (totals[..., i] for i in range(4))
        figures = {"caption_qa": points / asked, "accuracy": right / asked, "cannot_ratio": refused / asked}
        for i, category in enumerate(self.categories):
            own = totals[..., 4 + 2 * i : 6 + 2 * i]
            if own.ndim > 1 or own[1] > 0:  # left out where none is asked; 0 in a resample that happens to have none
                figures[f"accuracy_{category}"] = safe_ratio(own[..., 0], own[..., 1])
        return figures

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the mean score of each caption's questions."""
        return rows[:, 0] / rows[:, 3]

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        published = f"|published:{fingerprint(PUBLISHED_PROMPT)}" if self.settings.compat == "published" else ""
        return f"caption_qa|{self.about()}|seed:{self.settings.seed}|cannot:1/K+{BONUS:g}{published}"


def is_yes_no(question: MultipleChoice) -> bool:
    """Whether the options are Yes and No, in whatever order and case, and nothing else."""
    return sorted(option.strip(" .").casefold() for option in question.options) == ["no", "yes"]


def is_yes_no_published(question: MultipleChoice) -> bool:
    """What the released script takes for a yes/no question: by substrings of the options, or by its first word."""
    options = [option.lower() for option in question.options]
    both = any("yes" in option for option in options) and any("no" in option for option in options)
    return both or question.text.lower().startswith(YES_NO_OPENINGS)


def published_answer(text: str, n: int) -> int | None:
    """Return the place of the option that the released script reads out of a reply; None where it reads none.

    It takes what follows the end of a thought, then what follows "Answer: ", then what follows the first line break,
    whatever stands before it; in that the first letter that is a word, if it is one of the n options', and else the
    first number.
    """
    for mark in ("</think>", "Answer: ", "\n"):
        text = text.split(mark, 1)[-1]
    letter = re.search(r"\b[A-Z]\b", text.upper())
    if letter and (place := string.ascii_uppercase.index(letter[0])) < n:
        return place
    number = re.search(r"\b[1-9][0-9]?\b", text)
    return int(number[0]) - 1 if number and int(number[0]) <= n else None
