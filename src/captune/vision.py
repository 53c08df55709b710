"""Images are encoded once: a memo on the model's vision path, and frozen visual features read through it.

transformers reaches the vision tower through one method of the inner model, `get_image_features`: `forward` calls it,
`generate` calls it before the prefill, and so does anything built on them (TRL, PEFT, accelerate). The memo replaces
that method on the instance. It looks at each image's pixels, encodes those that it has not seen (under no_grad) and
hands out stored features, so that samples, log-probabilities and training share one pass, without a backward.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
import xxhash
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from captune.families import CaptionerError, Family


class Units:
    """The images in the arguments of one `get_image_features` call, cut apart.

    One unit is a row of `pixel_values`: an image, with all its tiles where they come stacked (B, tiles, 3, H, W), or a
    single tile where they come flat (InternVL). With `image_grid_thw` (n, 3) a unit is one image's run of patches.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.pixels: torch.Tensor = arguments["pixel_values"]
        grid = arguments.get("image_grid_thw")
        self.flat = grid is not None
        self.lengths: list[int] = [1] * self.pixels.shape[0] if grid is None else grid.prod(-1).tolist()
        self.count = len(self.lengths)

    def _along(self, name: str, value: Any) -> bool:
        return name != "pixel_values" and isinstance(value, torch.Tensor) and value.shape[:1] == (self.count,)

    def runs(self) -> list[torch.Tensor]:
        return list(self.pixels.split(self.lengths)) if self.flat else list(self.pixels)

    def select(self, index: list[int]) -> dict[str, Any]:
        """The arguments of a call on these units only (repeats allowed)."""
        chosen = {n: v[index] if self._along(n, v) else v for n, v in self.arguments.items()}
        runs = self.runs() if self.flat else []
        chosen["pixel_values"] = torch.cat([runs[i] for i in index]) if self.flat else self.pixels[index]
        return chosen

    def real_tiles(self) -> list[int]:
        """How many rows of the tower's output belong to each unit (tiles that are all zeros are padding)."""
        if self.flat or self.pixels.dim() != 5:
            return self.lengths
        return (self.pixels != 0).flatten(2).any(-1).sum(-1).tolist()

    def _extents(self) -> list[int]:
        """For stacked tiles: where each image ends, its trailing padding left out."""
        real = (self.pixels != 0).flatten(2).any(-1)
        places = torch.arange(1, real.shape[1] + 1, device=real.device)
        return (real * places).amax(-1).tolist()

    def keys(self) -> list[bytes]:
        """128-bit content keys: pixels and everything else that the call says about the unit, padding tiles left out.

        The pixels are hashed in main memory, so on a GPU this costs one copy of the batch and a synchronisation.
        """
        extras = {n: v.cpu() for n, v in self.arguments.items() if self._along(n, v)}
        constant = repr(sorted((n, v) for n, v in self.arguments.items() if n != "pixel_values" and n not in extras))
        stacked = not self.flat and self.pixels.dim() == 5
        extents = self._extents() if stacked else []
        keys = []
        for i, run in enumerate(self._on_cpu()):
            digest = xxhash.xxh3_128(constant.encode())
            for value in (run, *(v[i] for v in extras.values())):
                if stacked and value.dim() >= 3 and value.shape[0] == run.shape[0]:
                    value = value[: extents[i]]  # the tiles, or the mask of each
                digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().data)
            keys.append(digest.digest())
        return keys

    def _on_cpu(self) -> list[torch.Tensor]:
        pixels = self.pixels.detach().cpu()
        return list(pixels.split(self.lengths)) if self.flat else list(pixels)


class Encoded:
    """The features of one unit: `pooled` (tokens, H) after the connector, `deep` per extra layer, `tower` before it."""

    def __init__(self, pooled: torch.Tensor, deep: list[torch.Tensor] | None, tower: torch.Tensor | None) -> None:
        self.pooled, self.deep, self.tower = pooled, deep, tower

    def own(self) -> Encoded:
        """Copies: a view would keep the features of its whole batch in memory."""
        deep = [layer.clone() for layer in self.deep] if self.deep else None
        return Encoded(self.pooled.clone(), deep, None if self.tower is None else self.tower.clone())


