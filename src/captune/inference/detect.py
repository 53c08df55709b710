"""The job behind ``captune detect``: the objects of many images into a file, made and resumed as captions are.

    {"image_id": "a.jpg", "size": [640, 480], "objects": [{"label": "dog", "score": 0.81, "box": [3.2, 10, 90.1, 80]}]}

a line an image, the likeliest object first; a box is x0, y0, x1, y1 in pixels of the image of that size (upright, and
smaller than the file's where that has more than 33 million pixels). Companions, batches, bad images and kills:
`captune.inference.job`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.data import load_images
from captune.data.lines import OBJECTS
from captune.errors import SettingError
from captune.inference.job import CaptionReport, caption_source
from captune.models.detectors import Detector, check_detector, load_detector
from captune.models.detectors.base import DEFAULT_THRESHOLD
from captune.utils.files import is_stream, output_path


class _Search:
    """A detector in the place of a captioner: what it makes of an image is a line's columns."""

    kind = OBJECTS

    def __init__(self, detector: Detector) -> None:
        self.detector, self.name = detector, detector.name
        self.classes, self.weights = detector.classes, detector.digest

    def generate(self, images: Sequence[Any], *, threshold: float, nms: float) -> list[dict[str, Any]]:
        found = self.detector.detect(images, threshold=threshold, nms=nms)
        return [{"size": list(one.size), "objects": one.objects()} for one in found]


def detect_to_file(
    model: str | Path,
    source: str,
    output: str | Path,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    nms: float | None = None,
    device: str | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> CaptionReport:
    """Find the objects of every image of a source; resumes where an earlier run stopped.

    Args:
        model: an .onnx file, a folder of transformers, or a hub name.
        source: the images.
        output: the file of JSON lines, or ``-`` for standard output.
        threshold: objects that score less are left out, 0 to 1.
        nms: of two boxes of a class that overlap (IoU) more, the weaker one is left out; 1: none is; None: the
            detector's own: .45 for YOLO, 1 for those that are trained to give each object once.
        device: default: the best there is, for ONNX the CPU.
        batch_size: images at a time.
        limit: use the first N images.
        overwrite: replace the file instead of resuming it.
        progress: show a bar.

    Raises:
        SettingError: a setting is out of range.
        DetectorError: the detector cannot be loaded.
        SourceError: the source cannot be read.
        CaptionFileError: the file was made with other settings.
    """
    for name, value in (("threshold", threshold), ("nms", nms)):
        if value is not None and not 0 <= value <= 1:
            raise SettingError(f"{name} must be from 0 to 1, not {value}")
    if not is_stream(output):
        output_path(output, ".jsonl", what="detections")
    check_detector(model)
    load_images(source, limit=1, decode=False, stream=True, references=False)
    detector = load_detector(model, device=device)
    return caption_source(
        _Search(detector),
        source,
        output,
        format="jsonl",
        batch_size=batch_size,
        limit=limit,
        resume=not overwrite,
        progress=progress,
        threshold=threshold,
        nms=detector.nms if nms is None else nms,
    )
