"""Relation QA: can questions about the image's relations be answered from the caption alone? CIM, section 4."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from captune.errors import ScorerError
from captune.models import answerers
from captune.scorers.questions.base import QuestionScorer
from captune.utils.files import parse_json
from captune.utils.hashing import fingerprint

_log = logging.getLogger(__name__)
ANSWERS = ("Yes", "No", "Unknown")
PROMPT = """\
Answer a question about an image from its caption alone.
Caption: "{caption}"
Question: {question}
Answer with one word: Yes or No if the caption says so, Unknown if the caption does not state it."""


class RelationQA(QuestionScorer):
    """Relation QA: the share of yes/no questions on relations that a language model answers right from the caption.

        relation_qa = #{right} / #{questions},   an answer "Unknown" (not stated in the caption) is not right

    Beside it: `stated`, the share of questions answered with Yes or No; `accuracy_stated`, the share of those that is
    right (0 where nothing is stated); `yes` and `no`, the accuracy among the questions with that answer, and
    `balanced`, their mean, 0.5 for a model that says Yes to everything: in the published sets 92 to 96% of the answers
    are Yes. A figure without questions is left out.

    CIM and SC-Captioner give no scorer and no prompt in text. That "not stated" counts as wrong is our reading of their
    figures (9 to 44% where always Yes has 95%). Questions are weighted equally; those whose published answer is neither
    Yes nor No (4 of 4,943) are left out. The most probable of the three answers counts, read off the next token.

    Args:
        argument: the questions, a JSON file {image_id: {question: "Yes" | "No"}}, and the answering model, a folder,
            a hub name or a server: "relation_qa:questions.json?model=http://localhost:8000/v1#Qwen/Qwen3-8B".
    """

    name = "relation_qa"
    primary = "relation_qa"
    higher_is_better: ClassVar = {
        "relation_qa": True,
        "accuracy_stated": True,
        "balanced": True,
        "yes": True,
        "no": True,
    }
    labels: ClassVar = {"relation_qa": "relation QA"}
    source = "Zhang et al., ICCV 2025 (SC-Captioner); Jia et al., 2026 (CIM)"
    cost = "5 answers of a language model"
    usage = "relation_qa:questions.json?model=Qwen/Qwen3-8B"

    file_of = "questions.json"

    @cached_property
    def _read(self) -> tuple[dict[str, dict[str, str]], str]:
        """The questions with a Yes or a No, and the file's fingerprint."""
        try:
            data = self.file.read_bytes()
            every = {str(i): dict(own) for i, own in parse_json(data, "the file").items()}
        except OSError as error:
            raise ScorerError(f"the questions {str(self.file)!r} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ScorerError(
                f'{self.file} is no JSON of the form {{image_id: {{question: "Yes"}}}}: {error}'
            ) from error
        asked = {i: {q: str(a).strip().capitalize() for q, a in own.items()} for i, own in every.items()}
        asked = {i: {q: a for q, a in own.items() if a in ("Yes", "No")} for i, own in asked.items()}
        left_out = sum(map(len, every.values())) - sum(map(len, asked.values()))
        if left_out:
            _log.warning("%s: %d questions are left out, their answer is neither Yes nor No", self.file, left_out)
        return asked, fingerprint(data)

    def rows(self, captions: Sequence[str], *, image_id: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, 6): of the questions with the answer Yes how many are right, stated, asked; then of those with No."""
        asked, _ = self._read
        unasked = [i for i in image_id if not asked.get(str(i))]
        if unasked:
            raise ScorerError(
                f"{len(unasked)} of {len(captions)} captions have no question in {self.file}, for example of image "
                f"{unasked[0]!r}; its ids look like {next(iter(asked), None)!r}"
            )
        questions, owners = [], []
        for row, (caption, image) in enumerate(zip(captions, image_id, strict=True)):
            for question, answer in asked[str(image)].items():
                text = PROMPT.format(caption=answerers.one_line(caption), question=answerers.one_line(question))
                questions.append(
                    answerers.Question(text, ANSWERS, f"{question} (image {image}, caption {caption[:60]!r})")
                )
                owners.append((row, answer))
        rows = np.zeros((len(captions), 6))
        for (row, answer), p in zip(owners, self.answerer.answer_probabilities(questions), strict=True):
            said, offset = ANSWERS[int(p.argmax())], 3 * ANSWERS.index(answer)
            rows[row, offset : offset + 3] += [said == answer, said != "Unknown", 1]
        return rows

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        right, stated, asked = (totals[..., i] + totals[..., i + 3] for i in range(3))
        figures = {"relation_qa": right / asked, "stated": stated / asked, "accuracy_stated": _share(right, stated)}
        both = {"yes": totals[..., :3], "no": totals[..., 3:]}
        # left out where the file asks none; a resample of a few captions that happens to have none counts as 0
        kinds = {kind: _share(t[..., 0], t[..., 2]) for kind, t in both.items() if t.ndim > 1 or t[2] > 0}
        balanced = {"balanced": sum(kinds.values()) / 2} if len(kinds) == 2 else {}
        return {**figures, **balanced, **kinds}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return (rows[:, 0] + rows[:, 3]) / (rows[:, 2] + rows[:, 5])

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        asked, digest = self._read
        return (
            f"relation_qa|questions:{sum(map(len, asked.values()))}@{digest}|model:{self.answerer.label}"
            f"|prompt:{fingerprint(PROMPT)}|not-stated:wrong"
        )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole of counts; 0 of 0 is 0."""
    return part / np.maximum(whole, 1)