def cut(output: Any, units: Units, *, tower: bool) -> list[Encoded]:
    """One `Encoded` per unit from what `get_image_features` returned for all of them."""
    pooled, deep = output.pooler_output, getattr(output, "deepstack_features", None)
    if len(pooled) != units.count:
        raise CaptionerError(
            f"the model returned features for {len(pooled)} images where {units.count} were given: "
            "its features cannot be shared image by image"
        )
    states: Any = [None] * units.count
    if tower:
        states = [s.flatten(0, -2) for s in output.last_hidden_state.split(units.real_tiles())]
    return [Encoded(pooled[i], [layer[i] for layer in deep] if deep else None, states[i]) for i in range(units.count)]


class VisionMemo:
    """Shares one evaluation of the vision tower among all passes that see the same pixels.

    `evaluations` counts calls of the tower, `images` the images (or flat tiles) encoded, `hits` those served from
    memory. At most `max_images` are kept, the least recently used go first (SmolVLM-2.2B in bfloat16 takes 6 MB an
    image, a storybook captioner 2 kB). Features have the precision of their first evaluation and never carry a
    gradient. A context manager; `remove()` restores the model, `clear()` empties the memo.

    :raises CaptionerError: when a parameter of the vision tower or the connector requires a gradient.
    """

    def __init__(self, core: PreTrainedModel, family: Family, *, max_images: int = 256, tower: bool = False) -> None:
        if max_images < 1:
            raise CaptionerError(f"max_images must be at least 1, not {max_images}")
        self.core, self.family, self.max_images, self.tower = core, family, max_images, tower
        self.evaluations = self.images = self.hits = 0
        self.depth = 0
        self._kept: OrderedDict[bytes, Encoded] = OrderedDict()
        self._original = cast(Callable[..., Any], core.base_model.get_image_features)
        self._signature = inspect.signature(self._original)
        # forward() names the feature layer, generate() leaves it to the config: the same images either way
        names = [name for name in self._signature.parameters if name.startswith("vision_feature")]
        self._defaults = {name: getattr(core.config, name) for name in names if hasattr(core.config, name)}
        self._refuse_trainable()

    def install(self) -> VisionMemo:
        """Put the memo in place; calls nest, and the outermost `remove` takes it away."""
        if self.depth == 0:
            memo = self

            @functools.wraps(self._original)  # generate() reads the signature
            def get_image_features(*args: Any, **kwargs: Any) -> Any:
                return memo(*args, **kwargs)

            self.core.base_model.get_image_features = get_image_features  # type: ignore[assignment]
        self.depth += 1
        return self

    def remove(self) -> None:
        """Undo one `install`; the last one restores the model and forgets the features."""
        if self.depth == 0:
            return
        self.depth -= 1
        if self.depth == 0:
            del self.core.base_model.get_image_features
            self.clear()

    def clear(self) -> None:
        """Forget all features (the counters stay)."""
        self._kept.clear()

    def __enter__(self) -> VisionMemo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        as_tuple = kwargs.pop("return_dict", True) is False
        arguments = call_arguments(self._signature, args, kwargs)
        encoded, template = self._lookup(arguments)
        pooled: Any = [e.pooled for e in encoded]
        fields: dict[str, Any] = {"pooler_output": torch.stack(pooled) if template.stacked else pooled}
        if encoded[0].deep is not None:
            fields["deepstack_features"] = [list(layer) for layer in zip(*(e.deep or [] for e in encoded), strict=True)]
        output = template.kind(**fields)
        return output.to_tuple() if as_tuple else output

    def encode(self, arguments: dict[str, Any]) -> list[Encoded]:
        """The features of each unit of a batch, through the memo."""
        return self._lookup(arguments)[0]

    def _lookup(self, arguments: dict[str, Any]) -> tuple[list[Encoded], _Template]:
        arguments = {**self._defaults, **arguments, "pixel_values": arguments["pixel_values"].to(self.core.dtype)}
        units = Units(arguments)
        keys = units.keys()
        found = {key: self._kept[key] for key in keys if key in self._kept}
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        if first:
            index = sorted(first.values())
            found.update(zip((keys[i] for i in index), self._evaluate(units.select(index)), strict=True))
        self.hits += units.count - len(first)
        for key in dict.fromkeys(keys):
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.max_images:
            self._kept.popitem(last=False)
        return [found[key] for key in keys], self._template

    def _evaluate(self, arguments: dict[str, Any]) -> list[Encoded]:
        self._refuse_trainable()
        output = frozen_call(self._original, self.core, self.family, arguments)
        units = Units(arguments)
        self._template = _Template(type(output), isinstance(output.pooler_output, torch.Tensor))
        self.evaluations += 1
        self.images += units.count
        with torch.inference_mode(False), torch.no_grad():
            return [encoded.own() for encoded in cut(output, units, tower=self.tower)]

    def _refuse_trainable(self) -> None:
        for name, part in zip((self.family.vision, *self.family.connector), self.family.parts(self.core), strict=True):
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


