"""Object detectors: what is to be seen in an image, and where; from an ONNX file or a model of transformers."""

from __future__ import annotations

from pathlib import Path

from captune.errors import DetectorError
from captune.models.detectors.base import Detections, Detector

__all__ = ["Detections", "Detector", "check_detector", "load_detector"]


def check_detector(name_or_path: str | Path) -> None:
    """Raise DetectorError where a detector, or what it runs with, is not on this machine; nothing heavy is imported."""
    name = str(name_or_path)
    if _is_onnx(name):
        from captune.models.detectors.onnx import check

        return check(Path(name).expanduser())
    if name.endswith((".json", ".jsonl")):
        raise DetectorError(f"{name} is no detector: name an .onnx file, a model folder or a hub name")
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file() and (files := sorted(folder.glob("*.onnx"))):
        raise DetectorError(f"{name} is a folder: name the ONNX file in it, such as {files[0]}")
    from captune.models import hub

    hub.check(name, what="detector", example="PekingU/rtdetr_r18vd", instead="an .onnx file", error=DetectorError)


def load_detector(name_or_path: str | Path, *, device: str | None = None) -> Detector:
    """Load a detector.

    Args:
        name_or_path: an .onnx file, a folder saved with `save_pretrained` (model and image processor), or a hub name.
        device: cpu, cuda ...; default: the best there is, for ONNX the CPU.

    Raises:
        DetectorError: says what is missing, or what in the model is not understood.
    """
    check_detector(name_or_path)
    if _is_onnx(str(name_or_path)):
        from captune.models.detectors.onnx import OnnxDetector

        return OnnxDetector(Path(name_or_path).expanduser(), device=device)
    from captune.models.detectors.transformers import TransformersDetector

    return TransformersDetector.load(name_or_path, device=device)


def _is_onnx(name: str) -> bool:
    return name.lower().endswith(".onnx") and not Path(name).expanduser().is_dir()
