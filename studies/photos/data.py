"""The photos of the study, and what is made of them once for all rows: splits, detections, the encoder pair."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Image

from captune.data import load_images, read_jsonl
from captune.data.views import view
from captune.inference.detect import detect_to_file
from captune.models.encoders.pair import PairConfig
from captune.training.encoder import train as encoder
from captune.training.encoder.config import EncoderConfig
from captune.utils.files import replace_file
from studies._lib.train import once

SPLITS = json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))
FEW = 6  # images of a split in a quick run
UNSEEN = (2, 3)  # numbers of the views that stage 1 does not see: it sees 0 and 1
WATCHED = 24  # images for choices that a run's monitor sees
PAIR = {"image_encoder": "efficientnet-lite2", "batch_size": 128}  # a tenth of `few` is held out to choose the step
TINY_PAIR = {"image_encoder": "storybook-clip", "text_encoder": "storybook-clip", "batch_size": 2, "max_steps": 2}


def split(data: Path, name: str, work: Path, most: int | None = None, *, stem: str = "") -> str:
    """Write the captions of a split's images, of at most so many, and return them as a source of captune.

    Raises:
        SystemExit: an image of the split is not in the data, or the images are not in one folder.
    """
    lines, lacking, folders = [], [], set()
    known = _paths(data)
    names = {image_id.rsplit(".", 1)[0]: image_id for image_id in known}
    for image_id in SPLITS[name][:most]:
        found = image_id if image_id in known else names.get(image_id.rsplit(".", 1)[0])
        if found is None:
            lacking.append(image_id)
            continue
        image, references = known[found]
        folders.add(str(image.parent))
        lines.append({"image": image.name, "image_id": image_id, "references": references})
    if lacking:
        raise SystemExit(f"{data} lacks {len(lacking)} images of the split {name}, the first is {lacking[0]}")
    file = work / f"{stem or name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, "".join(json.dumps(line) + "\n" for line in lines))
    if len(folders) > 1:
        raise SystemExit(f"the photos of {data} lie in {len(folders)} folders; put them into one")
    return f"{file}?images={folders.pop()}"


def _paths(data: Path) -> dict[str, tuple[Path, list[str]]]:
    """{image id: (file, captions)}"""
    rows: Any = load_images(str(data))
    paths = rows.cast_column("image", Image(decode=False))
    return {row["image_id"]: (Path(row["image"]["path"]), list(row["references"])) for row in paths}


@dataclass
class Photos:
    """What the user named; `work` is the folder for what can be made again."""

    captions: Path
    work: Path
    unlabelled: Path | None = None  # a folder of photos without captions
    detector: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        self._sources: dict[str, str] = {}

    def split(self, name: str) -> str:
        """The source of a split.

        `watched` are the first images for choices; `kin` are those of `train` without captions, `unlabelled` these
        and the unlabelled ones; `crops` are of `train` (see `_crops`).
        """
        if name not in self._sources:
            most = FEW if self.quick else None
            if name in ("kin", "unlabelled"):
                self._sources[name] = str(self._without_captions(name))
            elif name == "watched":
                self._sources[name] = split(self.captions, "choices", self.work, most or WATCHED, stem=name)
            elif name == "crops":
                self._sources[name] = self._crops()
            else:
                self._sources[name] = split(self.captions, name, self.work, most)
        return self._sources[name]

    def _without_captions(self, name: str) -> Path:
        """A folder with copies of the images of such a split: no caption lies beside them."""
        folder = self.work / name

        def copy() -> int:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            source, _, place = self.split("train").partition("?images=")
            files = [Path(place) / row["image"] for row in read_jsonl(source)]
            if name == "unlabelled":
                more: Any = load_images(str(self.unlabelled), limit=FEW if self.quick else None, references=False)
                files += [Path(row["path"]) for row in more.cast_column("image", Image(decode=False))["image"]]
            if len({file.name for file in files}) < len(files):
                raise SystemExit(f"{self.unlabelled} has photos of the same names as the captioned ones; rename them")
            for file in files:
                shutil.copyfile(file, folder / file.name)
            return len(files)

        once(self.work / f"{name}.json", copy)
        return folder

    def _crops(self) -> str:
        """The views of the images of `train` that stage 1 has not seen, as images with their captions."""
        source, _, place = self.split("train").partition("?images=")
        folder, lines = self.work / "crops", []
        folder.mkdir(exist_ok=True)
        for row in read_jsonl(source):
            with PIL.Image.open(Path(place) / row["image"]) as image:
                for number in UNSEEN:
                    name = f"{Path(row['image']).stem}-{number}.png"
                    view(image, number, row["image_id"], " ".join(row["references"])).save(folder / name)
                    lines.append({"image": name, "image_id": name, "references": row["references"]})
        file = self.work / "crops.jsonl"
        replace_file(file, "".join(json.dumps(line) + "\n" for line in lines))
        return f"{file}?images={folder}"

    def detections(self, name: str) -> Path:
        """What the detector finds in a split's images, looked for once."""
        assert self.detector is not None
        file = self.work / "detections" / f"{name}.jsonl"
        detect_to_file(self.detector, self.split(name), file, progress=False)
        return file

    def pair(self) -> Path:
        """An encoder pair that has seen the captions of `few` alone; recall is stated on the images for choices."""
        folder = self.work / "pair"
        settings = {**PAIR, **(TINY_PAIR if self.quick else {})}
        sources = {"images": self.split("few"), "eval_images": self.split("choices")}
        if self.quick:  # too few to hold some out
            sources["choice_images"] = self.split("watched")
            sources["eval_images"] = self.split("test")
        once(
            self.work / "pair.json", lambda: str(encoder.run(EncoderConfig(output=folder, **sources, **settings)).path)
        )
        return folder

    def recall(self) -> dict[str, float]:
        """R@1 of the pair in both directions."""
        found = PairConfig.model_validate_json((self.pair() / PairConfig.file).read_text(encoding="utf-8")).recall
        assert found is not None
        return {"text_to_image": found.text_to_image["1"], "image_to_text": found.image_to_text["1"]}
