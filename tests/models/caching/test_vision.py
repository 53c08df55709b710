"""The vision memo: what it shares, what it keeps, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from captune.errors import CaptionerError
from captune.models.caching import vision
from captune.models.captioner import Captioner


def test_the_memo_is_bounded_and_cleared(captioner: Captioner, images: list) -> None:
    with captioner.share_vision(max_images=2) as memo:
        captioner.image_features(images)  # more than fit: all served, the last two kept
        captioner.image_features(images[2:])
        assert (memo.evaluations, memo.images, memo.hits) == (1, 4, 2)
        captioner.image_features(images[:1])  # in; image 2 out
        captioner.image_features(images[3:])
        assert memo.evaluations == 2
        captioner.image_features([images[2]])
        assert memo.evaluations == 3
        memo.clear()
        captioner.image_features([images[2]])
        assert memo.evaluations == 4
    with pytest.raises(CaptionerError, match="at least 1"):
        captioner.share_vision(max_images=0)


def test_an_image_encoded_alone_has_the_same_features_in_any_company(captioner: Captioner, images: list) -> None:
    """To the bit; and as many are kept as there is room for, over batches."""
    with captioner.share_vision(max_images=1, alone=True) as memo:
        together = captioner.image_features(images)
        memo.begin_batch()
        assert torch.equal(captioner.image_features(images), together) and (memo.evaluations, memo.images) == (4, 4)
        memo.clear()
        apart = torch.cat([captioner.image_features([image]) for image in images])
        assert torch.equal(apart, together) and memo.images == 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "ROOM", 0)
        with captioner.share_vision(max_images=1, alone=True) as memo:
            captioner.image_features(images)
            captioner.image_features(images)
            assert memo.images == 7, "the last one was kept"
    with captioner.share_vision() as memo:
        captioner.image_features(images)
        memo.begin_batch()
        captioner.image_features(images)
        assert memo.images == 8


def test_a8_a_pass_that_was_killed_between_two_files_is_made_again_with_all_of_its_images(
    captioner: Captioner, images: list, tmp_path: Path
) -> None:
    """So that the image whose file is missing is encoded beside the same others, to the same bits."""

    def encoded(*rows: int) -> list[int]:
        with captioner.share_vision(keep=tmp_path) as memo:
            captioner.image_features([images[row] for row in rows])
            return [memo.evaluations, memo.images]

    assert encoded(0, 1) == [1, 2]
    first, second = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    kept = first.read_bytes(), second.read_bytes()
    second.unlink()
    assert encoded(0, 1) == [1, 2]
    assert (first.read_bytes(), second.read_bytes()) == kept


def test_the_memo_nests_and_goes(captioner: Captioner, images: list) -> None:
    inner = captioner.core.base_model
    with captioner.share_vision() as outer:
        captioner.image_features(images)
        with captioner.share_vision() as same:
            assert same is outer
            with pytest.raises(CaptionerError, match="tower=True"):
                captioner.share_vision(tower=True)
        captioner.image_features(images)
        assert outer.evaluations == 1 and "get_image_features" in vars(inner)
    assert "get_image_features" not in vars(inner)
    outer.remove()
    with captioner.share_vision() as fresh:
        captioner.image_features(images)
    assert fresh.evaluations == 1


def test_pixels_decide_not_objects(captioner: Captioner, images: list) -> None:
    with captioner.share_vision() as memo:
        captioner.image_features([images[0], images[0].copy()])
        assert memo.images == 1
        changed = images[0].copy()
        changed.putpixel((63, 63), (0, 0, 0) if images[0].getpixel((63, 63))[0] > 128 else (255, 255, 255))
        features = captioner.image_features([images[0], changed])
        assert memo.images == 2 and not torch.equal(features[0], features[1])


def test_padding_tiles_do_not_matter(tiny_folder) -> None:
    """The same image beside one with more tiles: encoded once, and its features are its own."""
    captioner = Captioner.load(tiny_folder("idefics3", split=True))
    small, large = tiny.picture(0, (64, 128)), tiny.picture(1, (64, 192))
    alone = captioner.image_features([small])
    with captioner.share_vision() as memo:
        assert torch.allclose(captioner.image_features([small, large])[0], alone[0], atol=1e-6)
        captioner.image_features([small])
        captioner.image_features([large])
        assert memo.evaluations == 1


def test_a_connector_of_an_adapter_is_not_taken_for_the_bases(captioner: Captioner, images: list) -> None:
    tiny.reconnected(captioner)
    with_adapter = captioner.image_features(images)
    with captioner.disable_adapter():
        base = captioner.image_features(images)
    assert not torch.allclose(with_adapter, base)
    with captioner.share_vision() as memo:
        for _ in range(2):
            assert torch.allclose(captioner.image_features(images), with_adapter)
            with captioner.disable_adapter():
                assert torch.allclose(captioner.image_features(images), base)
                with captioner.disable_adapter():
                    pass
                assert torch.allclose(captioner.image_features(images), base)  # still
        assert memo.evaluations == 2


@pytest.mark.parametrize("part", ["model.vision_model", "model.connector"])
def test_a_trainable_tower_is_refused(captioner: Captioner, images: list, part: str) -> None:
    next(captioner.core.get_submodule(part).parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match=rf"{part} has parameters that require a gradient.*[Ff]reeze"):
        captioner.share_vision()


def test_a_tower_that_starts_to_train_is_refused(captioner: Captioner, images: list) -> None:
    with captioner.share_vision():
        captioner.image_features(images[:1])
        captioner.core.model.vision_model.requires_grad_(True)
        with pytest.raises(ValueError, match="require a gradient"):
            captioner.image_features(images[1:2])


def test_features_made_in_inference_mode_serve_training(captioner: Captioner, images: list) -> None:
    tiny.taught(captioner)
    with captioner.share_vision() as memo:
        with torch.inference_mode():
            captioner.generate(images, max_new_tokens=2)
        batch = captioner.prepare(images, ["a"] * 4)
        captioner.model(**{k: v for k, v in batch.items() if k != "caption_mask"}).loss.backward()
        assert memo.evaluations == 1


def test_trl_encodes_each_image_once_per_step(captioner: Captioner, images: list, tmp_path: Path) -> None:
    """GRPO with 3 samples to an image, a KL term and gradient checkpointing: one evaluation of the tower a step."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    tiny.taught(captioner)
    calls: list[int] = []
    captioner.core.model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    data = datasets.Dataset.from_list(
        [{"prompt": captioner.conversation(), "image": image, "image_id": str(i)} for i, image in enumerate(images)]
    )
    rewarded: list[int] = []

    def reward(completions: list, image_id: list[str], **_: object) -> list[float]:
        assert all(isinstance(c[0]["content"], str) for c in completions)
        rewarded.append(len(set(image_id)))
        return [float(len(c[0]["content"])) for c in completions]

    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        num_generations=3,
        max_completion_length=6,
        max_steps=2,
        beta=0.1,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=captioner.model,
        reward_funcs=reward,
        args=config,
        train_dataset=data,
        processing_class=captioner.processor,
    )
    with captioner.share_vision() as memo:
        trainer.train()
        assert rewarded == [2, 2]
        assert memo.evaluations == len(calls) == 2 and memo.images == 4
