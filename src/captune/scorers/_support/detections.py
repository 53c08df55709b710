"""What a detector found, in the classes of a vocabulary: from the files of ``captune detect``, or from a column."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from captune.data.readers import nfc
from captune.errors import ScorerError
from captune.utils.files import jsonl_rows, read_json
from captune.utils.hashing import fingerprint
from captune.utils.loads import few
from captune.utils.skipped import skip

logger = logging.getLogger(__name__)

T = TypeVar("T")
Found = list[tuple[str, float]]  # labels with scores
Named = Callable[[str], list[str]]  # the classes that a label names


class Labels:
    """The labels of a detector, or of a file, in a vocabulary's classes: "sofa" is a couch where a caption's sofa is.

    Args:
        named: the classes that a label names.
        who: whose labels, for messages.
    """

    def __init__(self, named: Named, who: str) -> None:
        self.named, self.who = named, who
        self._known: dict[str, frozenset[str]] = {}

    def classes(self, label: str) -> frozenset[str]:
        """Return the class of a label; a label that names none is left out, and counted."""
        if label not in self._known:
            self._known[label] = frozenset(self.named(label) or self.named(label.replace("_", " ")))
            if not self._known[label]:
                skip(f"labels of {self.who} that name no object of the vocabulary", label)
        return self._known[label]

    def all(self, labels: Iterable[str]) -> frozenset[str]:
        """Return the classes of all labels.

        Raises:
            ScorerError: there are labels, and not one has a class.
        """
        labels = list(labels)
        made = frozenset[str]().union(*map(self.classes, labels))
        if labels and not made:
            raise ScorerError(f"{self.who}: none of its {len(labels)} labels ({few(labels)}) names an object of the "
                              "vocabulary, so that no caption can be judged by it")  # fmt: skip
        return made


class DetectionFile:
    """The detections of ``captune detect``.

    Args:
        path: the file, a line {"image_id": ..., "objects": [{"label": ..., "score": ...}]} an image.
        named: the classes that a label names.
    """

    def __init__(self, path: Path, named: Named) -> None:
        self.path, self.labels = path, Labels(named, path.name)

    def check(self) -> None:
        """Raise ScorerError where there is no such file."""
        if not self.path.is_file():
            raise ScorerError(f"there is no file of detections {self.path}; make it with captune detect --output "
                              f"{self.path}")  # fmt: skip

    @cached_property
    def found(self) -> dict[str, Found]:
        """Labels with scores by image id."""
        self.check()
        found: dict[str, Found] = {}
        for number, row in jsonl_rows(self.path):
            where = f"{self.path}, line {number}"
            if row.get("image_id") in (None, "") or "objects" not in row:
                raise ScorerError(f"{where} is no detections of an image: it needs image_id and objects")
            key = nfc(str(row["image_id"]))
            if key in found:
                raise ScorerError(f"{where}: a second line for image {row['image_id']!r}")
            found[key] = read_objects(row["objects"], where)
        if not found:
            raise ScorerError(f"{self.path} holds no detections")
        self.labels.all({label for one in found.values() for label, _ in one})
        return by_image(found)

    @cached_property
    def settings(self) -> tuple[Sequence[str] | None, float | None]:
        """The labels that the detector has, and the score from which it kept objects; None where nothing says so."""
        path = self.path.with_name(f"{self.path.name}.settings.json")
        if not path.is_file():
            logger.warning(
                "%s is not there: which labels the detector of %s has, and from which score it kept objects, is not "
                "known; what a caption names counts as if it could have found everything", path, self.path.name
            )  # fmt: skip
        kept = read_json(path, error=ScorerError) if path.is_file() else {}
        kept = kept if isinstance(kept, dict) else {}
        labels, generation = kept.get("classes"), kept.get("generation")
        threshold = generation.get("threshold") if isinstance(generation, dict) else None
        known = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if path.is_file() and not (known and isinstance(labels, list)):
            logger.warning("%s does not say the classes of the detector, or its threshold; what it does not say is "
                           "taken for all that there could be", path)  # fmt: skip
        return labels if isinstance(labels, list) else None, threshold if known else None

    @cached_property
    def classes(self) -> frozenset[str] | None:
        """The classes that the detector can find; None: nothing says, so all."""
        labels = self.settings[0]
        return None if labels is None else self.labels.all(map(str, labels))

    def of(self, image_id: Any, threshold: float = 0.0) -> frozenset[str] | None:
        """Return the classes found in an image; None where the file has no such image."""
        found = look_up(self.found, image_id)
        return None if found is None else seen(found, threshold, self.labels)

    @property
    def digest(self) -> str:
        """The file's name and a digest of what decides what it says."""
        said = repr((sorted(self.classes) if self.classes is not None else None, self.settings[1]))
        return f"{self.path.name}@{fingerprint(self.path.read_bytes() + said.encode())}"


def seen(found: Found, threshold: float, labels: Labels) -> frozenset[str]:
    """Return the classes of the objects that score enough."""
    return frozenset[str]().union(*(labels.classes(label) for label, score in found if score >= threshold))


def read_objects(entry: Any, where: str) -> Found:
    """Read one image's objects: names, {"label", "score"}, or one object of such lists; without a score it is 1.

    Raises:
        ScorerError: it is something else, or a score is not between 0 and 1.
    """
    if isinstance(entry, Mapping) and entry and all(isinstance(values, list) for values in entry.values()):
        if len(numbers := {len(values) for values in entry.values()}) > 1:
            raise ScorerError(f"{where}: the lists of objects have different lengths: {sorted(numbers)}")
        entry = [dict(zip(entry, values, strict=True)) for values in zip(*entry.values(), strict=True)]
    found: Found = []
    for one in entry if isinstance(entry, list | tuple) else [entry]:
        label, score = (one.get("label"), one.get("score", 1.0)) if isinstance(one, Mapping) else (one, 1.0)
        if not isinstance(label, str) or isinstance(score, bool) or not isinstance(score, int | float):
            raise ScorerError(f'{where}: {str(one)[:80]!r} is no object such as {{"label": "dog", "score": 0.8}}')
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ScorerError(f"{where}: the score of {label!r} is {score:g}; it must be between 0 and 1")
        found.append((label, float(score)))
    return found


def image_key(image_id: Any) -> str:
    """Return what stands for an image: COCO's 42, "42" and "000000000042" are one."""
    text = nfc(str(image_id))
    return str(int(text)) if text.isascii() and text.isdecimal() else text


def by_image(found: Mapping[str, T]) -> dict[str, T]:
    """Return what is said of each image under its key; under its id where two ids, "7" and "007", have one key."""
    keys = Counter(map(image_key, found))
    return {key if keys[key := image_key(image_id)] == 1 else image_id: one for image_id, one in found.items()}


def look_up(found: Mapping[str, T], image_id: Any) -> T | None:
    """Return what `by_image` has of an image; None where it has nothing."""
    return found.get(nfc(str(image_id)), found.get(image_key(image_id)))
