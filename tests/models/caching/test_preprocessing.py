"""Equal images are preprocessed once, in every family, and come out as they do alone."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import tiny
import torch

from captune.models.caching.preprocessing import PreprocessingCache, RowCache
from captune.models.captioner import Captioner
from captune.models.families import FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"prefix_captioner"}))
def test_what_comes_out_is_the_same(tiny_folder, family: str) -> None:
    """Through the processor and through its chat template, as TRL calls both; equal pixels count, not objects."""
    captioner = Captioner.load(tiny_folder(family), device="cpu")
    first, second = tiny.picture(0), tiny.picture(1, (96, 64))
    images = [first, first.copy(), second, first]
    chats = [[{"role": "user", "content": [{"type": "image", "image": image}]}] for image in images]

    def call() -> tuple[dict, dict]:
        text = [captioner.prompt_text()] * 4
        batch = captioner.processor(text=text, images=[[i] for i in images], padding=True, return_tensors="pt")
        template = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        return batch, captioner.processor.apply_chat_template(conversation=chats, **template)

    plain = call()
    original = captioner.processor.image_processor
    with PreprocessingCache(captioner.processor) as shared:
        found = call()
    assert (shared.images, shared.asked) == (2, 8), "two images, once; the second call remembers them"
    assert captioner.processor.image_processor is original
    for mine, other in zip(found, plain, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            if name in ("input_ids", "attention_mask", "mm_token_type_ids") and not torch.is_tensor(mine[name]):
                assert mine[name] == other[name]
            else:
                assert np.array_equal(np.asarray(mine[name]), np.asarray(other[name])), name


def test_settings_and_images_are_remembered_together(captioner: Captioner, images: list) -> None:
    with PreprocessingCache(captioner.processor) as shared:
        plain = captioner.processor.image_processor([images[0]], return_tensors="pt")["pixel_values"]
        raw = captioner.processor.image_processor([images[0]], do_normalize=False, return_tensors="pt")["pixel_values"]
        other = captioner.processor.image_processor([images[1]], return_tensors="pt")["pixel_values"]
        assert shared.images == 3
    assert not torch.equal(plain, raw) and not torch.equal(plain, other)


def test_rows_are_decoded_once() -> None:
    dataset = datasets.Dataset.from_list([{"image": tiny.picture(i), "name": str(i)} for i in range(3)])
    rows = RowCache(dataset).__getitems__([2, 2, 0, 2])
    assert [row["name"] for row in rows] == ["2", "2", "0", "2"]
    assert rows[0]["image"] is rows[3]["image"] and rows[0] is not rows[1]
    assert len(RowCache(dataset)) == 3 and RowCache(dataset)[1]["name"] == "1"
