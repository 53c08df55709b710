"""Objects that a caption names against those that a detector finds; no label is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.data.images import upright_rgb
from captune.errors import ScorerError, SpecError
from captune.models.detectors import check_detector, load_detector
from captune.models.detectors.base import DEFAULT_THRESHOLD
from captune.scorers import Scorer, safe_ratio
from captune.scorers._support import ptb
from captune.scorers._support.detections import DetectionFile, Labels, read_objects, seen
from captune.scorers._support.images import digests
from captune.scorers._support.vocabulary import Vocabulary

if TYPE_CHECKING:
    from captune.models.detectors import Detector


class Detected(Scorer):
    """Precision, recall and F1 of the objects that a caption names, against those that a detector finds in its image.

    With N the COCO classes that the caption names, as `chair` reads them, and D those that the detector finds:

        precision = |N and D| / |N|      recall = |N and D| / |D|      detected = 2 |N and D| / (|N| + |D|)

    for a caption by itself, which is the reward, and with sums over the whole corpus in place of the sizes. What has
    nothing to divide by is 0: a caption that names no object scores 0, and an empty one always does; so does every
    caption of an image without detections, where nothing is known (`nothing_found` is the share of those). A caption
    that names no object adds nothing to the corpus's precision, and lowers its recall. Classes count once, however many
    objects there are.

        detected:yolox_nano.onnx            finds the objects itself: .onnx, a folder of transformers, a hub name
        detected:?detections=found.jsonl    a file of `captune detect`
        detected                            a column `objects` of the data: names, or {"label", "score"}

    Labels have a caption's synonyms ("sofa" is a couch), and are what their last words name (a dog bed is a bed, a
    pizza cutter no object); those that name no COCO class are left out and counted. What a detector cannot find by its
    list of labels is not held against a caption: of a detector of persons and cars, only these are judged. The
    detector's own faults are in the score: what it misses counts as invented. A list of words ("person dog") scores as
    a sentence does: as a reward, add one that reads the whole text.

    Args:
        argument: what the spec says.
        detector: a loaded detector, in place of the model that the argument names.
        device: where a model runs.
    """

    name = "detected"
    primary = "detected"
    higher_is_better: ClassVar = {"detected": True, "precision": True, "recall": True}
    labels: ClassVar = {
        "detected": "F1 with detections",
        "precision": "detected objects, precision",
        "recall": "detected objects, recall",
        "mentions": "objects mentioned",
        "nothing_found": "no object detected",
    }
    source = "captune; the objects are those of CHAIR (Rohrbach et al., EMNLP 2018)"
    cost = "one pass of the detector an image (YOLOX-nano: 34 ms), with a file 0.1 ms"
    required_columns: tuple[str, ...] = ("image",)  # with a file: image_id; without anything: objects
    positional = ("model",)
    usage = "detected:yolox_nano.onnx?threshold=0.3"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str, Field(description="the detector: an .onnx file, a folder of transformers, or a hub name")
        ] = ""
        detections: Annotated[str, Field(description="a file of captune detect, in place of a model")] = ""
        threshold: Annotated[
            float | None,
            Field(ge=0, le=1, description=f"objects that score less do not count; default: {DEFAULT_THRESHOLD} with a "
                                          "model, else all that is there"),
        ] = None  # fmt: skip

    def __init__(
        self, argument: str | None = None, *, detector: Detector | None = None, device: str | None = None
    ) -> None:
        self.settings = self.read(argument)
        model, detections = self.settings.model, self.settings.detections
        if model.endswith((".jsonl", ".json")):
            raise SpecError(f"scorer 'detected': {model} is no detector; a file of captune detect is named "
                            f"detected:?detections={model}")  # fmt: skip
        if detections and (model or detector is not None):
            raise SpecError("scorer 'detected': name a model or a file of detections, not both")
        self._loaded, self.device = detector, device
        self.by_model = bool(model) or detector is not None
        self.vocabulary = Vocabulary()
        self.file = DetectionFile(Path(detections).expanduser(), self.vocabulary.named) if detections else None
        self.required_columns = ("image",) if self.by_model else ("image_id",) if self.file else ("objects",)
        self.cached = self.by_model
        default = DEFAULT_THRESHOLD if self.by_model else 0.0
        self.threshold = default if self.settings.threshold is None else self.settings.threshold
        self._seen: dict[bytes, frozenset[str]] = {}  # by an image's pixels

    def check(self) -> None:
        """Raise ScorerError or DetectorError where what it runs on is missing."""
        if self.file is not None:
            self.file.check()
            kept, asked = self.file.settings[1], self.settings.threshold
            if kept is not None and asked is not None and asked < kept:
                raise ScorerError(
                    f"{self.file.path} holds objects that score {kept:g} or more, and threshold={asked:g} asks for "
                    f"others too: find them with captune detect --threshold {asked:g}"
                )
        elif self._loaded is None and self.by_model:
            check_detector(self.settings.model)

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Raise ScorerError where the file says nothing about an image."""
        if self.file is not None:
            self.check()
            for image_id in image_ids:
                self._of_image(self.file, image_id)

    @property
    def detector(self) -> Detector:
        """The detector, loaded when it is first asked for."""
        if self._loaded is None:
            self._loaded = load_detector(self.settings.model, device=self.device)
        return self._loaded

    @cached_property
    def names(self) -> Labels:
        """Labels in COCO's classes."""
        who = Path(self.detector.name).name if self.by_model else "the column objects"
        return Labels(self.vocabulary.named, who)

    @cached_property
    def judged(self) -> frozenset[str] | None:
        """The classes that the detector can find; None: all."""
        if self.file is not None:
            return self.file.classes
        return self.names.all(self.detector.classes) if self.by_model else None

    def rows(
        self,
        captions: Sequence[str],
        *,
        image: Sequence[Any] | None = None,
        image_id: Sequence[str] | None = None,
        objects: Sequence[Any] | None = None,
        **columns: Any,
    ) -> np.ndarray:
        """Return (N, 4): classes that are named and found, named, found, and 1 where none is found."""
        found: list[frozenset[str]]
        if self.by_model:
            assert image is not None
            found = self._look(image)
        elif self.file is not None:
            assert image_id is not None
            self.check()
            found = [self._of_image(self.file, key) for key in image_id]
        else:
            assert objects is not None
            read = [read_objects(one, f"scorer {self.name!r}, row {row}") for row, one in enumerate(objects, start=1)]
            self.names.all({label for one in read for label, _ in one})
            found = [seen(one, self.threshold, self.names) for one in read]
        rows = np.zeros((len(captions), 4))
        for row, (caption, there) in enumerate(zip(captions, found, strict=True)):
            named = set(self.vocabulary.mentions(caption))
            if self.judged is not None:
                named &= self.judged
            rows[row] = len(named & there), len(named), len(there), not there
        return rows

    def _look(self, images: Sequence[Any]) -> list[frozenset[str]]:
        """The classes found in each image. Each is looked at once and by itself, so that no other changes its score."""
        keys = digests(images)
        for row, key in enumerate(keys):
            if key not in self._seen:
                [one] = self.detector.detect([upright_rgb(images[row])], threshold=self.threshold)
                self._seen[key] = frozenset[str]().union(*map(self.names.classes, one.labels))
        return [self._seen[key] for key in keys]

    def _of_image(self, file: DetectionFile, image_id: str) -> frozenset[str]:
        found = file.of(image_id, self.threshold)
        if found is None:
            known = next(iter(file.found))
            raise ScorerError(f"scorer {self.name!r}: {file.path} says nothing about image {image_id!r}; it has "
                              f"{len(file.found)} images with ids like {known!r}")  # fmt: skip
        return found

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        hits, named, found = totals[..., 0], totals[..., 1], totals[..., 2]
        return {
            "detected": safe_ratio(2 * hits, named + found),
            "precision": safe_ratio(hits, named),
            "recall": safe_ratio(hits, found),
            "mentions": named / n,
            "nothing_found": totals[..., 3] / n,
        }

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): F1 of each caption by itself; 0 where nothing is named or nothing is found."""
        return safe_ratio(2 * rows[:, 0], rows[:, 1] + rows[:, 2])

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        threshold = f"{self.threshold:g}"
        if self.file is not None:
            self.file.check()
            by, kept = f"detections:{self.file.digest}", self.file.settings[1]
            threshold = f"{max(self.threshold, kept):g}" if kept is not None else f"{threshold} or the file's, unknown"
        elif self.by_model:
            by = f"model:{Path(self.detector.name).name}@{self.detector.digest}|nms:{self.detector.nms:g}"
        else:
            by = "column:objects"
        return f"detected|{by}|threshold:{threshold}|vocabulary:coco80|labels:head|tok:{ptb.VERSION}|empty:0"
