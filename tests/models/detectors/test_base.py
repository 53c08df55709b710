"""Suppression of boxes against a brute force over all pairs; what is kept of the scores and inside the image."""

from __future__ import annotations

import numpy as np
import pytest

from captune.models.detectors.base import COCO_NAMES, chosen, suppress


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Of boxes of whole pixels, by counting them."""
    one, other = (np.zeros((40, 40), bool) for _ in range(2))
    for grid, box in ((one, a), (other, b)):
        grid[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    both = (one | other).sum()
    return float((one & other).sum() / both) if both else 0.0


def brute_force(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, limit: float) -> list[int]:
    kept: list[int] = []
    for one in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        if all(classes[one] != classes[other] or overlap(boxes[one], boxes[other]) <= limit for other in kept):
            kept.append(one)
    return kept


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.9])
def test_suppression_is_that_of_a_brute_force(limit: float) -> None:
    rng = np.random.default_rng(0)
    removed = 0
    for _ in range(30):
        number = int(rng.integers(0, 25))
        start = rng.integers(0, 6, (number, 2))
        boxes = np.concatenate([start, start + rng.integers(0, 30, (number, 2))], axis=1).astype(float)
        scores = rng.integers(1, 6, number) / 5  # with ties
        classes = rng.integers(0, 2, number)
        kept = suppress(boxes, scores, classes, limit).tolist()
        assert kept == brute_force(boxes, scores, classes, limit)
        removed += number - len(kept)
    assert removed > 0


def test_at_1_equal_boxes_stay() -> None:
    assert suppress(np.array([[0, 0, 5, 5.0]] * 3), np.array([0.1, 0.9, 0.5]), np.zeros(3), 1.0).tolist() == [1, 2, 0]


def test_boxes_are_cut_at_the_images_edges_and_scores_at_the_threshold() -> None:
    boxes = np.array([[-5, 2, 30, 50.0], [1, 1, 2, 2], [4, 4, 6, 6]])
    found = chosen(boxes, np.array([0.5, 0.3, 0.29]), np.array([0, 1, 1]), ["a", "b"], (20, 10), threshold=0.3, nms=0.5)
    assert found.boxes.tolist() == [[0, 2, 20, 10], [1, 1, 2, 2]]
    assert found.labels == ("a", "b") and found.scores.tolist() == [0.5, 0.3]
    assert found.objects()[0] == {"label": "a", "score": 0.5, "box": [0.0, 2.0, 20.0, 10.0]}


def test_cocos_names_are_80() -> None:
    assert len(set(COCO_NAMES)) == 80 and (COCO_NAMES[0], COCO_NAMES[79]) == ("person", "toothbrush")
    assert COCO_NAMES[16:18] == ("dog", "horse") and COCO_NAMES[39] == "bottle" and COCO_NAMES[62] == "tv"
