"""Views of an image: the same ones at every visit, mirrored only where the caption allows it."""

from __future__ import annotations

import numpy as np
import tiny
from PIL import ImageOps

from captune.data.views import SIDES, SMALLEST, view


def test_a_view_is_a_crop_that_its_number_decides() -> None:
    image = tiny.picture(0, (80, 60))
    assert view(image, 0, "a", "a dog") is image
    seen = {view(image, number, "a", "a dog").tobytes() for number in range(1, 9)}
    assert len(seen) == 8 and seen == {view(image, number, "a", "a cat").tobytes() for number in range(1, 9)}
    assert seen != {view(image, number, "b", "a dog").tobytes() for number in range(1, 9)}
    for number in range(1, 9):
        width, height = view(image, number, "a", "").size
        assert SMALLEST - 0.05 < width * height / (80 * 60) <= 1 and abs(width / height - 80 / 60) < 0.05


def test_what_is_on_the_left_stays_there() -> None:
    image = tiny.picture(0, (80, 60))
    mirrored = 0
    for number in range(1, 33):
        plain, sided = (view(image, number, "a", text) for text in ("a dog", "a dog on the LEFT of a cat"))
        if plain.tobytes() != sided.tobytes():
            mirrored += 1
            np.testing.assert_array_equal(np.asarray(ImageOps.mirror(plain)), np.asarray(sided))
    assert 8 < mirrored < 24
    assert all(SIDES.search(text) for text in ("the leftmost dog", "Rightmost cup", "leaning leftward", "rightwards"))
    assert view(image, 1, "a", "leftovers").tobytes() == view(image, 1, "a", "").tobytes()