# what forward() hands down to every part of a model, of no consequence for the features of an image
PASSING = {*TransformersKwargs.__annotations__, "use_cache"}


def call_arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, what went into **kwargs included; without None and what merely passes through."""
    bound = dict(signature.bind(*args, **kwargs).arguments)
    bound.update(bound.pop("kwargs", {}))
    return {name: value for name, value in bound.items() if value is not None and name not in PASSING}


def frozen_call(function: Any, core: PreTrainedModel, family: Family, arguments: dict[str, Any]) -> Any:
    """`get_image_features` as a pure function of the pixels: no gradient, no dropout, usable in later autograd."""
    modules = [m for part in family.parts(core) if isinstance(part, nn.Module) for m in part.modules() if m.training]
    for module in modules:
        module.training = False
    try:
        with torch.inference_mode(False), torch.no_grad():
            return function(**arguments, return_dict=True)
    finally:
        for module in modules:
            module.training = True


def encode(core: PreTrainedModel, family: Family, arguments: dict[str, Any], *, tower: bool) -> list[Encoded]:
    """The frozen features of each unit of a batch, without a memo."""
    arguments = {**arguments, "pixel_values": arguments["pixel_values"].to(core.dtype)}
    method: Any = core.base_model.get_image_features
    method = getattr(method, "__wrapped__", method) if "get_image_features" in vars(core.base_model) else method
    return cut(frozen_call(method, core, family, arguments), Units(arguments), tower=tower)


def units_per_image(tokens: list[int], units: int) -> list[int]:
    """How many units each image of a batch has, from its number of image tokens (tiles all have the same number)."""
    if units == len(tokens):
        return [1] * units
    each = sum(tokens) / units
    sizes = [round(n / each) for n in tokens]
    if sum(sizes) != units:
        raise CaptionerError(f"{units} image tiles do not divide among images with {tokens} image tokens")
    return sizes


def pool(states: list[Any], sizes: list[int], how: str) -> torch.Tensor:
    """(B, D) float32 from the states (tokens, H) of each unit, `sizes` units to an image."""
    images, start = [], 0
    for size in sizes:
        images.append(torch.cat(states[start : start + size]).float())
        start += size
    if how == "mean":
        return torch.stack([image.mean(0) for image in images])
    if (fewest := min(image.shape[0] for image in images)) < 4:
        raise CaptionerError(f'pool="quarters" needs 4 tokens of each image, one has {fewest}; use pool="mean"')
    return torch.stack([quarters(image).flatten() for image in images])


def quarters(tokens: torch.Tensor) -> torch.Tensor:
    """(N, H) -> (4, H): means of a picture's quarters where its tokens are an even square, else of the sequence's."""
    side = math.isqrt(len(tokens))
    if side * side == len(tokens) and side % 2 == 0:
        return tokens.view(2, side // 2, 2, side // 2, -1).mean((1, 3)).flatten(0, 1)
    return torch.stack([part.mean(0) for part in tokens.tensor_split(4)])
