"""Each image is encoded once: a cache on the model's vision path, and frozen visual features read through it.

transformers reaches the vision tower through one method of the inner model, `get_image_features`: `forward` calls it,
`generate` calls it before the prefill, and so does anything built on them (TRL, PEFT, accelerate). The cache replaces
that method on the instance. It hashes each image's pixels, encodes those that it does not hold, without a gradient,
and returns stored features. Samples, log-probabilities and training so share one pass of the tower.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from captune.errors import CaptionerError
from captune.models.families import Family
from captune.models.image_inputs import ImageInputs
from captune.utils.hashing import weights_digest
from captune.utils.memory import remembers

ADAPTED = (BaseTunerLayer, AuxiliaryTrainingWrapper)  # what peft puts in a module's place
ROOM = 2**30  # bytes: what 20,000 photographs take as 9 x 1280 features


class ImageFeatures:
    """The visual features of one image input.

    Args:
        pooled: (tokens, H), after the connector.
        deep: (tokens, H) per extra layer (Qwen3-VL's deepstack), if any.
        tower: (tokens, D), before the connector, if kept.
    """

    def __init__(self, pooled: torch.Tensor, deep: list[torch.Tensor] | None, tower: torch.Tensor | None) -> None:
        self.pooled, self.deep, self.tower = pooled, deep, tower

    def copy(self) -> ImageFeatures:
        """Copy the tensors: a view would keep the features of its whole batch in memory."""
        deep = [layer.clone() for layer in self.deep] if self.deep else None
        return ImageFeatures(self.pooled.clone(), deep, None if self.tower is None else self.tower.clone())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, as safetensors holds them; `from_tensors` reads them back."""
        deep = {f"deep.{i}": layer.contiguous() for i, layer in enumerate(self.deep or [])}
        tower = {} if self.tower is None else {"tower": self.tower.contiguous()}
        return {"pooled": self.pooled.contiguous(), **deep, **tower}

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        return sum(tensor.nbytes for tensor in (self.pooled, *(self.deep or ()), self.tower) if tensor is not None)

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> ImageFeatures:
        """Read what `tensors` returned."""
        deep = [tensors[f"deep.{i}"] for i in range(sum(name.startswith("deep.") for name in tensors))]
        return cls(tensors["pooled"], deep or None, tensors.get("tower"))


def split_by_image(output: Any, inputs: ImageInputs, *, tower: bool) -> list[ImageFeatures]:
    """Split what `get_image_features` returned for all image inputs into the features of each.

    Raises:
        CaptionerError: the model returned features for another number of images.
    """
    pooled, deep = output.pooler_output, getattr(output, "deepstack_features", None)
    if len(pooled) != inputs.count:
        raise CaptionerError(
            f"the model returned features for {len(pooled)} images where {inputs.count} were given: "
            "its features cannot be shared image by image"
        )
    states: Any = [None] * inputs.count
    if tower:
        states = [s.flatten(0, -2) for s in output.last_hidden_state.split(inputs.real_tiles())]
    return [
        ImageFeatures(pooled[i], [layer[i] for layer in deep] if deep else None, states[i]) for i in range(inputs.count)
    ]


class VisionCache:
    """Shares one evaluation of the vision tower among all passes that see the same pixels.

    A context manager; `remove()` restores the model, `clear()` empties the cache. Features have the precision of their
    first evaluation and never carry a gradient. If a family names a method for what its connector reads
    (`Family.tower_features`), the result of that method is kept, and the connector may learn.

    Attributes:
        evaluations: calls of the vision tower.
        images: images (or flat tiles) encoded.
        hits: images served from the cache.
        depth: how many `install` calls are open.

    Args:
        core: the model.
        family: where its vision side is.
        max_images: features kept in memory; the least recently used go first. SmolVLM-2.2B in bfloat16 takes 6 MB an
            image, a storybook captioner 2 kB.
        alone: encode every image by itself, so that its features do not depend, in the last bits, on which others come
            with it, and keep more than `max_images` while all together fit into `ROOM`: a data set is encoded once.
        tower: also keep the features before the connector.
        keep: a folder that keeps every image's features in a file of its own, for later passes over the images and
            later runs with the same vision weights.

    Raises:
        CaptionerError: a parameter of the vision tower or the connector requires a gradient.
    """

    def __init__(
        self,
        core: PreTrainedModel,
        family: Family,
        *,
        max_images: int = 256,
        alone: bool = False,
        tower: bool = False,
        keep: Path | None = None,
    ) -> None:
        if max_images < 1:
            raise CaptionerError(f"max_images must be at least 1, not {max_images}")
        self.core, self.family, self.max_images, self.alone, self.tower = core, family, max_images, alone, tower
        self.evaluations = self.images = self.hits = 0
        self.depth = 0
        self._kept: OrderedDict[bytes, ImageFeatures] = OrderedDict()
        self._bytes = 0  # that these take
        self._template: _Template | None = None
        self._method = family.tower_features or "get_image_features"
        self._original = cast(Callable[..., Any], getattr(core.base_model, self._method))
        self._signature = inspect.signature(self._original)
        # forward() names the feature layer, generate() leaves it to the config: the same images either way
        names = [name for name in self._signature.parameters if name.startswith("vision_feature")]
        self._defaults = {name: getattr(core.config, name) for name in names if hasattr(core.config, name)}
        self._refuse_trainable()
        self._adapted = self._adapted_modules()
        self._folder = None if keep is None else self._folder_in(keep)
        if not alone:  # what is encoded alone is the same bits after a resume
            remembers(self)

    def _folder_in(self, keep: Path) -> Path:
        state: dict[str, torch.Tensor] = {}
        for i, part in enumerate(self.family.shared(self.core).values()):
            weights = {"": part.data} if isinstance(part, nn.Parameter) else part.state_dict()
            state.update({f"{i}.{name}": tensor for name, tensor in weights.items()})
        kind = f"{str(self.core.dtype).removeprefix('torch.')}{'-tower' if self.tower else ''}"
        folder = keep / f"{weights_digest(state)}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def install(self) -> VisionCache:
        """Install the cache on the model; calls nest, and the outermost `remove` takes it away."""
        if self.depth == 0:
            cache, self._adapted = self, self._adapted_modules()

            @functools.wraps(self._original)  # generate() reads the signature
            def features(*args: Any, **kwargs: Any) -> Any:
                return cache(*args, **kwargs)

            setattr(self.core.base_model, self._method, features)
        self.depth += 1
        return self

    def remove(self) -> None:
        """Undo one `install`; the last one restores the model and forgets the features."""
        if self.depth == 0:
            return
        self.depth -= 1
        if self.depth == 0:
            delattr(self.core.base_model, self._method)
            self.clear()

    def clear(self) -> None:
        """Forget all features; the counters stay."""
        self._kept.clear()
        self._bytes = 0

    def begin_batch(self) -> None:
        """Forget earlier batches' features, unless encoded alone: a resumed run encodes the same images together."""
        if not self.alone:
            self.clear()

    def __enter__(self) -> VisionCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the replaced method; what is cached is not computed."""
        as_tuple = kwargs.pop("return_dict", True) is False
        arguments = call_arguments(self._signature, args, kwargs)
        features, template = self._lookup(arguments)
        pooled: Any = [f.pooled for f in features]
        fields: dict[str, Any] = {"pooler_output": torch.stack(pooled) if template.stacked else pooled}
        if features[0].deep is not None:
            fields["deepstack_features"] = [
                list(layer) for layer in zip(*(f.deep or [] for f in features), strict=True)
            ]
        output = template.kind(**fields)
        return output.to_tuple() if as_tuple else output

    def serves(self, where: str) -> bool:
        """Return whether the cache holds the features of "tower" or of "connector"."""
        return self.tower if where == "tower" else self.family.tower_features is None

    def encode(self, arguments: dict[str, Any]) -> list[ImageFeatures]:
        """Return the features of each image input of a batch, from the cache where it holds them."""
        return self._lookup(arguments)[0]

    def _lookup(self, arguments: dict[str, Any]) -> tuple[list[ImageFeatures], _Template]:
        arguments = {**self._defaults, **arguments, "pixel_values": arguments["pixel_values"].to(self.core.dtype)}
        inputs = ImageInputs(arguments)
        keys, state = inputs.keys(), self._state()
        keys = [key + state for key in keys]
        features_by_key = {key: self._kept[key] for key in keys if key in self._kept}
        if self._folder is not None:
            features_by_key.update(
                {key: kept for key in keys if key not in features_by_key and (kept := self._read(key)) is not None}
            )
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in features_by_key}
        if first:  # with all that is not in memory: a pass that was killed may have written some of these files
            first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._kept}
        if self._template is None and not first:
            self._evaluate(inputs.select([0]))  # learn once what the model returns beside the features
        if first:
            index = sorted(first.values())
            fresh = dict(zip((keys[i] for i in index), self._evaluate(inputs.select(index)), strict=True))
            fresh = {key: features for key, features in fresh.items() if key not in features_by_key}
            features_by_key.update(fresh)
            self._write(fresh)
        self.hits += inputs.count - len(first)
        for key in dict.fromkeys(keys):
            self._bytes += 0 if key in self._kept else features_by_key[key].nbytes
            self._kept[key] = features_by_key[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.max_images and self._bytes > (ROOM if self.alone else 0):
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        assert self._template is not None
        return [features_by_key[key] for key in keys], self._template

    def _adapted_modules(self) -> list[Any]:
        parts = [part for part in self.family.shared(self.core).values() if isinstance(part, nn.Module)]
        return [module for part in parts for module in part.modules() if isinstance(module, ADAPTED)]

    def _state(self) -> bytes:
        """Which weights answer where an adapter has some of its own: its, or the base's; nothing without such."""
        return str(sorted({(one.disable_adapters, *one.active_adapters) for one in self._adapted}) or "").encode()

    def _read(self, key: bytes) -> ImageFeatures | None:
        path = cast(Path, self._folder) / f"{key.hex()}.safetensors"
        return ImageFeatures.from_tensors(load_file(path, device=str(self.core.device))) if path.is_file() else None

    def _write(self, fresh: dict[bytes, ImageFeatures]) -> None:
        for key, features in fresh.items() if self._folder is not None else ():
            path = cast(Path, self._folder) / f"{key.hex()}.safetensors"
            partial = path.with_suffix(f".{os.getpid()}")  # a file is complete or does not exist
            save_file(features.tensors(), partial)
            partial.replace(path)

    def _evaluate(self, arguments: dict[str, Any]) -> list[ImageFeatures]:
        self._refuse_trainable()
        inputs = ImageInputs(arguments)
        if self.alone and inputs.count > 1:
            return [self._evaluate(inputs.select([i]))[0] for i in range(inputs.count)]
        output = frozen_call(self._original, self.core, self.family, arguments)
        self._template = _Template(type(output), isinstance(output.pooler_output, torch.Tensor))
        self.evaluations += 1
        self.images += inputs.count
        with torch.inference_mode(False), torch.no_grad():
            return [features.copy() for features in split_by_image(output, inputs, tower=self.tower)]

    def _refuse_trainable(self) -> None:
        for name, part in self.family.shared(self.core).items():
            for parameter in [part] if isinstance(part, nn.Parameter) else part.parameters():
                if parameter.requires_grad:
                    raise CaptionerError(
                        f"vision features cannot be shared: {name} has parameters that require a gradient, and shared "
                        "features would hide it. Freeze the tower and the connector (requires_grad_(False)) or train "
                        "without share_vision()."
                    )


class _Template:
    def __init__(self, kind: type, stacked: bool) -> None:
        self.kind, self.stacked = kind, stacked


# what forward() passes to every part of a model; it does not change the features of an image
PASSING = {*TransformersKwargs.__annotations__, "use_cache"}


def call_arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, without None and without those that do not change an image's features."""
    bound = dict(signature.bind(*args, **kwargs).arguments)
    bound.update(bound.pop("kwargs", {}))
    return {name: value for name, value in bound.items() if value is not None and name not in PASSING}


def frozen_call(function: Any, core: PreTrainedModel, family: Family, arguments: dict[str, Any]) -> Any:
    """Call `get_image_features` as a pure function of the pixels: no gradient, no dropout, usable in later autograd."""
    modules = [m for part in family.parts(core) if isinstance(part, nn.Module) for m in part.modules() if m.training]
    for module in modules:
        module.training = False
    try:
        with torch.inference_mode(False), torch.no_grad():
            return function(**arguments, return_dict=True)
    finally:
        for module in modules:
            module.training = True


def encode(core: PreTrainedModel, family: Family, arguments: dict[str, Any], *, tower: bool) -> list[ImageFeatures]:
    """Compute the frozen features of each image input of a batch, without a cache."""
    arguments = {**arguments, "pixel_values": arguments["pixel_values"].to(core.dtype)}
    method: Any = core.base_model.get_image_features
    method = getattr(method, "__wrapped__", method) if "get_image_features" in vars(core.base_model) else method
    return split_by_image(frozen_call(method, core, family, arguments), ImageInputs(arguments), tower=tower)
