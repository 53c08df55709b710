"""Detectors of transformers: DETR, YOLOS, RT-DETR and whatever else `AutoModelForObjectDetection` loads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from captune.errors import DetectorError
from captune.models.detectors.base import Detections, chosen
from captune.models.hub import loading, resolve
from captune.utils.device import pick_device
from captune.utils.hashing import identity
from captune.utils.loads import check_finite, check_model


class TransformersDetector:
    """A detector of transformers. Its image processor reads the images and turns the output into boxes.

    Args:
        model: the loaded model.
        processor: its image processor.
        name: what the user calls it.
    """

    nms = 1.0  # trained to give each object once

    def __init__(self, model: Any, processor: Any, *, name: str) -> None:
        self.model, self.processor, self.name = model.eval().requires_grad_(False), processor, name
        labels = model.config.id2label
        self.names = tuple(str(labels.get(i, f"class {i}")) for i in range(max(labels) + 1))
        self.classes = tuple(name for name in dict.fromkeys(self.names) if name != "N/A")  # gaps in COCO's numbers

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: str | None = None) -> TransformersDetector:
        """Load a folder saved with `save_pretrained` (model and image processor), or a hub name.

        Raises:
            DetectorError: says what is missing and how to get it.
        """
        name = str(name_or_path)
        source = resolve(name, what="detector", example="PekingU/rtdetr_r18vd", error=DetectorError)
        with loading("detector", name, source, DetectorError):
            processor = AutoImageProcessor.from_pretrained(source, backend="pil")
            model, info = AutoModelForObjectDetection.from_pretrained(
                source, use_safetensors=True, output_loading_info=True
            )
        check_model(model, info, what=f"detector {name!r}", error=DetectorError)
        if not hasattr(processor, "post_process_object_detection"):
            raise DetectorError(f"detector {name!r}: its image processor {type(processor).__name__} makes no boxes")
        return cls(model.to(pick_device(device)), processor, name=name)

    @cached_property
    def digest(self) -> str:
        """8 hex digits of weights, image processor and configuration."""
        return identity(self.model, self.processor, unused=())

    def detect(self, images: Sequence[Any], *, threshold: float, nms: float | None = None) -> list[Detections]:
        """Find objects; see `captune.models.detectors.Detector`."""
        images = list(images)
        if not images:
            return []
        with torch.inference_mode():
            inputs = self.processor(images=images, return_tensors="pt").to(self.model.device, self.model.dtype)
            outputs = self.model(**inputs)
            check_finite([("logits", outputs.logits), ("boxes", outputs.pred_boxes)], error=DetectorError,
                         what=f"what detector {self.name!r} says of an image")  # fmt: skip
            # every box, since a threshold there means "more than", here "at least"
            made = self.processor.post_process_object_detection(
                outputs, threshold=-1.0, target_sizes=[(image.height, image.width) for image in images]
            )
        found = []
        for image, one in zip(images, made, strict=True):
            boxes, scores, classes = (np.asarray(one[key].float().cpu()) for key in ("boxes", "scores", "labels"))
            settings = {"threshold": threshold, "nms": self.nms if nms is None else nms}
            found.append(chosen(boxes, scores, classes.astype(int), self.names, image.size, **settings))
        return found
