"""What every detector is, and what all of them share: boxes, and the suppression of boxes that say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

DEFAULT_THRESHOLD = 0.3

_COCO = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush
"""
COCO_NAMES = tuple(" ".join(name.split()) for name in _COCO.split(","))
"""COCO's 80 classes in the order in which detectors number them."""


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, the likeliest first.

    Attributes:
        boxes: (N, 4) float64, x0, y0, x1, y1 in pixels of the image as it was given, inside it.
        scores: (N,) float64, 0 to 1.
        labels: the class of each.
        size: width and height of the image in pixels.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    size: tuple[int, int]

    def objects(self) -> list[dict[str, Any]]:
        """Return them as plain data: label, score to 4 digits, box to a tenth of a pixel."""
        return [
            {"label": label, "score": round(float(score), 4), "box": [round(float(side), 1) for side in box]}
            for label, score, box in zip(self.labels, self.scores, self.boxes, strict=True)
        ]


class Detector(Protocol):
    """Something that finds objects.

    Attributes:
        name: what the user calls it.
        classes: the labels that it can give.
        nms: the overlap above which it drops the weaker of two boxes of a class, if nobody says; 1: none is dropped.
    """

    name: str
    classes: tuple[str, ...]
    nms: float

    @property
    def digest(self) -> str:
        """8 hex digits of all that decides its answers: weights, classes, how an image is prepared."""
        ...

    def detect(self, images: Sequence[Any], *, threshold: float, nms: float | None = None) -> list[Detections]:
        """Find objects.

        Args:
            images: upright RGB images of PIL.
            threshold: objects that score less are left out.
            nms: overlap (IoU) of two boxes of a class above which the weaker one is dropped; None: its own; 1: none is.
        """
        ...


def suppress(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, overlap: float) -> np.ndarray:
    """Return which boxes stay, the likeliest first: of two of a class that overlap more, the weaker one goes.

    Args:
        boxes: (N, 4), x0, y0, x1, y1.
        scores: (N,); of equal ones the first counts as the likelier.
        classes: (N,).
        overlap: intersection over union; 1 or more: all stay.
    """
    order = np.argsort(-scores, kind="stable")
    if overlap >= 1:
        return order
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    stays = np.ones(len(boxes), dtype=bool)
    for place, one in enumerate(order):
        if not stays[one]:
            continue
        rest = order[place + 1 :]
        rest = rest[stays[rest] & (classes[rest] == classes[one])]
        sides = np.minimum(boxes[one, 2:], boxes[rest, 2:]) - np.maximum(boxes[one, :2], boxes[rest, :2])
        shared = np.prod(np.clip(sides, 0, None), axis=1)
        union = areas[one] + areas[rest] - shared
        stays[rest[shared > overlap * union]] = False
    return order[stays[order]]


def chosen(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    size: tuple[int, int],
    *,
    threshold: float,
    nms: float,
) -> Detections:
    """Return the boxes that score enough and stay, inside the image.

    Args:
        boxes: (N, 4), x0, y0, x1, y1 in pixels.
        scores: (N,).
        classes: (N,) numbers of classes.
        names: of the classes.
        size: the image's width and height.
        threshold: boxes that score less are left out.
        nms: see `suppress`.
    """
    enough = np.flatnonzero(scores >= threshold)
    boxes, scores, classes = boxes[enough].astype(np.float64), scores[enough].astype(np.float64), classes[enough]
    kept = suppress(boxes, scores, classes, nms)
    inside = np.clip(boxes[kept], 0, np.tile(size, 2))
    return Detections(inside, scores[kept], tuple(names[int(c)] for c in classes[kept]), size)
