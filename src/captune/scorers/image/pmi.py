"""VisualGPTScore and pointwise mutual information: how much likelier the image makes the caption to a captioner."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.data.images import blank, open_image
from captune.errors import CaptionerError, ScorerError, SpecError
from captune.models import hub
from captune.models.answerers import is_server
from captune.scorers import Scorer
from captune.scorers._support.images import Pair, by_image
from captune.utils.memory import remembers

if TYPE_CHECKING:
    from transformers import BatchFeature

    from captune.models.captioner import Captioner

DEFAULT_MODEL = "storybook"
OWN = "own"
_KEPT = 65_536  # captions whose log-probability without the image is kept


class PMI(Scorer):
    """Pointwise mutual information: how much likelier an image makes its caption to a captioner.

        pmi(c, v) = log p(c | v) - alpha log p(c),       log p(c | v) = sum_k log p(t_k | t_<k, v)

    t are the caption's tokens after the captioner's own prompt. alpha = 0 is VisualGPTScore, which prefers what is
    likely of any image, alpha = 1 the pointwise mutual information of caption and image. The paper tunes alpha in
    [0, 1]: near 0 where the captions of a benchmark come as the training captions did, near 1 where they are balanced.
    Captions that compete for a reward are balanced by nothing, so alpha = 1 is the default here, and a sum, not a mean
    (`normalise=length`): each true detail adds to it, as each false one takes away.

    What the paper leaves open: the end token counts as the caption's last (`end=0` leaves it out), so that a caption
    cut off in mid-sentence is unlikely. p(c) is read with a blank grey image in the image's place, as in guidance
    (`captune.decoding.cfg`), or with the prompt alone (`without=prompt`); the paper averages over Gaussian noise. An
    empty caption is its end token, counted or not, and nothing is subtracted: the mutual information of no words is 0,
    more than that of most wrong captions, and silence would pay.

        pmi, pmi:FOLDER-OR-HUB-NAME?adapter=FOLDER    any captioner, frozen
        pmi:own                                       as a reward, the captioner that is trained, without its adapter

    `pmi:own` reads with the base that the training starts from and does not move with what is learned: a captioner that
    judged itself by its adapter would be paid for being sure. It costs no second model in memory.

    Each image is encoded once, its prompt evaluated once for its captions of a batch, and log p(c) kept by caption.
    A server gives no log-probabilities of a caption that it did not write, and is refused.

    Args:
        argument: the captioner: "pmi:HuggingFaceTB/SmolVLM-Base?alpha=0.5&normalise=length".
        captioner: one that is loaded, in place of the name.
        device: of a captioner that is loaded by name.
        batch_size: captions read together.
    """

    name = "pmi"
    primary = "pmi"
    higher_is_better: ClassVar = {"pmi": True}
    labels: ClassVar = {"pmi": "PMI"}
    source = "Lin et al., ICML 2024 (VisualGPTScore)"
    cost = "one pass of a captioner, one more without the image (storybook: 10 ms)"
    required_columns = ("image",)
    cached = True
    positional = ("model",)
    usage = "pmi:HuggingFaceTB/SmolVLM-Base?alpha=1"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str,
            Field(description='a captioner\'s folder or hub name; "own": the one that is trained, without its adapter'),
        ] = DEFAULT_MODEL
        adapter: Annotated[str, Field(description="a PEFT adapter's folder or hub name, of that captioner")] = ""
        alpha: Annotated[float, Field(ge=0, le=1, description="0: VisualGPTScore; 1: mutual information")] = 1.0
        without: Annotated[
            Literal["blank", "prompt"],
            Field(description="what is read in place of the image: a blank one, or the prompt alone"),
        ] = "blank"
        normalise: Annotated[
            Literal["none", "length"], Field(description="the sum over a caption's tokens, or their mean")
        ] = "none"
        end: Annotated[bool, Field(description="whether the end token counts")] = True

    def __init__(
        self,
        argument: str | None = None,
        *,
        captioner: Captioner | None = None,
        device: str | None = None,
        batch_size: int = 16,
    ) -> None:
        self.settings = self.read(argument)
        model = self.settings.model
        if is_server(model):
            raise SpecError(
                "scorer 'pmi' reads the log-probability of every token of a given caption, and a chat server gives "
                "those of its own words alone: name a captioner's folder or hub name, or ask the server with 'vqa'"
            )
        if model == OWN and self.settings.adapter:
            raise SpecError("scorer 'pmi:own' reads without an adapter: leave out adapter=, or name the captioner")
        self.device, self.batch_size = device, batch_size
        self._captioner = captioner
        self._unseen: dict[str, float] = {}  # log p(c)
        self._identity = ""
        remembers(self)

    def clear(self) -> None:
        """Forget what captions are worth without an image."""
        self._unseen.clear()

    @property
    def captioner(self) -> Captioner:
        """The captioner that reads; loaded at first use."""
        if self._captioner is None:
            if self.settings.model == OWN:
                raise ScorerError(
                    "scorer 'pmi:own' reads with the captioner that is trained on it, and none is: name a captioner, "
                    "'pmi:FOLDER'"
                )
            from captune.models.captioner import Captioner

            try:
                self._captioner = Captioner.load(self.settings.model, self.settings.adapter or None, device=self.device)
            except CaptionerError as error:
                raise ScorerError(f"the captioner of scorer {self.name!r} cannot be loaded: {error}") from error
        return self._captioner

    def bind(self, captioner: Captioner, *, end_token: bool | None = None) -> None:
        """Read with the captioner that is trained, its adapter off, where "own" is asked for."""
        if self.settings.model == OWN:
            self._captioner, self._identity = captioner, ""
            self.clear()

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        adapter = self.settings.adapter
        if self._captioner is not None or self.settings.model == OWN:
            self.captioner  # noqa: B018
            return
        hub.check(
            self.settings.model, what=f"captioner of scorer {self.name!r}", example=hub.CAPTIONER, error=ScorerError
        )
        if adapter and hub.is_local(adapter, bare=False) and not Path(adapter).expanduser().is_dir():
            raise ScorerError(f"scorer {self.name!r}: adapter folder {adapter!r} does not exist")

    def rows(self, captions: Sequence[str], *, image: Sequence[Any], **columns: Any) -> np.ndarray:
        """Return (N, 1): the score of each caption; a caption that comes twice with an image is read once.

        Raises:
            ScorerError: the captioner cannot be loaded, a caption is longer than it reads, or its log-probability is no
                number.
        """
        if not captions:
            return np.zeros((0, 1))
        pairs, first = by_image(captions, image)
        with self._frozen() as captioner:
            tails = {caption: self._tail(captioner, caption) for _, caption in first}
            likelihoods = self._with_image(captioner, first, image, tails)
            unseen = self._without_image(captioner, tails) if self.settings.alpha else dict.fromkeys(tails, 0.0)
        scores = np.zeros((len(pairs), 1))
        for row, pair in enumerate(pairs):
            caption = pair[1]
            scores[row] = likelihoods[pair] - (self.settings.alpha * unseen[caption] if caption.strip() else 0.0)
            if self.settings.normalise == "length":
                scores[row] /= len(tails[caption])
        return scores

    @contextmanager
    def _frozen(self) -> Iterator[Captioner]:
        """The captioner as it reads: no dropout, no gradient, "own" without its adapter, each image encoded once."""
        captioner = self.captioner
        inner: Any = captioner.core.base_model
        rope = getattr(inner, "rope_deltas", None)
        try:
            vision: Any = captioner.share_vision()
        except CaptionerError:  # the connector is trained: what it makes of an image is not shared
            vision = nullcontext()
        try:
            with vision, captioner.reading(base=self.settings.model == OWN):
                yield captioner
        finally:
            if rope is not None:
                inner.rope_deltas = rope

    def _tail(self, captioner: Captioner, caption: str) -> list[int]:
        """The caption's tokens, at least one."""
        ids = captioner.caption_ids(caption)
        return [*ids, captioner.eos_ids[0]] if self.settings.end or not ids else ids

    def _with_image(
        self, captioner: Captioner, first: dict[Pair, int], images: Sequence[Any], tails: dict[str, list[int]]
    ) -> dict[Pair, float]:
        """Return log p(c | v) of each pair."""
        found: dict[Pair, float] = {}
        order = list(first)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            shown = list(dict.fromkeys(digest for digest, _ in part))
            rows = {digest: first[next(pair for pair in part if pair[0] == digest)] for digest in shown}
            prompt = captioner.prepare([open_image(images[rows[digest]]) for digest in shown])
            values = self._read(
                captioner, prompt, [shown.index(digest) for digest, _ in part], [caption for _, caption in part], tails
            )
            found.update(zip(part, values, strict=True))
        return found

    def _without_image(self, captioner: Captioner, tails: dict[str, list[int]]) -> dict[str, float]:
        """Return log p(c) of each caption; what is known is not read again."""
        from captune.models.reading import text_prompt

        new = [caption for caption in tails if caption not in self._unseen]
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            prompt = captioner.prepare([blank()]) if self.settings.without == "blank" else text_prompt(captioner)
            self._unseen.update(zip(part, self._read(captioner, prompt, [0] * len(part), part, tails), strict=True))
        found = {caption: self._unseen[caption] for caption in tails}
        while len(self._unseen) > _KEPT:
            del self._unseen[next(iter(self._unseen))]
        return found

    def _read(
        self,
        captioner: Captioner,
        prompt: BatchFeature,
        rows: list[int],
        captions: list[str],
        tails: dict[str, list[int]],
    ) -> list[float]:
        from captune.models.reading import caption_log_probs

        lengths = prompt["attention_mask"].sum(-1).tolist()
        for row, caption in zip(rows, captions, strict=True):
            tokens = lengths[row] + len(tails[caption])
            if tokens > (captioner.positions or math.inf):  # never cut: the score would be another caption's
                raise ScorerError(
                    f"scorer {self.name!r}: caption {caption[:60]!r} and its prompt have {tokens} tokens, more than "
                    f"the {captioner.positions} that {captioner.name} reads: leave long captions out or choose another "
                    "captioner"
                )
        values = caption_log_probs(captioner, prompt, rows, [tails[caption] for caption in captions]).tolist()
        for caption, value in zip(captions, values, strict=True):
            if not math.isfinite(value):
                raise ScorerError(
                    f"scorer {self.name!r}: {captioner.name} gives caption {caption[:60]!r} the log-probability {value}"
                )
        return values

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        own = self.settings.model == OWN
        if not self._identity and not (own and self._captioner is None):
            self._identity = f"{self.captioner.name}@{self.captioner.identity(base=own)}"
        adapter = f"|adapter:{self.settings.adapter}" if self.settings.adapter else ""
        unseen = f"|without:{self.settings.without}" if self.settings.alpha else ""
        return (
            f"pmi|model:{'own:' if own else ''}{self._identity or 'none'}{adapter}|alpha:{self.settings.alpha:g}"
            f"{unseen}|normalise:{self.settings.normalise}|end:{'yes' if self.settings.end else 'no'}|empty:log-p-end"
        )
