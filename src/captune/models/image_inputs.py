"""The images of a batch as the families of models lay them out: cut apart, counted, pooled."""

from __future__ import annotations

import math
from typing import Any

import torch
import xxhash

from captune.errors import CaptionerError


class ImageInputs:
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


def inputs_per_image(tokens: list[int], units: int) -> list[int]:
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
