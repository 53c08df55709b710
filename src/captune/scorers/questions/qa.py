"""The utility of a caption: how many questions about the image a reader answers right from the caption. CapRL."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.data.questions import MultipleChoice
from captune.errors import SpecError
from captune.models.answerers import Answerer
from captune.scorers._support.choices import MODEL, QUESTIONS, Asked, ChoiceScorer
from captune.scorers.base import safe_ratio
from captune.utils.hashing import fingerprint

PUBLISHED_REFUSAL = "Can not answer based on the caption"
PUBLISHED_PROMPT = """\
Answer the multiple-choice question strictly from the image caption, not from world knowledge.
Caption: <Caption Start> {caption} <Caption End>
Question: {question}
{options}
Answer with just the letter. The answer is"""
LETTER = re.compile(r"[A-I]")


class QA(ChoiceScorer):
    """Caption utility (CapRL): the probability that a reader without the image answers its questions right.

        R(c) = (1/N) sum_{k=1..N} r(M(c, Shuffle(q_k))),   r = 1 if M gives the key, else 0

    M reads the caption and the question, never the image. By default q_1..q_N are all questions of the image, r is the
    probability of the key's letter, and Shuffle stands for the mean over all cyclic rotations of the options: the
    expectation of the published draws over each option's place, without their noise. `rotations=random` draws
    `draws` questions with replacement, each in a new random order, as CapRL does.

    What the paper leaves open or contradicts: N is not stated (8 here, as in CapRL++). The refusal ("cannot answer") is
    always the last option and never the key; the released code labels it F while its worked examples call it E; here it
    has the letter that follows. Beside it: `accuracy`, whether the likeliest option is the key; `answered`, the share
    of questions whose likeliest option is no refusal; `accuracy_answered`. A source's exact reader is not asked what no
    caption can state. A false statement that no question asks about costs nothing: see a precision beside this figure.

        qa, qa:storybook?n=4                          a source's own questions, its exact reader
        qa:questions.json?model=Qwen/Qwen3-8B         a file, a language model

    `compat=published` reads the first capital letter from A to I in a text sampled at temperature 0.6, with the refusal
    labelled F; a text without one counts 0, as there. A failed request is an error all the same, and not 0 for a batch;
    a file whose key is not among the options is refused, and not left unshuffled.
    """

    name = "qa"
    primary = "qa"
    higher_is_better: ClassVar = {"qa": True, "accuracy": True, "accuracy_answered": True}
    labels: ClassVar = {"qa": "caption utility", "accuracy_answered": "accuracy where answered"}
    source = "CapRL (Xing et al., 2025), equation 2"
    cost = "storybook: 1 ms; else one answer per question and option"
    usage = "qa:questions.json?model=Qwen/Qwen3-8B"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        questions: Annotated[str, Field(description=QUESTIONS)] = "storybook"
        model: Annotated[str, Field(description=MODEL)] = ""
        n: Annotated[int, Field(ge=0, description="questions per image, the same for all its captions; 0: all")] = 0
        rotations: Annotated[
            Literal["all", "random"], Field(description="all cyclic rotations of the options, or random draws")
        ] = "all"
        draws: Annotated[int, Field(ge=1, description="of rotations=random, with replacement")] = 8
        seed: Annotated[int, Field(ge=0, description="of what is drawn")] = 0
        refusal: Annotated[bool, Field(description="whether 'cannot answer' is offered, as the last option")] = True
        hard: Annotated[bool, Field(description="a source's wrong options come from the same image first")] = True
        compat: Annotated[
            Literal["none", "published"], Field(description="published: sampled texts, the first letter A to I")
        ] = "none"

    def __init__(
        self, argument: str | None = None, *, answerer: Answerer | None = None, device: str | None = None
    ) -> None:
        super().__init__(argument, answerer=answerer, device=device)
        if self.settings.compat == "published":
            if self.answerer is None:
                raise SpecError("scorer 'qa': compat=published reads texts; name a language model, model=MODEL")
            if self.settings.rotations != "random" or not self.settings.refusal:
                raise SpecError("scorer 'qa': compat=published needs rotations=random and the refusal option")

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, 3): of each caption R(c), the share of questions with the right likeliest option, and that answered."""
        questions = self.questions(captions, columns)
        images = self.images(len(captions), columns)
        asked: list[Asked] = []
        owners: list[tuple[int, int]] = []  # (caption, number of the question or draw)
        for i, (caption, own, image) in enumerate(zip(captions, questions, images, strict=True)):
            for k, (question, order) in enumerate(self.draw(own, image, caption)):
                orders = [order] if order else self._rotations(len(question.options))
                asked += [Asked(caption, question, each, image) for each in orders]
                owners += [(i, k)] * len(orders)
        if self.settings.compat == "published":
            return self._published(asked, [i for i, _ in owners], len(captions))
        sums: dict[tuple[int, int], list[Any]] = {}
        for owner, item, p in zip(owners, asked, self.probabilities(asked), strict=True):
            known = sums.setdefault(owner, [item.question, np.zeros(len(p)), 0])
            known[1], known[2] = known[1] + p, known[2] + 1
        rows = np.zeros((len(captions), 4))
        for (i, _), (question, total, orders) in sums.items():
            p = total / orders
            best = int(p.argmax())
            rows[i] += [p[question.answer], best == question.answer, best < len(question.options), 1]
        return rows[:, :3] / np.maximum(rows[:, 3:], 1)

    def draw(
        self, questions: Sequence[MultipleChoice], image: str, caption: str
    ) -> list[tuple[MultipleChoice, tuple[int, ...]]]:
        """Return the questions that are asked, each with the order of its options; () for all rotations.

        Which of an image's questions is a function of the seed and the image; what is drawn of them, and in which
        order, of the caption, too.
        """
        chosen = list(questions)
        if self.settings.n and self.settings.n < len(chosen):
            rng = random.Random(f"qa/{self.settings.seed}/{image}")
            chosen = [chosen[i] for i in sorted(rng.sample(range(len(chosen)), self.settings.n))]
        if self.settings.rotations == "all":
            return [(question, ()) for question in chosen]
        rng = random.Random(f"qa/{self.settings.seed}/{image}/{caption}")
        drawn: list[tuple[MultipleChoice, tuple[int, ...]]] = []
        for _ in range(self.settings.draws):
            question = rng.choice(chosen)
            order = rng.sample(range(len(question.options)), len(question.options))
            drawn.append((question, (*order, *self._refused(question))))
        return drawn

    def _refused(self, question: MultipleChoice) -> tuple[int, ...]:
        return (len(question.options),) if self.settings.refusal else ()

    def _rotations(self, n: int) -> list[tuple[int, ...]]:
        if self.reader is not None:  # sees no places
            return [tuple(range(n + 1))]
        last = (n,) if self.settings.refusal else ()
        return [(*((i + shift) % n for i in range(n)), *last) for shift in range(n)]

    def _published(self, asked: Sequence[Asked], owners: Sequence[int], n: int) -> np.ndarray:
        letters = [published_letters(len(item.question.options)) for item in asked]
        texts = self.texts(asked, PUBLISHED_PROMPT, letters, PUBLISHED_REFUSAL, 10, 0.6)
        rows = np.zeros((n, 4))
        for i, item, own, text in zip(owners, asked, letters, texts, strict=True):
            found = LETTER.search(text)
            said = found[0] if found else ""
            right = said == own[item.order.index(item.question.answer)]
            rows[i] += [right, right, said in own[:-1], 1]
        return rows[:, :3] / np.maximum(rows[:, 3:], 1)

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        utility, right, answered = (totals[..., i] for i in range(3))
        return {
            "qa": utility / n,
            "accuracy": right / n,
            "answered": answered / n,
            "accuracy_answered": safe_ratio(right, answered),
        }

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        s = self.settings
        drawn = f"|draws:{s.draws}" if s.rotations == "random" else ""
        seed = f"|seed:{s.seed}" if drawn or s.n else ""
        published = f"|published:{fingerprint(PUBLISHED_PROMPT + PUBLISHED_REFUSAL)}" if s.compat != "none" else ""
        return (
            f"qa|{self.about()}|n:{s.n or 'all'}|rotations:{s.rotations}{drawn}{seed}"
            f"|refusal:{'last' if s.refusal else 'no'}{published}"
        )


def published_letters(n: int) -> tuple[str, ...]:
    """Return the letters of n options and of the refusal, which the released code always labels F.

    Raises:
        SpecError: for more options than have a letter before F.
    """
    if n > 5:
        raise SpecError(f"scorer 'qa': a question has {n} options; compat=published letters five, F is the refusal")
    return (*string.ascii_uppercase[:n], "F")
