"""CHAIR: objects that a caption mentions and its image does not show (Rohrbach et al., EMNLP 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import ScorerError
from captune.scorers import Scorer, check_references, safe_ratio
from captune.scorers._support import ptb
from captune.scorers._support.detections import DetectionFile, Labels, by_image, image_key, look_up
from captune.scorers._support.objects import read_by_image
from captune.scorers._support.vocabulary import COCO, Vocabulary
from captune.utils.hashing import fingerprint


class Chair(Scorer):
    """Object hallucination: the share of the objects mentioned that the image does not show; lower is better.

        CHAIR_i = hallucinated objects mentioned / objects mentioned
        CHAIR_s = captions with a hallucinated object / captions
        recall  = objects of the image that its caption mentions / objects of the image

    counted over the whole corpus; `mentions` is the number of objects mentioned per caption, for a captioner that names
    nothing hallucinates nothing. An object mentioned twice is two mentions. A figure with nothing to divide by is 0.
    As a reward it is the caption's own CHAIR_i, to be subtracted: `cider - chair`.

        chair                               an image shows what its references mention
        chair:instances_val2014.json        and what COCO's instance annotations say
        chair:objects.jsonl                 and what a file of {image id: [objects]} says, JSON or a line per image
        chair:?detections=found.jsonl       and what a detector finds (`captune detect`); with a file of objects,
                                            in those images only that the file says nothing about
        chair:FILE?vocabulary=words.json    classes of objects with their synonyms, {"sofa": ["couch"], ...}

    An object that is named and that the detector misses counts as hallucinated, unless its list of labels lacks the
    class; `by_detections` is the share of captions that were judged by detections.

    The default vocabulary is the original's: COCO's 80 classes, their synonyms, and its rules for pairs of words. In a
    vocabulary, the class "" holds phrases that name no object, so that their words do not ("train track", "baby
    animal"); the longest phrase at a place counts. One rule is in the code: next to a toilet, a "seat" is no chair.

    Like the original, this takes any use of a word for the object: the colour "orange", the "bow" of a boat. Unlike
    it, words come from the PTB tokenizer that the other scorers use; plurals are undone by rules of our own, on
    captions and synonyms alike, which leave "bus" and "glass" whole; "motor bike", "cheesecake" and "iphone", which
    the original lists but cannot match, are matched; "stove top oven" is one mention, not two.
    """

    name = "chair"
    primary = "chair_i"
    higher_is_better: ClassVar = {"chair_i": False, "chair_s": False, "recall": True}
    labels: ClassVar = {
        "chair_i": "CHAIRi",
        "chair_s": "CHAIRs",
        "recall": "object recall",
        "mentions": "objects mentioned",
        "by_detections": "judged by detections",
    }
    source = "Rohrbach et al., EMNLP 2018"
    cost = "0.1 ms"
    required_columns = ("references",)  # with a file: image_id, and references where there are any
    positional = ("file",)
    usage = "chair:objects.jsonl?vocabulary=words.json"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        file: Annotated[
            str,
            Field(
                description="objects of the images: COCO annotations, or JSON; default: those that references mention"
            ),
        ] = ""
        detections: Annotated[
            str,
            Field(description="a file of captune detect, for the images that the file of objects says nothing about"),
        ] = ""
        vocabulary: Annotated[
            str, Field(description="classes of objects with their synonyms, JSON; default: COCO's 80")
        ] = ""

    def __init__(self, argument: str | None = None) -> None:
        settings = self.read(argument)
        self.file = Path(settings.file).expanduser() if settings.file else None
        self.vocabulary_file = Path(settings.vocabulary or COCO).expanduser()
        detections = settings.detections
        self.detections = DetectionFile(Path(detections).expanduser(), self._named) if detections else None
        if self.file or self.detections:
            self.required_columns, self.optional_columns = ("image_id",), ("references",)  # of this object
        self._referenced = not (self.file or self.detections)

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        for file, what in ((self.file, "objects of the images"), (self.vocabulary_file, "vocabulary")):
            if file and not file.is_file():
                raise ScorerError(f"scorer {self.name!r} needs the {what} in {file}, and there is no such file; write "
                                  "one with a JSON object of lists of names in it")  # fmt: skip
        if self.detections:
            self.detections.check()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The classes of objects with their synonyms."""
        self.check()
        return Vocabulary(self.vocabulary_file)

    def mentions(self, text: str) -> list[str]:
        """The class of each object that a text mentions, in order, repetitions included."""
        return self.vocabulary.mentions(text)

    def _named(self, label: str) -> list[str]:
        return self.vocabulary.named(label)

    @cached_property
    def truth(self) -> dict[str, frozenset[str]]:
        """{image id: classes} of the file."""
        assert self.file is not None
        self.check()
        found, labels = _objects_by_image(self.file), Labels(self._named, self.file.name)
        labels.all({name for names in found.values() for name in names})
        return {key: frozenset().union(*map(labels.classes, names)) for key, names in found.items()}

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Raise ScorerError where the files say nothing about an image."""
        for image_id in () if self._from_references else image_ids:
            self._of_image(image_id)

    def rows(
        self,
        captions: Sequence[str],
        *,
        references: Sequence[Sequence[str]] | None = None,
        image_id: Sequence[str] | None = None,
        **columns: Any,
    ) -> np.ndarray:
        """(N, 5): hallucinated mentions, mentions, whether any is hallucinated, objects recalled, objects there.

        With detections (N, 6): whether these judged the caption.
        """
        if self._from_references:
            check_references(self.name, references or [[]] * len(captions))
        self._referenced = references is not None and any(references)
        rows = np.zeros((len(captions), 6 if self.detections else 5))
        for i, caption in enumerate(captions):
            there = {name for text in (references[i] if references else ()) for name in self.mentions(text)}
            mentioned, detected = self.mentions(caption), False
            if image_id is not None and not self._from_references:
                objects, detected = self._of_image(image_id[i])
                there |= objects
            if detected and self.detections and self.detections.classes is not None:
                mentioned = [name for name in mentioned if name in self.detections.classes | there]
            false = sum(name not in there for name in mentioned)
            rows[i, :5] = false, len(mentioned), false > 0, len(there & set(mentioned)), len(there)
            rows[i, 5:] = detected
        return rows

    @property
    def _from_references(self) -> bool:
        return self.file is None and self.detections is None

    def _of_image(self, image_id: str) -> tuple[frozenset[str], bool]:
        """What an image shows, and whether a detector says so."""
        if self.file and (shown := look_up(self.truth, image_id)) is not None:
            return shown, False
        found = self.detections.of(image_id) if self.detections else None
        if found is not None:
            return found, True
        files: dict[str, Mapping[str, Any]] = {str(self.file): self.truth} if self.file else {}
        files |= {str(self.detections.path): self.detections.found} if self.detections else {}
        known = "; ".join(f"{file} has {len(ids)} images with ids like {next(iter(ids), 'none')!r}"
                          for file, ids in files.items())  # fmt: skip
        raise ScorerError(f"scorer {self.name!r}: {' and '.join(files)} says nothing about image {image_id!r}; {known}")

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        figures = {
            "chair_i": safe_ratio(totals[..., 0], totals[..., 1]),
            "chair_s": totals[..., 2] / n,
            "recall": safe_ratio(totals[..., 3], totals[..., 4]),
            "mentions": totals[..., 1] / n,
        }
        return figures | ({"by_detections": totals[..., 5] / n} if self.detections else {})

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return safe_ratio(rows[:, 0], rows[:, 1])

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        self.check()
        truth = [f"{self.file.name}@{fingerprint(self.file.read_bytes())}"] if self.file else []
        truth += [f"detections:{self.detections.digest}"] if self.detections else []
        truth += ["references"] if self._referenced else []
        own = self.vocabulary_file != COCO
        vocabulary = (
            f"{self.vocabulary_file.name}@{fingerprint(self.vocabulary_file.read_bytes())}" if own else "coco80"
        )
        labels = "|labels:head" if self.file or self.detections else ""
        return f"chair|truth:{'+'.join(truth)}|vocabulary:{vocabulary}{labels}|tok:{ptb.VERSION}"


def _objects_by_image(file: Path) -> dict[str, list[str]]:
    """{image id: names of objects} from COCO's instance annotations, {id: [names]}, or such objects line by line."""
    content = read_by_image(file)
    if isinstance(content, dict) and {"image_id", "objects"} <= content.keys():
        raise ScorerError(f"{file} holds detections: write chair:?detections={file}")
    if isinstance(content, dict) and {"annotations", "categories"} <= content.keys():
        try:
            return _coco(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ScorerError(
                f"{file}: COCO instance annotations lack a part or have another form ({error!r})"
            ) from error
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise ScorerError(f'{file} is neither COCO instance annotations nor {{"image id": ["object", ...]}}')
    return by_image(content)


def _coco(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """An image without annotations has none; images can be asked for by number or by file name."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[str, list[str]] = {}
    for image in content.get("images", []):
        shared = objects.setdefault(image_key(image["id"]), [])
        if "file_name" in image:
            objects[image_key(image["file_name"])] = shared
    for annotation in content["annotations"]:
        objects.setdefault(image_key(annotation["image_id"]), []).append(names[annotation["category_id"]])
    return objects
