"""Cycle consistency: caption -> image by a text-to-image model -> similarity to the image that was captioned."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.data.schemes import SOURCES, Scheme
from captune.errors import ScorerError, SpecError, first_line
from captune.models import hub
from captune.models.encoders.base import described
from captune.scorers._support.encoders import EncoderScorer
from captune.utils.device import pick_device
from captune.utils.hashing import identity

if TYPE_CHECKING:
    from PIL import Image

    from captune.models.encoders import EncodesImages

DEFAULT_MODEL = "storybook"
_log = logging.getLogger(__name__)


class Cycle(EncoderScorer["EncodesImages"]):
    """Cycle consistency: how much the image drawn from the caption alone resembles the image that was captioned.

        cycle(c, v) = cos(E(v), E(G(c))),   G a text-to-image model, E an image encoder

    CycleCap (Krestenitis et al., 2026) uses it as a GRPO reward, Image2Text2Image (Huang et al., 2024) as a metric
    without references. The papers leave G and E open, so the signature names both with their weights, the seed and the
    settings. The noise of an image comes from the seed and the caption, one caption is drawn at a time: the figure does
    not depend on what else is scored. Captions longer than G's context are cut by G. An empty caption draws nothing and
    scores 0.

        cycle, cycle:storybook           a source's own drawing program (`captune.data.schemes.Scheme.drawer`)
        cycle:FOLDER-OR-HUB-NAME?encoder=MODEL&seed=0&steps=30&guidance=7.5&size=512
                                         a diffusers pipeline; steps, guidance and size are its own defaults otherwise

    MODEL is a CLIP, a SigLIP or an image-only transformer such as DINOv2 (the features of its CLS token); a pipeline
    needs one to be named, for the storybook encoder knows no photographs.
    """

    name = "cycle"
    primary = "cycle"
    higher_is_better: ClassVar = {"cycle": True}
    labels: ClassVar = {"cycle": "cycle consistency"}
    source = "Krestenitis et al., 2026; Huang et al., 2024"
    cost = "one image drawn (storybook: 10 ms), two passes of the encoder"
    required_columns = ("image",)
    cached = True
    positional = ("model",)
    usage = "cycle:storybook?seed=1"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str, Field(description="a source that draws, or a diffusers pipeline's folder or hub name")
        ] = DEFAULT_MODEL
        encoder: Annotated[str, Field(description="what compares the images; default: the source's own")] = ""
        seed: Annotated[int, Field(ge=0, description="of the noise")] = 0
        steps: Annotated[int | None, Field(ge=1, le=10_000, description="the pipeline's; default: its own")] = None
        guidance: Annotated[float | None, Field(description="the pipeline's; default: its own")] = None
        size: Annotated[int | None, Field(ge=1, le=4096, description="pixels; default: the pipeline's own")] = None

    def __init__(self, argument: str | None = None, *, pipeline: Any = None, encoder: Any = None,
                 device: str | None = None, batch_size: int = 32) -> None:  # fmt: skip
        settings = self.read(argument)
        self.model = settings.model
        source = SOURCES[self.model] if self.model in SOURCES else Scheme()
        options = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance,
                   "height": settings.size, "width": settings.size}  # fmt: skip
        self.options: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        if self.options and source.drawer():
            raise SpecError(f"scorer 'cycle': {self.model!r} draws by a program and has no steps, guidance or size")
        self._model = settings.encoder or source.image_encoder
        if encoder is None and not self._model:
            raise SpecError(f"say which encoder compares the images: 'cycle:{self.model}?encoder=MODEL', a folder or "
                             "hub name of a CLIP, SigLIP or DINOv2")  # fmt: skip
        self.seed = settings.seed
        self.batch_size = batch_size
        self._pipeline, self._encoder, self._device = pipeline, encoder, device
        self._drawer = source.drawer(self.seed) if pipeline is None else None
        self._weights = ""

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        super().check()
        if self._drawer is not None or self._pipeline is not None:
            return
        if importlib.util.find_spec("diffusers") is None:
            raise ScorerError(f"scorer {self.name!r} draws with diffusers, which is not installed; "
                              "run: pip install diffusers")  # fmt: skip
        self._source()

    def load_encoder(self) -> EncodesImages:
        """Load the encoder."""
        from captune.models.encoders import load_image_encoder

        return load_image_encoder(self._model, self._device)

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline; loaded at first use."""
        if self._pipeline is None:
            self._pipeline = self._load()
        return self._pipeline

    def rows(self, captions: Sequence[str], *, image: Sequence[Any], **columns: Any) -> np.ndarray:
        """(N, 1): the cosine of the two images' features."""
        if not captions:
            return np.zeros((0, 1))
        from captune.models.encoders.features import ImageFeatureCache

        features = ImageFeatureCache(self.encoder)
        _, sources = features(image, batch_size=self.batch_size)
        place = {caption: i for i, caption in enumerate(dict.fromkeys(c for c in captions if c.strip()))}
        _, drawn = features(_Drawn(list(place), self.draw), batch_size=self.batch_size)
        cosines = [
            float(own @ drawn[place[caption]]) if caption in place else 0.0
            for own, caption in zip(sources, captions, strict=True)
        ]
        if not np.isfinite(cosines).all():
            raise ScorerError(f"scorer {self.name!r}: {self.encoder.name!r} gave features that are not finite")
        return np.array(cosines).reshape(-1, 1)

    def draw(self, caption: str) -> Image.Image:
        """The caption as an image; depends on nothing but the caption, the model and the settings."""
        if self._drawer is not None:
            return self._drawer(caption)
        import torch

        digest = hashlib.blake2b(f"{self.seed}/{caption}".encode(), digest_size=8).digest()
        noise = torch.Generator("cpu").manual_seed(int.from_bytes(digest) >> 1)
        pipeline = self.pipeline
        try:
            answer = pipeline(prompt=caption, generator=noise, output_type="pil", **self.options)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ScorerError(f"scorer {self.name!r}: {self.model} could not draw {caption!r}: {error}") from error
        if any(getattr(answer, "nsfw_content_detected", None) or ()):
            _log.warning("%s: the pipeline's safety checker blacked out the image of %r", self.name, caption)
        return answer.images[0].convert("RGB")

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        if self._drawer is not None:
            drawer = self._drawer.signature
        else:
            if not self._weights:
                self._weights = _identity(self.pipeline)
            options = "|".join(f"{key}:{value:g}" for key, value in sorted(self.options.items()))
            drawer = f"{self.model}@{self._weights}|{options or 'options:default'}|diffusers:{_version('diffusers')}"
            drawer += f"|dtype:{getattr(self.pipeline, 'dtype', 'unknown')}"
        return f"cycle|t2i:{drawer}|seed:{self.seed}|encoder:{described(self.encoder)}|cosine|empty:0"

    def _source(self) -> str:
        return hub.resolve(
            self.model,
            what=f"scorer {self.name!r}: diffusers pipeline",
            example="stabilityai/sd-turbo",
            files=("model_index.json",),
            bare=False,
            error=ScorerError,
        )

    def _load(self) -> Any:
        self.check()
        import torch
        from diffusers import DiffusionPipeline

        device = pick_device(self._device)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16  # float16 overflows in some decoders
        try:
            pipeline = DiffusionPipeline.from_pretrained(self._source(), torch_dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, ImportError) as error:
            reason = first_line(error)
            raise ScorerError(f"scorer {self.name!r}: {self.model} cannot be loaded: {reason}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)


class _Drawn(Sequence[Any]):
    """The images of captions, drawn when they are asked for."""

    def __init__(self, captions: Sequence[str], draw: Callable[[str], Any]) -> None:
        self.captions, self.draw = captions, draw

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: Any) -> Any:
        return self.draw(self.captions[index])


def _identity(pipeline: Any) -> str:
    """A digest of all that decides what the pipeline draws: weights, tokenizers, schedulers and their settings."""
    parts: Mapping[str, Any] = getattr(pipeline, "components", {})
    known = {name: part for name, part in sorted(parts.items()) if part is not None}
    settings = {name: _settings(part) for name, part in known.items()}
    whole = [part for part in known.values() if hasattr(part, "state_dict") or hasattr(part, "get_vocab")]
    return identity(*whole, unused=(), settings=settings, own=_settings(pipeline))


def _settings(part: Any) -> Any:
    config: Any = getattr(part, "config", None)
    config = config.to_dict() if hasattr(config, "to_dict") else config
    return [type(part).__name__, dict(config) if isinstance(config, Mapping) else None]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
