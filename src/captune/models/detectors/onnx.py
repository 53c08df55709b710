"""Detectors in ONNX files, run by onnxruntime: YOLOX, YOLOv5 to v11 and DETR's kin, known by their outputs' shapes.

With inputs of W x H pixels, G = WH/8^2 + WH/16^2 + WH/32^2 cells, C classes and Q queries:

| layout | outputs | a row | image |
|---|---|---|---|
| YOLOX | (N, G, 5 + C) | x, y, log w, log h in cells, or in pixels; objectness, classes | BGR, 0 to 255, top left |
| YOLOv5 | (N, 3G, 5 + C) | x, y, w, h in pixels, objectness, classes | RGB, 0 to 1, centred |
| YOLOv8 | (N, 4 + C, G) | x, y, w, h in pixels, classes | RGB, 0 to 1, centred |
| YOLOv10 | (N, Q, 6) | x0, y0, x1, y1 in pixels, score, class | RGB, 0 to 1, centred |
| DETR | (N, Q, C + 1) and (N, Q, 4) | softmax, the last class is "no object"; x, y, w, h from 0 to 1 | see below |
| RT-DETR | (N, Q, C) and (N, Q, 4) | sigmoid; x, y, w, h from 0 to 1 | see below |

x, y is a box's centre. YOLO's images keep their proportions and are filled up with grey. DETR's are prepared as the
preprocessor_config.json beside the file says; without one they are stretched to the input's size, RGB from 0 to 1, for
DETR normalised with ImageNet's mean and deviation.

Names of classes come from the file's metadata (`names`, as ultralytics writes them), from STEM.txt, labels.txt or
classes.txt beside it (a name a line), from the config.json beside it, or are COCO's where there are 80.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from captune.data.images import blank
from captune.errors import DetectorError, SettingError, first_line
from captune.models.detectors.base import COCO_NAMES, Detections, chosen
from captune.utils.files import read_file, read_json

logger = logging.getLogger(__name__)
STRIDES = (8, 16, 32)
GREY = 114  # what YOLO was trained to see around an image
SIZE = 640  # of an input whose size the file leaves open
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_DETR = ("DETR", "RT-DETR")
_KNOWN = "known are YOLOX, YOLOv5, v7 to v11, and DETR and RT-DETR with logits before the sigmoid and boxes from 0 to 1"
_LOCATION = re.compile(rb"\x0a\x08location\x12(.)", re.DOTALL)  # of weights outside; then their file's name, so long


def check(path: Path) -> None:
    """Raise DetectorError where the file, or onnxruntime, is not there."""
    if not path.is_file():
        raise DetectorError(f"there is no detector {path}: name an .onnx file, a model folder or a hub name")
    if importlib.util.find_spec("onnxruntime") is None:
        raise DetectorError(f"the detector {path.name} is an ONNX file, which needs onnxruntime: "
                            "pip install 'captune[detect]'")  # fmt: skip


class Layout(NamedTuple):
    """How a model's outputs are read.

    Attributes:
        name: of the table above.
        classes: how many; None: the outputs do not say.
        outputs: the places of what is read among the outputs: of the rows, or of scores and boxes.
        decoded: of YOLOX, whether boxes are in pixels.
    """

    name: str
    classes: int | None
    outputs: tuple[int, ...]
    decoded: bool = False


class _Prepared(NamedTuple):
    """An image as the model takes it, (3, H, W) float32, and what turns its boxes back: (x - left) / scale_x, ..."""

    pixels: np.ndarray
    scale: tuple[float, float]
    corner: tuple[int, int] = (0, 0)


class OnnxDetector:
    """A detector in an ONNX file.

    Args:
        path: the file.
        device: cpu (default), or cuda with onnxruntime-gpu.

    Raises:
        DetectorError: for a file that onnxruntime cannot read, inputs and outputs of no layout above
            (the message has their names and shapes), or outputs of such shapes with other numbers.
        SettingError: onnxruntime has no such device here.
    """

    def __init__(self, path: Path, *, device: str | None = None) -> None:
        import onnxruntime

        self.path, self.name = path, str(path)
        wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        kind, _, index = (device or "cpu").partition(":")
        provider, available = wanted.get(kind), onnxruntime.get_available_providers()
        if provider not in available:
            raise SettingError(f"onnxruntime cannot run {path.name} on {device} here (it has {', '.join(available)}): "
                               "leave the device out, or install onnxruntime-gpu")  # fmt: skip
        where = [(provider, {"device_id": index})] if index else [provider]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=where)
        except Exception as error:  # onnxruntime has classes of its own for each way in which a file is broken
            raise DetectorError(f"{path} cannot be loaded by onnxruntime: {first_line(error)}") from error
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self._read_inputs()
        self.processor = self._find_processor()
        outputs = self._run(np.stack([self._prepare(blank(), None).pixels] * (self.batch or 1)))
        self.layout = self._recognise(outputs)
        self.names = self._find_names(self.layout.classes)
        self.layout = self._settled(self.layout)
        self.classes = tuple(name for name in dict.fromkeys(self.names) if name != "N/A")
        self.nms = 1.0 if self.layout.name in (*_DETR, "YOLOv10") else 0.45
        logger.info("%s: read as %s, input %d x %d, %d classes", path, self.layout.name, *self.size, len(self.names))

    # -- what the file says -------------------------------------------------------------------------------------------

    def _read_inputs(self) -> None:
        inputs = {node.name: node for node in self.session.get_inputs()}
        images = [node for node in inputs.values() if len(node.shape) == 4 and node.type in _TYPES]
        others = set(inputs) - {"pixel_mask"} - {node.name for node in images}
        if len(images) != 1 or others:
            raise DetectorError(
                f"{self.path.name}: its inputs are {_shapes(inputs.values())}, not one batch of images of type float; "
                "export it without further inputs, and without its image processing"
            )
        self.input, self.masked = images[0], "pixel_mask" in inputs
        batch, *sides = self.input.shape
        self.last = sides[2] == 3 and sides[0] != 3  # channels
        height, width = sides[:2] if self.last else sides[1:]
        self.batch = batch if isinstance(batch, int) else None
        self.fixed = isinstance(height, int) and isinstance(width, int)
        if self.fixed:
            self.size = (width, height)
            return
        try:
            height, width = json.loads(self.metadata.get("imgsz", f"[{SIZE}, {SIZE}]"))
            self.size = (int(width), int(height))
        except (ValueError, TypeError) as error:
            raise DetectorError(f"{self.path.name}: imgsz in its metadata is no pair of sizes: {error}") from error

    def _find_processor(self) -> Any:
        """The image processor beside the file, or in the folder above it, as optimum lays them."""
        folder = self.path.parent
        for place in [folder, *([folder.parent] if folder.name == "onnx" else [])]:
            if (place / "preprocessor_config.json").is_file():
                from transformers import AutoImageProcessor

                try:
                    return AutoImageProcessor.from_pretrained(place, backend="pil")
                except (OSError, ValueError, KeyError, ImportError) as error:
                    raise DetectorError(f"{place / 'preprocessor_config.json'} cannot be used: {first_line(error)}") \
                        from error  # fmt: skip
        return None

    def _recognise(self, outputs: Sequence[np.ndarray]) -> Layout:
        """The layout, by the shapes of what the model says of a blank image."""
        rows = [place for place, array in enumerate(outputs) if array.ndim == 3]
        names = [node.name for node in self.session.get_outputs()]
        boxes = [place for place in rows if outputs[place].shape[2] == 4]
        if len(boxes) > 1:  # three classes and "no object" are as wide
            boxes = [place for place in boxes if "box" in names[place]]
        if len(boxes) == 1 and len(rows) > 1:
            queries = outputs[boxes[0]].shape[1]
            scores = [place for place in rows if place != boxes[0] and outputs[place].shape[1] == queries]
            named = [place for place in scores if "logits" in names[place]]
            if queries and (len(scores) == 1 or len(named) == 1):
                place = scores[0] if len(scores) == 1 else named[0]
                self._check_detr(outputs[place], outputs[boxes[0]])
                return Layout("DETR", outputs[place].shape[2], (place, boxes[0]))
        width, height = self.size
        cells = sum((width // stride) * (height // stride) for stride in STRIDES)
        if len(rows) == 1:
            first = outputs[rows[0]]
            _, number, wide = first.shape
            if number == cells and wide > 5:
                if (first[..., 4] == 1).all():
                    raise DetectorError(f"{self.path.name}: its outputs have YOLOX's shape, but objectness is 1 all "
                                        f"over a blank image, as YOLOv6 gives it; {_KNOWN}")  # fmt: skip
                middle = float(np.median(first[..., :2]))  # of all cells: half the image, or half a cell
                return Layout("YOLOX", wide - 5, (rows[0],), decoded=middle > width / 8)
            if number == 3 * cells and wide > 5:
                return Layout("YOLOv5", wide - 5, (rows[0],))
            if wide == cells and number > 4:
                return Layout("YOLOv8", number - 4, (rows[0],))
            if wide == 6 and (first[..., 5] == first[..., 5].round()).all():  # a class's number, no score of a class
                return Layout("YOLOv10", None, (rows[0],))
        said = ", ".join(f"{name} {tuple(array.shape)}" for name, array in zip(names, outputs, strict=True))
        raise DetectorError(
            f"{self.path.name}: with an input of {width} x {height} pixels its outputs are {said}, which is not how "
            f"YOLOX ({cells} rows), YOLOv5 ({3 * cells} rows), YOLOv8 ({cells} columns), YOLOv10 (6 columns, "
            "the last a class) or DETR (logits and boxes) answer"
        )

    def _check_detr(self, logits: np.ndarray, boxes: np.ndarray) -> None:
        """Raise DetectorError for what has DETR's shapes and other numbers, such as YOLO-NAS and SSD."""
        said = ""
        if boxes.min() < -1 or boxes.max() > 2:
            said = f"boxes from {boxes.min():g} to {boxes.max():g} for a blank image, which are pixels"
        elif logits.min() >= 0 and logits.max() <= 1:
            said = f"scores from {logits.min():g} to {logits.max():g} for a blank image, which are probabilities"
        if said:
            raise DetectorError(f"{self.path.name}: its outputs have DETR's shapes, but hold {said}, "
                                f"as YOLO-NAS, PP-YOLOE or SSD give them; {_KNOWN}")  # fmt: skip

    def _find_names(self, count: int | None) -> tuple[str, ...]:
        """The classes' names: as found, or COCO's if there are 80."""
        names, where = self._named()
        possible = (count, count - 1) if count and self.layout.name == "DETR" else (count,)
        if names is None:
            if len(COCO_NAMES) in possible:
                logger.warning("%s: its 80 classes have no names in the file; taken for COCO's", self.path)
                return COCO_NAMES
            what = "" if count is None else f"{count} "
            raise DetectorError(f"{self.path.name}: its {what}classes have no names; write them into "
                                f"{self.path.with_suffix('.txt')}, one a line")  # fmt: skip
        if count is not None and len(names) not in possible:
            raise DetectorError(f"{self.path.name}: its outputs have {count} classes, and {where} names {len(names)}")
        return names

    def _named(self) -> tuple[tuple[str, ...] | None, str]:
        if "names" in self.metadata:
            try:
                said = ast.literal_eval(self.metadata["names"])
                names = [said[number] for number in range(len(said))]
            except (ValueError, SyntaxError, KeyError, TypeError, RecursionError) as error:
                raise DetectorError(f"{self.path.name}: the names in its metadata cannot be read: {error}") from error
            return tuple(map(str, names)), "its metadata"
        for name in (f"{self.path.stem}.txt", "labels.txt", "classes.txt"):
            if (file := self.path.with_name(name)).is_file():
                lines = read_file(file, error=DetectorError).decode("utf-8", "replace").splitlines()
                return tuple(line.strip() for line in lines if line.strip()), str(file)
        for folder in (self.path.parent, self.path.parent.parent):
            if (folder / "config.json").is_file() and (folder == self.path.parent or self.path.parent.name == "onnx"):
                config = read_json(folder / "config.json", error=DetectorError)
                labels = config.get("id2label") if isinstance(config, dict) else None
                if isinstance(labels, dict) and sorted(map(str, labels)) == sorted(map(str, range(len(labels)))):
                    return tuple(str(labels[str(number)]) for number in range(len(labels))), str(folder / "config.json")
        return None, ""

    def _settled(self, layout: Layout) -> Layout:
        """DETR's kin differ in whether there is a class more than there are names: "no object"."""
        rt = layout.name == "DETR" and layout.classes == len(self.names)
        return layout._replace(name="RT-DETR") if rt else layout

    @cached_property
    def digest(self) -> str:
        """8 hex digits of the file and its external weights, the classes' names, and how images are prepared."""
        content = self.path.read_bytes()
        state = hashlib.sha256(hashlib.sha256(content).digest())
        for path in self._external(content):
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "sha256").digest())
        processor = None if self.processor is None else self.processor.to_dict()
        state.update(json.dumps([self.layout, self.names, self.size, processor], default=str, sort_keys=True).encode())
        return state.hexdigest()[:8]

    def _external(self, content: bytes) -> list[Path]:
        """The files of weights that lie outside of the model, as its tensors name them."""
        places = [(match.end(), match[1][0]) for match in _LOCATION.finditer(content)]
        names = {content[start : start + length].decode("utf-8", "replace") for start, length in places}
        return [path for name in sorted(names) if (path := self.path.parent / name).is_file()]

    # -- images in, boxes out ------------------------------------------------------------------------------------------

    def detect(self, images: Sequence[Any], *, threshold: float, nms: float | None = None) -> list[Detections]:
        """Find objects; see `captune.models.detectors.Detector`."""
        overlap = self.nms if nms is None else nms
        prepared = [self._prepare(image, self.layout) for image in images]
        found: list[Detections] = []
        size = self.batch or max(len(images), 1)
        for start in range(0, len(images), size):
            part = prepared[start : start + size]
            if len({one.pixels.shape for one in part}) > 1:  # of a processor that keeps proportions
                outputs = [self._run(one.pixels[None]) for one in part]
            else:
                filled = [*part, *[part[-1]] * (size - len(part) if self.batch else 0)]
                whole = self._run(np.stack([one.pixels for one in filled]))
                outputs = [[array[row : row + 1] for array in whole] for row in range(len(part))]
            for image, one, output in zip(images[start : start + size], part, outputs, strict=True):
                boxes, scores, classes = self._decode([output[place][0] for place in self.layout.outputs])
                if not np.isfinite(boxes).all() or not np.isfinite(scores).all():
                    raise DetectorError(
                        f"the detector {self.path.name} answers an image with values that are not finite"
                    )
                if self.layout.name in _DETR:
                    boxes = boxes * np.tile(image.size, 2)
                else:
                    boxes = (boxes - np.tile(one.corner, 2)) / np.tile(one.scale, 2)
                if len(classes) and int(classes.max()) >= len(self.names):
                    raise DetectorError(
                        f"the detector {self.path.name} answers with class {int(classes.max())}, and only "
                        f"{len(self.names)} classes have names"
                    )
                found.append(chosen(boxes, scores, classes, self.names, image.size, threshold=threshold, nms=overlap))
        return found

    def _run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """What the model says of (N, 3, H, W)."""
        given = {self.input.name: pixels.transpose(0, 2, 3, 1) if self.last else pixels}
        given[self.input.name] = np.ascontiguousarray(given[self.input.name].astype(_TYPES[self.input.type]))
        if self.masked:
            given["pixel_mask"] = np.ones((len(pixels), *pixels.shape[2:]), dtype=np.int64)
        try:
            return [array.astype(np.float32) for array in self.session.run(None, given)]
        except Exception as error:
            raise DetectorError(f"onnxruntime cannot run {self.path.name}: {first_line(error)}") from error

    def _prepare(self, image: Image.Image, layout: Layout | None) -> _Prepared:
        if self.processor is not None and (layout is None or layout.name in _DETR):
            pixels = np.asarray(self.processor(images=[image], return_tensors="np")["pixel_values"], np.float32)[0]
            if self.fixed and pixels.shape[1:] != self.size[::-1]:
                raise DetectorError(
                    f"{self.path.name} takes {self.size[0]} x {self.size[1]} pixels, and its preprocessor_config.json "
                    f"makes {pixels.shape[2]} x {pixels.shape[1]}"
                )
            return _Prepared(pixels, (1, 1))
        if layout is None or layout.name in _DETR:
            values = np.asarray(image.resize(self.size, Image.Resampling.BILINEAR), np.float32) / 255
            if layout is not None and layout.name == "DETR":
                values = (values - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
            return _Prepared(values.transpose(2, 0, 1), (1, 1))
        return _letterbox(image, self.size, bgr=layout.name == "YOLOX")

    def _decode(self, outputs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, x0, y0, x1, y1 in pixels of the input (of DETR: from 0 to 1), scores, and numbers of classes."""
        rows, layout = outputs[0].astype(np.float64), self.layout.name
        if layout in _DETR:
            return _decode_detr(rows, outputs[1].astype(np.float64), softmax=layout == "DETR")
        if layout == "YOLOv10":
            return rows[:, :4], rows[:, 4], rows[:, 5].round().astype(int)
        if layout == "YOLOv8":
            rows = rows.T
        if layout == "YOLOX" and not self.layout.decoded:
            rows = decode_grid(rows, self.size)
        classes = rows[:, 4 if layout == "YOLOv8" else 5 :]
        scores = classes.max(axis=1) * (1 if layout == "YOLOv8" else rows[:, 4])
        return corners(rows[:, :4]), scores, classes.argmax(axis=1)


def decode_grid(rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return YOLOX's rows with boxes in pixels: (offset + cell) * stride, exp(side) * stride (Ge et al., 2021).

    Args:
        rows: (G, 5 + C), of all cells of the three grids, line by line, the finest grid first.
        size: width and height of the input.
    """
    width, height = size
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[0 : height // stride, 0 : width // stride]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((x.size, 1), stride))
    scale = np.concatenate(strides)
    centres = (rows[:, :2] + np.concatenate(cells)) * scale
    return np.concatenate([centres, np.exp(rows[:, 2:4]) * scale, rows[:, 4:]], axis=1)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Return x0, y0, x1, y1 of boxes given by centre and sides, (N, 4)."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def _decode_detr(logits: np.ndarray, boxes: np.ndarray, *, softmax: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As transformers' image processors do: the likeliest class of each query, or the Q likeliest pairs of both."""
    if softmax:
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (values / values.sum(axis=1, keepdims=True))[:, :-1]
        return corners(boxes), scores.max(axis=1), scores.argmax(axis=1)
    scores = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    best = np.argsort(-scores.ravel(), kind="stable")[: len(boxes)]
    queries, classes = np.divmod(best, logits.shape[1])
    return corners(boxes)[queries], scores.ravel()[best], classes


def _letterbox(image: Image.Image, size: tuple[int, int], *, bgr: bool) -> _Prepared:
    """The image at its proportions, on grey: YOLOX's at the top left, the others' in the middle."""
    scale = min(size[0] / image.width, size[1] / image.height)
    rounded = int if bgr else partial(round)
    inner = (max(1, rounded(image.width * scale)), max(1, rounded(image.height * scale)))
    corner = (0, 0) if bgr else ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    canvas = Image.new("RGB", size, (GREY, GREY, GREY))
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
    values = np.asarray(canvas, np.float32)
    pixels = values[..., ::-1] if bgr else values / 255
    return _Prepared(pixels.transpose(2, 0, 1), (scale, scale), corner)


def _shapes(nodes: Any) -> str:
    return ", ".join(f"{node.name} {tuple(node.shape)} {node.type}" for node in nodes) or "none"
