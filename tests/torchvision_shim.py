"""Lets PyPI's torchvision import beside a torch build that its compiled operators do not match.

torchvision describes its operators to torch when it is imported, and fails if they do not exist. Names are enough: the
tests use image processors only, which call none of them. The Qwen-VL, InternVL and SmolVLM processors need it.
Never install such a torchvision where captune itself runs: transformers would find it, import it and fail.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

# where `make install` puts a torchvision that does not fit torch, for the tests only
FOLDER = Path(__file__).parents[1] / ".torchvision"

OPERATORS = ["nms", "qnms", "qroi_align", "deform_conv2d", "_deform_conv2d_backward"]
OPERATORS += [
    prefix + name + suffix
    for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
    for prefix, suffix in (("", ""), ("_", "_backward"))
]

_library: torch.library.Library | None = None


def install() -> None:
    """Make torchvision importable where it is installed, or in FOLDER; do nothing where it is neither or fits."""
    global _library
    if importlib.util.find_spec("torchvision") is None and (FOLDER / "torchvision").is_dir():
        sys.path.append(str(FOLDER))
    if _library is not None or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError):  # no operators, or a compiled library for another torch
        _library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            _library.define(f"{name}(Tensor input) -> Tensor")
        for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        importlib.import_module("torchvision")
