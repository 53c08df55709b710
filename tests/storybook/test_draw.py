"""The storybook's pictures: deterministic, and every fact of a scene visible in the pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from captune.storybook.backgrounds import BACKGROUNDS as PAINTED
from captune.storybook.draw import SIZES, clear_caches, draw
from captune.storybook.palette import PALETTE
from captune.storybook.things import KINDS as DRAWN
from captune.storybook.world import BACKGROUNDS, COLOURS, KINDS, Scene, Thing, sample_prior
from captune.storybook.world import SIZES as SIZE_NAMES

VARIANTS = [(kind, subkind) for kind, subkinds in KINDS.items() for subkind in (subkinds or (None,))]


def picture(
    kind: str, subkind: str | None, colour: str, size: str = "big", background: str = "meadow", side: int = 64
) -> np.ndarray:
    """One thing in the middle of the picture: (side, side, 3) float."""
    thing = Thing(kind, subkind, colour, size, 0.5, 0.5)
    return np.asarray(draw(Scene(background, 3, (thing,)), side), dtype=np.float64)


def bare(background: str = "meadow") -> np.ndarray:
    return np.asarray(draw(Scene(background, 3, ())), dtype=np.float64)


def test_everything_in_the_world_is_drawn() -> None:
    assert set(DRAWN) == set(KINDS)
    assert set(PAINTED) == set(BACKGROUNDS)
    assert set(PALETTE) == set(COLOURS)
    assert set(SIZES) == set(SIZE_NAMES)


@pytest.mark.parametrize("side", [64, 96, 130])
def test_mode_and_size(side: int) -> None:
    image = draw(sample_prior(random.Random(0)), side)
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (side, side))


def test_same_scene_same_bytes_with_and_without_caches() -> None:
    rng = random.Random(7)
    scenes = [sample_prior(rng) for _ in range(12)]
    first = [draw(scene).tobytes() for scene in scenes]
    assert [draw(scene).tobytes() for scene in reversed(scenes)] == first[::-1]
    clear_caches()
    assert [draw(scene).tobytes() for scene in scenes] == first


def test_drawing_does_not_stain_the_kept_ground() -> None:
    before = bare()
    picture("cat", None, "black")
    assert np.array_equal(bare(), before)


@pytest.mark.parametrize("size", SIZE_NAMES)
@pytest.mark.parametrize(("kind", "subkind"), VARIANTS)
def test_body_has_its_own_colour(kind: str, subkind: str | None, size: str) -> None:
    stack = np.stack([picture(kind, subkind, colour, size) for colour in COLOURS])
    body = stack.std(axis=0).mean(axis=-1) > 40  # pixels that follow the colour; contours and neutral parts do not
    thing = np.abs(stack - bare()).max(axis=-1).min(axis=0) > 12
    assert body.sum() > 0.25 * thing.sum(), "too little of the thing shows its colour"
    palette = np.array([PALETTE[colour] for colour in COLOURS], dtype=np.float64)
    for colour, pixels in zip(COLOURS, stack, strict=True):
        median = np.median(pixels[body], axis=0)
        assert COLOURS[np.argmin(np.linalg.norm(palette - median, axis=1))] == colour


@pytest.mark.parametrize("size", SIZE_NAMES)
@pytest.mark.parametrize("kind", [kind for kind, subkinds in KINDS.items() if subkinds])
def test_subkinds_look_different(kind: str, size: str) -> None:
    for colour in COLOURS:
        one, other = (picture(kind, subkind, colour, size) for subkind in KINDS[kind])
        changed = np.abs(one - other).max(axis=-1) > 40
        assert changed.sum() >= 12, f"only {changed.sum()} pixels tell {colour} {kind}s apart"


@pytest.mark.parametrize(("kind", "subkind"), VARIANTS)
def test_big_is_much_larger_than_small(kind: str, subkind: str | None) -> None:
    ground = bare()
    extents = []
    for size in ("big", "small"):
        rows, columns = np.nonzero(np.abs(picture(kind, subkind, "black", size) - ground).max(axis=-1) > 60)
        extents.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    assert 0.36 <= extents[0] / 64 <= 0.52
    assert 1.35 <= extents[0] / extents[1] <= 1.9


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_stands_out_on_every_background(background: str, colour: str) -> None:
    drawn = picture("cup", None, colour, "small", background)
    apart = np.abs(drawn - bare(background)).max(axis=-1) > 40
    assert apart.sum() >= 60


def test_backgrounds_differ_and_vary() -> None:
    means = {name: np.mean([np.asarray(draw(Scene(name, v, ()))) for v in range(16)], axis=0) for name in BACKGROUNDS}
    for name in BACKGROUNDS:
        assert len({draw(Scene(name, variation, ())).tobytes() for variation in range(40)}) == 40
        for variation in range(16, 40):
            image = np.asarray(draw(Scene(name, variation, ())), dtype=np.float64)
            nearest = min(means, key=lambda other: float(np.abs(image - means[other]).mean()))
            assert nearest == name


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (Thing("dragon", None, "red", "big", 0.5, 0.5), "dragon"),
        (Thing("cat", None, "pink", "big", 0.5, 0.5), "pink"),
        (Thing("cat", "striped", "red", "big", 0.5, 0.5), "striped"),
        (Thing("fish", None, "red", "big", 0.5, 0.5), "striped"),
        (Thing("cat", None, "red", "huge", 0.5, 0.5), "huge"),
    ],
)
def test_what_is_not_in_the_world_is_refused(thing: Thing, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw(Scene("meadow", 0, (thing,)))


def test_unknown_background_is_refused() -> None:
    with pytest.raises(ValueError, match="moon"):
        draw(Scene("moon", 0, ()))
