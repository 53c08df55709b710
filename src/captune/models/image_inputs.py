"""The images of a batch as the families of models lay them out: split, counted, pooled."""

from __future__ import annotations

import math
from typing import Any

import torch
import xxhash

from captune.errors import CaptionerError


class ImageInputs:
    """The image inputs in the arguments of one `get_image_features` call, one by one.

    An image input is a row of `pixel_values`: an image with all its tiles if they come stacked (B, tiles, 3, H, W), a
    single tile if they come flat (InternVL). With `image_grid_thw` (n, 3) it is one image's run of patches.

    Attributes:
        count: how many there are.
        lengths: rows of `pixel_values` of each.
        flat: whether these rows are patches.

    Args:
        arguments: of the call.
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
        """Return the pixels of each."""
        return list(self.pixels.split(self.lengths)) if self.flat else list(self.pixels)

    def select(self, index: list[int]) -> dict[str, Any]:
        """Return the arguments of a call on these image inputs only; repeats are allowed."""
        chosen = {n: v[index] if self._along(n, v) else v for n, v in self.arguments.items()}
        runs = self.runs() if self.flat else []
        chosen["pixel_values"] = torch.cat([runs[i] for i in index]) if self.flat else self.pixels[index]
        return chosen

    def real_tiles(self) -> list[int]:
        """Return how many rows of the tower's output belong to each; tiles that are all zeros are padding."""
        if self.flat or self.pixels.dim() != 5:
            return self.lengths
        return (self.pixels != 0).flatten(2).any(-1).sum(-1).tolist()

    def _extents(self) -> list[int]:
        """Return, for stacked tiles, where each image ends without its trailing padding."""
        real = (self.pixels != 0).flatten(2).any(-1)
        positions = torch.arange(1, real.shape[1] + 1, device=real.device)
        return (real * positions).amax(-1).tolist()

    def keys(self) -> list[bytes]:
        """Return 128-bit content keys: of the pixels and of all else that the call says, without padding tiles.

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


def inputs_per_image(tokens: list[int], count: int) -> list[int]:
    """Divide image inputs among the images of a batch, in proportion to their image tokens.

    Args:
        tokens: image tokens of each image; all tiles have the same number.
        count: image inputs in all.

    Raises:
        CaptionerError: they do not divide.
    """
    if count == len(tokens):
        return [1] * count
    each = sum(tokens) / count
    sizes = [round(n / each) for n in tokens]
    if sum(sizes) != count:
        raise CaptionerError(f"{count} image tiles do not divide among images with {tokens} image tokens")
    return sizes


def pool(states: list[Any], sizes: list[int], how: str) -> torch.Tensor:
    """Average the states of each image.

    Args:
        states: (tokens, H) of each image input.
        sizes: image inputs of each image.
        how: "mean" over all tokens, or "quarters", the means of four parts, laid end to end.

    Returns:
        (B, H) or (B, 4 H), float32.

    Raises:
        CaptionerError: quarters of fewer than 4 tokens.
    """
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
    """Average (N, H) over the quarters of the image if its tokens are an even square, else of the sequence: (4, H)."""
    side = math.isqrt(len(tokens))
    if side * side == len(tokens) and side % 2 == 0:
        return tokens.view(2, side // 2, 2, side // 2, -1).mean((1, 3)).flatten(0, 1)
    return torch.stack([part.mean(0) for part in tokens.tensor_split(4)])
