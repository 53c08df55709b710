from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from captune.models.encoders.features import SHOWN, ImageFeatureCache
from captune.utils import progress


class Eyes:
    """The mean colour of an image; remembers how many it was shown at a time."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def encode_images(self, images: list) -> torch.Tensor:
        self.shown.append(len(images))
        return torch.stack([torch.from_numpy(np.asarray(i, dtype=np.float32).mean((0, 1))) for i in images])


def plain(*colours: str, size: int = 4) -> list[Image.Image]:
    return [Image.new("RGB", (size, size), colour) for colour in colours]


def test_equal_pixels_are_encoded_once_and_rows_keep_their_places() -> None:
    eyes = Eyes()
    features = ImageFeatureCache(eyes)
    keys, rows = features(plain("red", "blue", "red", "lime", "blue"), batch_size=2)
    assert eyes.shown == [2, 1]
    assert keys[0] == keys[2] != keys[1] == keys[4]
    assert rows.tolist() == [[255, 0, 0], [0, 0, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    features(plain("lime", "red"))
    assert eyes.shown == [2, 1]


def test_an_image_named_several_times_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward names an image object once for each of its captions."""
    opened: list[Image.Image] = []
    monkeypatch.setattr("captune.data.images.open_image", lambda image: opened.append(image) or image)
    eyes = Eyes()
    red, blue, again = plain("red", "blue", "red")
    keys, rows = ImageFeatureCache(eyes)([red, red, blue, red, again, blue])
    assert opened == [red, blue, again] and eyes.shown == [2]
    assert keys[0] == keys[1] == keys[3] == keys[4] != keys[2] == keys[5]
    assert rows[:, 0].tolist() == [255, 255, 0, 255, 255, 0]


def test_an_image_that_is_drawn_when_it_is_asked_for_is_asked_for_once() -> None:
    class Drawn(list):
        asked: ClassVar[list[int]] = []

        def __getitem__(self, place: Any) -> Any:
            self.asked.append(place)
            return super().__getitem__(place)

        def __iter__(self) -> Any:
            raise AssertionError("all at once")

    ImageFeatureCache(Eyes())(Drawn(plain("red", "blue", "lime")), batch_size=2)
    assert Drawn.asked == [0, 1, 2]


def test_the_same_colour_in_another_size_or_mode_is_another_image() -> None:
    features = ImageFeatureCache(Eyes())
    (a, b, c), _ = features([*plain("red"), *plain("red", size=2), Image.new("RGB", (2, 8), "red")])
    assert len({a, b, c}) == 3


def test_only_so_many_are_kept_and_forgotten_ones_are_encoded_again() -> None:
    eyes = Eyes()
    features = ImageFeatureCache(eyes, keep=2)
    _, rows = features(plain("red", "blue", "lime"))
    again = features(plain("red", "blue", "lime"), batch_size=1)[1]
    assert torch.equal(rows, again) and len(features._features) == 2
    assert eyes.shown == [3, 1, 1, 1]


def test_no_image() -> None:
    keys, rows = ImageFeatureCache(Eyes())([])
    assert keys == [] and rows.shape == (0, 0)


def test_an_evaluation_is_told_how_far_it_is_and_a_training_step_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 1e-6)
    ImageFeatureCache(Eyes())(plain("red") * (SHOWN - 1))
    assert not capsys.readouterr().err
    ImageFeatureCache(Eyes())(plain("red") * SHOWN)
    assert capsys.readouterr().err.startswith("images: ")
