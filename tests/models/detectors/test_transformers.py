"""A detector of transformers answers as its own image processor says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from captune.errors import DetectorError
from captune.models.detectors import load_detector

pytest.importorskip("onnx")  # tiny_detectors
from tiny_detectors import save_yolos

IMAGES = [tiny.picture(0), tiny.picture(1, (80, 50))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_yolos(tmp_path_factory.mktemp("yolos") / "model")


def test_it_answers_as_its_image_processor(folder: Path) -> None:
    detector = load_detector(folder, device="cpu")
    assert detector.classes == ("cat", "dog", "sofa") and detector.nms == 1.0
    found = detector.detect(IMAGES, threshold=0.3)
    assert sum(len(one.labels) for one in found) > 2
    with torch.inference_mode():
        outputs = detector.model(**detector.processor(images=IMAGES, return_tensors="pt"))
        theirs = detector.processor.post_process_object_detection(
            outputs, threshold=0.3, target_sizes=[(image.height, image.width) for image in IMAGES]
        )
    for image, one, other in zip(IMAGES, found, theirs, strict=True):
        order = np.argsort(-other["scores"].numpy(), kind="stable")
        assert one.size == image.size
        assert one.labels == tuple(detector.names[i] for i in other["labels"].numpy()[order])
        np.testing.assert_allclose(one.scores, other["scores"].numpy()[order], rtol=1e-6)
        inside = np.clip(other["boxes"].numpy()[order], 0, np.tile(image.size, 2))
        np.testing.assert_allclose(one.boxes, inside, rtol=1e-5, atol=1e-4)
    overlapping = detector.detect(IMAGES, threshold=0.0, nms=0.0)
    assert sum(len(one.labels) for one in overlapping) < 2 * 6
    assert detector.detect([], threshold=0.3) == []


def test_an_image_does_not_change_what_is_found_in_the_one_beside_it(folder: Path) -> None:
    """With a processor that keeps proportions and pads a batch, and a model that reads the padding."""
    detector = load_detector(folder, device="cpu")
    detector.processor = type(detector.processor)(size={"shortest_edge": 32, "longest_edge": 64})
    images = [tiny.picture(number, size) for number, size in enumerate([(40, 80), (80, 40), (30, 60), (50, 50)])]
    alone = [detector.detect([image], threshold=0.0)[0] for image in images]
    together = detector.detect(images, threshold=0.0)
    assert len({one.scores.tobytes() for one in alone}) == 4
    for image, one, other in zip(images, alone, together, strict=True):
        assert len(one.labels) == 6 and other.size == image.size and one.labels == other.labels
        np.testing.assert_allclose(other.scores, one.scores, rtol=1e-5)
        np.testing.assert_allclose(other.boxes, one.boxes, rtol=1e-4, atol=1e-3)


def test_the_same_model_as_an_onnx_file_answers_the_same(tmp_path: Path) -> None:
    """Exported as optimum lays it: onnx/model.onnx in the folder with its config and its image processor."""
    pytest.importorskip("onnxruntime")
    folder = save_yolos(tmp_path / "model", ("cat", "dog", "cow", "sofa"))
    detector = load_detector(folder, device="cpu")

    class Plain(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            made = detector.model(pixel_values)
            return made.logits, made.pred_boxes

    (folder / "onnx").mkdir()
    file, names = folder / "onnx" / "model.onnx", ["logits", "pred_boxes"]
    axes = {name: {0: "n"} for name in ("pixel_values", *names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(), (torch.zeros(1, 3, 32, 32),), str(file), input_names=["pixel_values"], output_names=names,
            dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
    exported = load_detector(file)
    assert exported.layout.name == "DETR" and exported.classes == detector.classes
    images = [*IMAGES, tiny.picture(2)]
    for one, other in zip(detector.detect(images, threshold=0.3), exported.detect(images, threshold=0.3), strict=True):
        assert len(one.labels) > 2 and len({tuple(box) for box in one.boxes.round(1).tolist()}) > 2
        assert one.labels == other.labels
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)


def test_the_digest_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    detector = load_detector(folder, device="cpu")
    before = detector.digest
    assert load_detector(folder, device="cpu").digest == before
    other = load_detector(folder, device="cpu")
    next(other.model.parameters()).data += 1
    assert other.digest != before


def test_what_cannot_be_loaded_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DetectorError, match=r"detector '.*' cannot be loaded"):
        load_detector(tmp_path)
    broken = load_detector(folder, device="cpu")
    torch.nn.init.constant_(broken.model.class_labels_classifier.layers[-1].bias, float("nan"))
    with pytest.raises(DetectorError, match="what detector .* says of an image"):
        broken.detect(IMAGES, threshold=0.3)
