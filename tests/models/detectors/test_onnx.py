"""Every layout of an ONNX detector against an implementation of its own here; what is not understood is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto
from tiny_detectors import cells, save_onnx, save_yolox

from captune.errors import DetectorError, SettingError
from captune.models.detectors import check_detector, load_detector
from captune.models.detectors.onnx import DEVIATION, MEAN, OnnxDetector, decode_grid

NAMES = {"names": "{0: 'cat', 1: 'dog'}"}
WIDE = Image.new("RGB", (200, 100), (10, 200, 30))  # at 64 pixels: 64 x 32


def yolox_by_hand(rows: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cell by cell, as the paper says it: centre = (cell + offset) * stride, side = exp(log side) * stride."""
    made, number = [], 0
    for stride in (8, 16, 32):
        for line in range(height // stride):
            for place in range(width // stride):
                x, y, w, h = rows[number, :4]
                made.append([(place + x) * stride, (line + y) * stride, math.exp(w) * stride, math.exp(h) * stride])
                number += 1
    assert number == len(rows)
    return np.array(made)


def test_yolox_is_decoded_as_by_hand() -> None:
    rows = np.random.default_rng(0).normal(size=(cells((96, 64)), 7))
    made = decode_grid(rows, (96, 64))
    np.testing.assert_allclose(made[:, :4], yolox_by_hand(rows, 96, 64), rtol=1e-12)
    np.testing.assert_array_equal(made[:, 4:], rows[:, 4:])


def test_yolox_finds_boxes_in_the_images_own_pixels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # cell 9 is the second of the second line of 8 x 8: its centre at (1.5 * 8, 1.5 * 8), sides of 16
    boxes = {9: (16, 0.9, 0.5, 0.5, math.log(2), math.log(2)), 10: (16, 0.8, -0.4, 0.5, math.log(2), math.log(2)),
             11: (0, 0.4, 0.5, 0.5, 0, 0)}  # fmt: skip
    with caplog.at_level(logging.WARNING):
        detector = load_detector(save_yolox(tmp_path / "tiny.onnx", boxes))
    assert "taken for COCO's" in caplog.text and detector.classes[16] == "dog" and detector.nms == 0.45
    [found] = detector.detect([WIDE], threshold=0.3)
    scale = 64 / 200  # the image is at the top left
    np.testing.assert_allclose(found.boxes[0], np.array([4, 4, 20, 20]) / scale, rtol=1e-6)
    assert found.labels == ("dog", "person") and found.size == (200, 100)  # the second dog overlaps by more than .45
    [all_of_them] = detector.detect([WIDE], threshold=0.3, nms=1.0)
    assert all_of_them.labels == ("dog", "dog", "person")
    assert detector.detect([WIDE], threshold=0.85)[0].labels == ("dog",)
    assert detector.detect([], threshold=0.3) == []


def test_yolox_that_decodes_by_itself_is_not_decoded_again(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(cells(), 85)) * 0.1
    rows[:, 4:] = np.abs(rows[:, 4:])
    raw = load_detector(save_onnx(tmp_path / "raw.onnx", {"output": rows}))
    done = load_detector(save_onnx(tmp_path / "done.onnx", {"output": decode_grid(rows, (64, 64))}))
    assert not raw.layout.decoded and done.layout.decoded
    one, other = (detector.detect([WIDE], threshold=0.02)[0] for detector in (raw, done))
    assert one.labels == other.labels and len(one.labels) > 5
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


def test_what_the_models_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YOLOX: BGR from 0 to 255, at the top left; YOLOv5 and v8: RGB from 0 to 1, in the middle; DETR: stretched."""
    seen: list[np.ndarray] = []
    real = OnnxDetector._run
    monkeypatch.setattr(OnnxDetector, "_run", lambda self, pixels: seen.append(pixels) or real(self, pixels))

    def given(path: Path) -> np.ndarray:
        load_detector(path).detect([WIDE], threshold=0.5)
        return seen[-1][0]

    pixels = given(save_yolox(tmp_path / "x.onnx", {}))
    assert pixels[:, 10, 10].tolist() == [30, 200, 10] and pixels[:, 40, 10].tolist() == [114] * 3
    pixels = given(save_onnx(tmp_path / "v8.onnx", {"output0": np.zeros((6, cells()))}, metadata=NAMES))
    np.testing.assert_allclose(pixels[:, 20, 10] * 255, [10, 200, 30], rtol=1e-5)
    np.testing.assert_allclose(pixels[:, [5, 60], 10] * 255, 114, rtol=1e-5)  # grey above and below
    detr = {"logits": np.full((5, 81), -1.0), "pred_boxes": np.zeros((5, 4))}
    pixels = given(save_onnx(tmp_path / "detr.onnx", detr))
    expected = (np.array([10, 200, 30]) / 255 - MEAN) / DEVIATION
    np.testing.assert_allclose(pixels[:, 5, 10], expected, rtol=1e-4)


@pytest.mark.parametrize("layout", ["v5", "v8", "v10"])
def test_yolos_later_layouts(tmp_path: Path, layout: str) -> None:
    count = cells()
    if layout == "v5":
        rows = np.zeros((3 * count, 7))
        rows[100] = 32, 32, 20, 10, 0.8, 0.1, 1.0
    elif layout == "v8":
        rows = np.zeros((6, count))
        rows[:, 50] = 32, 32, 20, 10, 0.1, 0.8
    else:
        rows = np.zeros((30, 6))
        rows[3] = 22, 27, 42, 37, 0.8, 1
    detector = load_detector(save_onnx(tmp_path / "tiny.onnx", {"output0": rows}, metadata=NAMES))
    [found] = detector.detect([WIDE], threshold=0.5)
    assert found.labels == ("dog",) and found.scores == pytest.approx([0.8])
    # the image is 64 x 32 in the middle of 64 x 64: 16 pixels above
    np.testing.assert_allclose(found.boxes[0], np.array([22, 11, 42, 21]) / (64 / 200), rtol=1e-6)
    assert detector.nms == (1.0 if layout == "v10" else 0.45)


@pytest.mark.parametrize("kind", ["DETR", "RT-DETR"])
def test_detr_answers_as_its_image_processor_does(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    rng = np.random.default_rng(0)
    names = ["cat", "dog", "cow"]
    logits = rng.normal(size=(7, 4 if kind == "DETR" else 3)).astype(np.float32) * 3
    boxes = rng.uniform(0.3, 0.5, size=(7, 4)).astype(np.float32)
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    outputs = {"last_hidden_state": np.zeros((7, 9)), "pred_boxes": boxes, "logits": logits}
    detector = load_detector(save_onnx(tmp_path / "tiny.onnx", outputs, inputs=("pixel_values",)))
    assert detector.layout.name == kind and detector.nms == 1.0
    [found] = detector.detect([WIDE], threshold=0.4)

    class Outputs:
        pass

    made: Any = Outputs()
    made.logits, made.pred_boxes = torch.tensor(logits)[None], torch.tensor(boxes)[None]
    processor = DetrImageProcessorPil() if kind == "DETR" else RTDetrImageProcessorPil()
    [theirs] = processor.post_process_object_detection(made, threshold=0.4, target_sizes=[(100, 200)])
    order = np.argsort(-theirs["scores"].numpy(), kind="stable")
    assert len(order) > 3 and found.labels == tuple(names[i] for i in theirs["labels"].numpy()[order])
    np.testing.assert_allclose(found.scores, theirs["scores"].numpy()[order], rtol=1e-5)
    inside = np.clip(theirs["boxes"].numpy()[order], 0, [200, 100, 200, 100])
    np.testing.assert_allclose(found.boxes, inside, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3, "batch"])
def test_a_batch_says_what_its_images_say_alone(tmp_path: Path, batch: Any) -> None:
    detr = {"logits": np.eye(5, 3) * 4, "pred_boxes": np.full((5, 4), 0.4)}
    (tmp_path / "labels.txt").write_text("cat\ndog\ncow\n")
    path = save_onnx(tmp_path / "tiny.onnx", detr, batch=batch, weights={"logits": 1.0})
    images = [Image.new("RGB", (40 + 9 * n, 30), (n * 60, n * 60, n * 60)) for n in range(5)]
    detector = load_detector(path)
    together = detector.detect(images, threshold=0.3)
    alone = [detector.detect([image], threshold=0.3)[0] for image in images]
    assert [one.objects() for one in together] == [one.objects() for one in alone]
    assert len({one.scores.tobytes() for one in together}) == 5  # each is of its own image


def test_inputs_of_other_kinds(tmp_path: Path) -> None:
    """Channels last, half precision, a size that the file leaves open (metadata or 640)."""
    rows = np.zeros((6, cells()))
    rows[:, 50] = 32, 32, 20, 10, 0.1, 0.8
    for number, options in enumerate((
        {"last": True}, {"kind": TensorProto.FLOAT16}, {"size": ("w", "h"), "metadata": NAMES | {"imgsz": "[64, 64]"}},
    )):  # fmt: skip
        path = save_onnx(tmp_path / f"{number}.onnx", {"output0": rows}, **{"metadata": NAMES, **options})
        assert load_detector(path).detect([WIDE], threshold=0.5)[0].labels == ("dog",)
    rows = np.zeros((6, cells((640, 640))))
    path = save_onnx(tmp_path / "open.onnx", {"output0": rows}, size=("w", "h"), metadata=NAMES)
    assert load_detector(path).size == (640, 640)


def test_the_image_processor_beside_the_file_prepares_images(tmp_path: Path) -> None:
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    folder = tmp_path / "onnx"
    folder.mkdir()
    RTDetrImageProcessorPil(size={"height": 32, "width": 48}).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    detr = {"logits": np.array([[0.0, 3.0]]), "pred_boxes": np.full((1, 4), 0.5)}
    path = save_onnx(folder / "model.onnx", detr, size=("w", "h"), batch="n")
    detector = load_detector(path)
    assert detector.names == ("cat", "dog") and detector.layout.name == "RT-DETR"
    assert detector._prepare(WIDE, detector.layout).pixels.shape == (3, 32, 48)
    assert detector.detect([WIDE], threshold=0.5)[0].labels == ("dog",)
    fixed = save_onnx(folder / "fixed.onnx", detr, size=(64, 64))
    with pytest.raises(DetectorError, match=r"takes 64 x 64 pixels, and its preprocessor_config.json makes 48 x 32"):
        load_detector(fixed)


def test_the_digest_is_of_weights_outside_of_the_file_too(tmp_path: Path) -> None:
    model = onnx.load(save_onnx(tmp_path / "whole.onnx", {"output0": np.zeros((6, cells()))}, metadata=NAMES))
    path = tmp_path / "y.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="y.data", size_threshold=64)
    before = load_detector(path).digest
    assert (tmp_path / "y.data").stat().st_size and load_detector(path).digest == before
    data = bytearray((tmp_path / "y.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "y.data").write_bytes(data)
    assert load_detector(path).digest != before


def test_the_digest_changes_with_what_decides(tmp_path: Path) -> None:
    boxes = {9: (1, 0.9, 0, 0, 0, 0)}
    one = save_yolox(tmp_path / "a.onnx", boxes, 2, metadata={"names": "['cat', 'dog']"})
    other = save_yolox(tmp_path / "b.onnx", boxes, 2, metadata={"names": "['cat', 'cow']"})
    again = save_yolox(tmp_path / "c.onnx", boxes, 2, metadata={"names": "['cat', 'dog']"})
    digests = [load_detector(path).digest for path in (one, other, again)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("outputs", "options", "said"),
    [
        ({"output": np.zeros((7, 9))}, {}, r"its outputs are output \(1, 7, 9\), which is not how YOLOX \(84 rows\)"),
        ({"a": np.zeros((84, 85)), "b": np.zeros((3, 9))}, {}, r"outputs are a \(1, 84, 85\), b \(1, 3, 9\)"),
        ({"output": np.zeros((84, 12))}, {}, r"its 7 classes have no names; write them into .*tiny.txt, one a line"),
        ({"output": np.zeros((84, 12))}, {"metadata": {"names": "['a']"}}, "7 classes, and its metadata names 1"),
        ({"output": np.zeros((84, 12))}, {"metadata": {"names": "{0: "}}, "the names in its metadata cannot be read"),
        ({"output": np.zeros((84, 85))}, {"inputs": ("images", "sizes")}, r"its inputs are images \(1, 3, 64, 64\)"),
        ({"output": np.zeros((84, 85))}, {"kind": TensorProto.UINT8}, "tensor.uint8.*, not one batch of images"),
        ({"output": np.zeros((5, 6))}, {}, "classes have no names"),
        ({"output": np.full((300, 6), 0.3)}, {"metadata": NAMES}, r"YOLOv10 \(6 columns, the last a class\)"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(tmp_path: Path, outputs: Any, options: Any, said: str) -> None:
    with pytest.raises(DetectorError, match=said):
        load_detector(save_onnx(tmp_path / "tiny.onnx", outputs, **options))


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (  # YOLO-NAS, PP-YOLOE: boxes in pixels
            {"boxes": np.tile([10.0, 10, 50, 50], (84, 1)), "scores": np.full((84, 80), 0.1)},
            "DETR's shapes, but hold boxes from 10 to 50 for a blank image, which are pixels",
        ),
        (  # SSD: after the softmax, the background first
            {"boxes": np.full((84, 4), 0.4), "scores": np.eye(84, 81) * 0.9},
            "hold scores from 0 to 0.9 for a blank image, which are probabilities.*; known are .* RT-DETR with logits",
        ),
        (  # YOLOv6
            {"outputs": np.concatenate([np.full((84, 4), 20.0), np.ones((84, 1)), np.zeros((84, 80))], axis=1)},
            "YOLOX's shape, but objectness is 1 all over a blank image, as YOLOv6 gives it; known are YOLOX",
        ),
        ({"boxes": np.zeros((0, 4)), "scores": np.zeros((0, 80))}, r"boxes \(1, 0, 4\), scores \(1, 0, 80\), which is"),
    ],
)  # fmt: skip
def test_other_architectures_of_known_shapes_are_refused(tmp_path: Path, outputs: Any, said: str) -> None:
    with pytest.raises(DetectorError, match=said):
        load_detector(save_onnx(tmp_path / "tiny.onnx", outputs))


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = save_yolox(tmp_path / "tiny.onnx", {3: (0, float("nan"), 0, 0, 0, 0)})
    with pytest.raises(DetectorError, match="values that are not finite"):
        load_detector(path).detect([WIDE], threshold=0.5)
    rows = np.zeros((5, 6))
    rows[2] = 0, 0, 9, 9, 0.9, 7
    path = save_onnx(tmp_path / "end.onnx", {"o": rows}, metadata={"names": "['cat']"})
    with pytest.raises(DetectorError, match="answers with class 7, and only 1 classes have names"):
        load_detector(path).detect([WIDE], threshold=0.5)


def test_the_number_of_a_device_reaches_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    path, session, given = save_yolox(tmp_path / "tiny.onnx", {}), onnxruntime.InferenceSession, []

    def begin(path: str, options: Any, providers: list[Any]) -> Any:
        given.append(providers)
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", begin)
    for device in ("cuda", "cuda:1"):
        load_detector(path, device=device)
    assert given == [["CUDAExecutionProvider"], [("CUDAExecutionProvider", {"device_id": "1"})]]


def test_what_is_no_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(DetectorError, match="cannot be loaded by onnxruntime"):
        load_detector(tmp_path / "bad.onnx")
    good = save_yolox(tmp_path / "tiny.onnx", {})
    with pytest.raises(SettingError, match="cannot run tiny.onnx on mps here"):
        load_detector(good, device="mps")
    for name, said in (
        (tmp_path / "none.onnx", "there is no detector"),
        (tmp_path, "is a folder: name the ONNX file in it, such as"),
        (tmp_path / "found.jsonl", "is no detector"),
        ("./nothing/here", "detector folder './nothing/here' does not exist"),
    ):
        with pytest.raises(DetectorError, match=said):
            check_detector(name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DetectorError, match=r"needs onnxruntime: pip install 'captune\[detect\]'"):
        check_detector(good)
