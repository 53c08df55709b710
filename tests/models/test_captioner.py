"""Batches and features, on a tiny Idefics3; test_families.py does the like for every family."""

from __future__ import annotations

import pytest
import tiny
import torch

from captune.errors import CaptionerError
from captune.models import image_inputs
from captune.models.captioner import Captioner


@pytest.mark.parametrize(
    "text", ["a red ball", "  spaces go ", "", "über, 红色 🎈 <PERSON>", "<image> <|im_end|> a\nb"]
)
def test_any_caption_round_trips(captioner: Captioner, images: list, text: str) -> None:
    """Text that looks like a special token stays text; the image's places are counted right all the same."""
    batch = captioner.prepare(images[:1], [text])
    ids = batch["input_ids"][0][batch["caption_mask"][0].bool()].tolist()
    assert captioner.decode([ids]) == [text.strip()]
    assert captioner.model(**{k: v for k, v in batch.items() if k != "caption_mask"}).loss.isfinite()


def test_an_image_is_preprocessed_once(captioner: Captioner, images: list, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    process = captioner.processor.image_processor.__class__.__call__

    def counted(self, images, *args, **kwargs):
        seen.append(len(images))
        return process(self, images, *args, **kwargs)

    order = [0, 1, 0, 2, 0]
    apart = [captioner.prepare([images[i]]) for i in order]
    monkeypatch.setattr(captioner.processor.image_processor.__class__, "__call__", counted)
    batch = captioner.prepare([images[i] for i in order])
    captioner.append(batch, ["a"] * 5)
    captioner.generate(batch, max_new_tokens=2)
    captioner.image_features(batch)
    assert seen == [3]
    for row, single in zip(batch["pixel_values"], apart, strict=True):
        assert torch.equal(row, single["pixel_values"][0])


def test_wrong_numbers_are_said(captioner: Captioner, images: list) -> None:
    with pytest.raises(CaptionerError, match="2 captions were given for 3 images"):
        captioner.prepare(images[:3], ["a", "b"])
    with pytest.raises(CaptionerError, match="no images"):
        captioner.prepare([])
    with pytest.raises(CaptionerError, match="without captions"):
        captioner.generate(captioner.prepare(images[:1], ["a"]))


def test_features_of_quarters(captioner: Captioner, images: list, tiny_folder) -> None:
    quarters, mean = (captioner.image_features(images, pool=how) for how in ("quarters", "mean"))
    assert torch.allclose(quarters.view(4, 4, -1).mean(1), mean, atol=1e-6)  # 4 image tokens
    tiles = Captioner.load(tiny_folder("idefics3", split=True))  # any number of tokens will do
    pictures = [tiny.picture(0), tiny.picture(1, (200, 64))]
    together = tiles.image_features(pictures, pool="quarters")
    assert together.shape == (2, 4 * tiles.image_features(pictures).shape[1])
    assert torch.allclose(together[1:], tiles.image_features(pictures[1:], pool="quarters"), atol=1e-5)


def test_quarters_need_four_tokens() -> None:
    with pytest.raises(CaptionerError, match="needs 4 tokens of each image, one has 3"):
        image_inputs.pool([torch.ones(8, 2), torch.ones(3, 2)], [1, 1], "quarters")


def test_quarters_are_those_of_the_picture_where_there_is_a_grid() -> None:
    grid = torch.arange(16.0).view(16, 1)  # 4 x 4, row by row
    assert image_inputs.quarters(grid).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert image_inputs.quarters(torch.arange(6.0).view(6, 1)).flatten().tolist() == [0.5, 2.5, 4.0, 5.0]
