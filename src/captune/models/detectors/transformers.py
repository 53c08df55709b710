"""Detectors of transformers: DETR, YOLOS, RT-DETR and whatever else `AutoModelForObjectDetection` loads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection, BatchFeature

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
        found: dict[int, Detections] = {}
        settings = {"threshold": threshold, "nms": self.nms if nms is None else nms}
        prepared = [self.processor(images=[image], return_tensors="pt") for image in images]
        groups: dict[torch.Size, list[int]] = defaultdict(list)  # padded to each other's size, images would change
        for place, one in enumerate(prepared):
            groups[one["pixel_values"].shape].append(place)
        for places in groups.values():
            sizes = [(images[place].height, images[place].width) for place in places]
            for place, one in zip(places, self._run([prepared[place] for place in places], sizes), strict=True):
                boxes, scores, classes = (np.asarray(one[key].float().cpu()) for key in ("boxes", "scores", "labels"))
                size = images[place].size
                found[place] = chosen(boxes, scores, classes.astype(int), self.names, size, **settings)
        return [found[place] for place in range(len(images))]

    @torch.inference_mode()
    def _run(self, prepared: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Any:
        """Every box in images of equal prepared shape, and of these heights and widths."""
        inputs = {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}
        outputs = self.model(**BatchFeature(inputs).to(self.model.device, self.model.dtype))
        check_finite([("logits", outputs.logits), ("boxes", outputs.pred_boxes)], error=DetectorError,
                     what=f"what detector {self.name!r} says of an image")  # fmt: skip
        # every box, since a threshold there means "more than", here "at least"
        return self.processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)
