"""Tiny detectors made in code: ONNX files whose outputs depend on the image, and models of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_onnx(
    path: Path,
    outputs: Mapping[str, np.ndarray],
    *,
    size: tuple[int | str, int | str] = (64, 64),
    batch: int | str = 1,
    metadata: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    inputs: Sequence[str] = ("images",),
    last: bool = False,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Save a model with outputs of (rows, columns) each: what is given, plus the image's mean times a weight.

    Args:
        path: the file.
        outputs: of one image, by name.
        size: width and height of the input; a text: left open.
        batch: of the input; a text: left open.
        metadata: of the file.
        weights: what the mean of the image's values is multiplied with, by output; default: 0.
        inputs: the names of the inputs; all but the first are not read.
        last: channels last.
        kind: of the input.
    """
    shape = [batch, size[1], size[0], 3] if last else [batch, 3, size[1], size[0]]
    nodes = [helper.make_node("Cast", [inputs[0]], ["as float"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("ReduceMean", ["as float", "axes"], ["mean"], keepdims=0))
    kept = [numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")]
    kept.append(numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "three"))
    nodes.append(helper.make_node("Reshape", ["mean", "three"], ["means"]))  # (N, 1, 1)
    for name, values in outputs.items():
        kept.append(numpy_helper.from_array(np.asarray(values, np.float32)[None], f"{name} values"))
        kept.append(numpy_helper.from_array(np.float32((weights or {}).get(name, 0.0)), f"{name} weight"))
        nodes.append(helper.make_node("Mul", ["means", f"{name} weight"], [f"{name} change"]))
        nodes.append(helper.make_node("Add", [f"{name} values", f"{name} change"], [name]))
    given = [helper.make_tensor_value_info(inputs[0], kind, shape)]
    given += [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, 2]) for name in inputs[1:]]
    made = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *np.shape(v)]) for name, v in outputs.items()
    ]
    graph = helper.make_graph(nodes, "tiny", given, made, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, str(path))
    return path


def cells(size: tuple[int, int] = (64, 64)) -> int:
    """How many rows YOLOX has."""
    return sum((size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32))


def save_yolox(path: Path, boxes: Mapping[int, Sequence[float]], classes: int = 80, **options: object) -> Path:
    """Save a YOLOX whose cell NUMBER of 64 x 64 pixels holds (class, score, x, y, log w, log h); see `save_onnx`."""
    rows = np.zeros((cells(), 5 + classes), np.float32)
    for number, (label, score, *box) in boxes.items():
        rows[number, :4], rows[number, 4], rows[number, 5 + int(label)] = box, score, 1.0
    return save_onnx(path, {"output": rows}, **options)  # type: ignore[arg-type]


def save_yolos(folder: Path, labels: Sequence[str] = ("cat", "dog", "N/A", "sofa")) -> Path:
    """Save a YOLOS of 32 x 32 pixels and random weights, with its image processor."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=8, num_detection_tokens=6, id2label=dict(enumerate(labels)), initializer_range=1.0,
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    torch.nn.init.normal_(model.vit.embeddings.detection_tokens)  # zeros otherwise, and all queries answer alike
    model.bbox_predictor.layers[-1].weight.data *= 0.1  # boxes of some size, inside the image
    model.class_labels_classifier.layers[-1].weight.data *= 0.1  # scores that are not all 1
    model.save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 32}, do_pad=False).save_pretrained(folder)
    return folder
