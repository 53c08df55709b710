"""A learned preference scorer: how much a caption would be preferred, learned from pairs (Compress & Align)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import SpecError
from captune.scorers import Scorer
from captune.scorers._support.encoders import as_scorer_error, check_encoder

if TYPE_CHECKING:
    from captune.models.encoders.features import ImageFeatureCache
    from captune.models.reward_model import RewardModel

_log = logging.getLogger(__name__)


class RewardModelScorer(Scorer):
    """The reward of a model that `captune reward-model train` trained on pairs of a preferred and another caption.

    r(x, c) is any number, higher is better; 0 is an average caption of the data that trained it, 1 their standard
    deviation. The difference of two captions of an image tells which one is preferred; rewards of two models do not
    compare. The signature has the model's accuracy on pairs of images that it has not seen. A caption without words
    gets the least reward of the training captions, with a warning.

    Args:
        argument: the model's folder: "reward_model:runs/reward".
        model: one that is loaded, in place of the folder.
        device: where the encoder runs.
        batch_size: images encoded together.
    """

    name = "reward_model"
    primary = "reward_model"
    higher_is_better: ClassVar = {"reward_model": True}
    labels: ClassVar = {"reward_model": "reward model"}
    source = "Compress & Align (UCSC-VLAA, 2023)"
    cost = "one pass of the encoder for the caption, one for each new image"
    required_columns = ("image",)
    positional = ("model",)
    usage = "reward_model:runs/reward"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[str, Field(description="a reward model's folder, of captune reward-model train")] = ""

    def __init__(
        self,
        argument: str | None = None,
        *,
        model: RewardModel | None = None,
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        self._folder, self._device, self.batch_size = self.read(argument).model, device, batch_size
        if model is None and not self._folder:
            raise SpecError(f"the scorer {self.name!r} needs the folder of a model: {self.usage}")
        if model is not None:
            self.model = model
        self.truncated, self._warned = 0.0, False

    @cached_property
    def model(self) -> RewardModel:
        """Loaded at first use."""
        from captune.models.reward_model import RewardModel

        return RewardModel.load(self._folder, self._device)

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if "model" not in vars(self):
            from captune.models.heads import read_config
            from captune.models.reward_model import RewardConfig, folder_of

            config = read_config(folder_of(self._folder), RewardConfig)
            with as_scorer_error(self.name):
                check_encoder(config.encoder.name)

    def forget(self) -> None:
        """A caption without words is warned of again."""
        self._warned = False

    def rows(self, captions: Sequence[str], *, image: Sequence[Any], **columns: Any) -> np.ndarray:
        """Return (N, 1): the reward of each caption."""
        before = self.model.encoder.truncated
        rewards = self.model.rewards(self._images(image, batch_size=self.batch_size)[1], captions)
        self.truncated = (self.model.encoder.truncated - before) / max(1, len(captions))
        empty = sum(not caption.strip() for caption in captions)
        if empty and not self._warned:
            self._warned = True
            _log.warning(
                "%s: %d of %d captions have no words and get the least reward", self.name, empty, len(captions)
            )
        return rewards.double().numpy().reshape(-1, 1)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        model = self.model
        return (
            f"reward_model|model:{model.name}@{model.digest} ({model.note})|encoder:{model.config.encoder.name}"
            f"|empty:least|context:{model.encoder.context_length}|truncated:{self.truncated:.1%}"
        )

    @cached_property
    def _images(self) -> ImageFeatureCache:
        from captune.models.encoders.features import ImageFeatureCache

        return ImageFeatureCache(self.model.encoder)
