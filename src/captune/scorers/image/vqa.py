"""VQAScore: the probability of "Yes" to the question whether the image shows what the caption says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.data.images import open_image
from captune.data.schemes import SOURCES, Scheme
from captune.errors import SpecError
from captune.models.answerers import Answerer, Question, load_vision_answerer, one_line
from captune.models.answerers.vision import VisionModel
from captune.scorers import Scorer
from captune.scorers._support.images import by_image
from captune.utils.hashing import fingerprint

if TYPE_CHECKING:
    from captune.models.captioner import Captioner

DEFAULT_MODEL = "storybook"
PROMPT = 'Does this figure show "{caption}"? Please answer yes or no.'
ANSWERS = ("Yes", "No")


class VQAScore(Scorer):
    """VQAScore: how probable it is that a vision-language model says yes, the image shows what the caption says.

        vqa(c, v) = P("Yes" | v, q(c)),       q(c) = Does this figure show "c"? Please answer yes or no.

    Read off the next token. The published score is the probability of that answer among all that the model could say
    (`normalise=none`); here it is divided by that of "Yes" and "No" together, so that a model which would rather talk
    is not taken for one that doubts. Either way it is an error, not a low score, if the two hold next to nothing. What
    begins with the answer in another case or after a space counts as that answer.

    A source that knows the truth of its images answers exactly (`vqa:storybook`, which reads the column `scene` in
    place of the image): the share of what the caption states that is true, which is the probability of "Yes" for a
    statement drawn at random, or with `facts=all` 1 where everything is true and else 0. What a caption leaves out is
    not asked about. A caption that states nothing, and an empty one with any model, scores 0 without being asked.

    A model can be gamed by captions that talk to it, and a weak one says yes to everything: score the captions of other
    images too.

    Args:
        argument: who answers: a source, any model that `Captioner` loads, or a server:
            "vqa:Qwen/Qwen2.5-VL-7B-Instruct", "vqa:http://localhost:8000/v1#model-name".
        answerer: who answers, in place of the model that the argument names.
        captioner: a loaded captioner that answers.
        device: where a local model runs.
        batch_size: questions asked together.
    """

    name = "vqa"
    primary = "vqa"
    higher_is_better: ClassVar = {"vqa": True}
    labels: ClassVar = {"vqa": "VQAScore"}
    source = "Lin et al., ECCV 2024 (VQAScore)"
    cost = "one pass of a vision-language model (storybook: 0.3 ms)"
    required_columns: tuple[str, ...] = ("image",)
    cached = True
    positional = ("model",)
    usage = "vqa:Qwen/Qwen2.5-VL-7B-Instruct"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str,
            Field(
                description="who answers: a source that knows the truth, a vision-language model's folder or hub name, "
                "or a server, http://host:port/v1#model-name"
            ),
        ] = DEFAULT_MODEL
        normalise: Annotated[
            Literal["answers", "none"],
            Field(description='"Yes" against "No", or, as published, against all that the model could say'),
        ] = "answers"
        facts: Annotated[
            Literal["share", "all"], Field(description="of a source: the share of true statements, or whether all are")
        ] = "share"

    def __init__(
        self,
        argument: str | None = None,
        *,
        answerer: Answerer | None = None,
        captioner: Captioner | None = None,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        self.settings = self.read(argument)
        model, self.batch_size = self.settings.model, batch_size
        self.scheme: Scheme | None = None
        self._answerer = answerer
        if answerer is not None:
            return
        if captioner is None and model in SOURCES:
            self.scheme = SOURCES[model]
            if not self.scheme.truth_column:
                raise SpecError(f"scorer 'vqa': the source {model!r} knows no truth about its images; name a model, "
                                f"as in {self.usage!r}")  # fmt: skip
            if self.settings.normalise != "answers":
                raise SpecError(f"scorer 'vqa': {model!r} answers exactly, and has nothing to normalise")
            self.required_columns = (self.scheme.truth_column,)
        else:
            named = model if captioner is None else ""  # a captioner has a name of its own
            self._answerer = load_vision_answerer(
                named, captioner=captioner, device=device, what="model of scorer 'vqa'"
            )
        if self.scheme is None and self.settings.facts != "share":
            raise SpecError(f"scorer 'vqa': {model!r} is asked about the whole caption; facts= is a source's setting")

    @property
    def answerer(self) -> Answerer:
        """The model that answers, where no source does."""
        assert self._answerer is not None
        return self._answerer

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if self.scheme is None:
            self.answerer.check()

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 1): P("Yes") of each caption; a caption that comes twice with an image is asked about once."""
        if self.scheme is not None:
            truths = columns[self.scheme.truth_column]
            made = [self._exact(self.scheme, *pair) for pair in zip(captions, truths, strict=True)]
            return np.array(made, dtype=np.float64).reshape(-1, 1)
        images = columns["image"]
        asked = [row for row, caption in enumerate(captions) if caption.strip()]
        pairs, first = by_image([captions[row] for row in asked], [images[row] for row in asked])
        order, found = list(first), {}
        model = self.answerer
        sharing: Any = model.captioner.share_vision(max_images=64) if isinstance(model, VisionModel) else nullcontext()
        with sharing:  # an image whose captions fall into two batches is encoded once, too
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                questions = [self._question(pair[1], images[asked[first[pair]]]) for pair in part]
                answers = model.answer_probabilities(questions)
                found.update({pair: float(p[0]) for pair, p in zip(part, answers, strict=True)})
        scores = np.zeros((len(captions), 1))
        for row, pair in zip(asked, pairs, strict=True):
            scores[row] = found[pair]
        return scores

    def _question(self, caption: str, image: Any) -> Question:
        return Question(
            PROMPT.format(caption=one_line(caption)),
            ANSWERS,
            f"caption {caption[:60]!r}",
            open_image(image),
            normalise=self.settings.normalise == "answers",
        )

    def _exact(self, scheme: Scheme, caption: str, truth: str) -> float:
        """The share of what a caption states that is true, or whether all is; 0 where it states nothing."""
        stated = [statement.true for statement in scheme.statements(caption, truth)]
        share = sum(stated) / len(stated) if stated else 0.0
        return float(share == 1) if self.settings.facts == "all" else share

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        if self.scheme is not None:
            return f"vqa|source:{self.scheme.name}|facts:{self.settings.facts}|empty:0"
        model = self.answerer.label + getattr(self.answerer, "shown", "")
        return f"vqa|model:{model}|prompt:{fingerprint(PROMPT)}|normalise:{self.settings.normalise}|empty:0"
