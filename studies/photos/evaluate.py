"""The study of photographs: HAR's two stages, training without labels, decoders and scorers, on Flickr8k.

    PHOTOS="--data flickr8k/captions.txt --texts flickr8k/captions_text_only.csv"
    python -m studies photos $PHOTOS --only choices
    python -m studies photos $PHOTOS --detector yolox_nano.onnx --unlabelled photos

The photographs are not part of the repository: splits.json names them, and results hold captions and figures only. A
study that was stopped resumes, and so does the training that was running.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from captune.data import CaptionWriter, load_images, read_jsonl
from captune.errors import CaptuneError
from captune.evaluation.correlation import rated
from captune.models.captioner import Captioner
from captune.scorers import load_scorer
from captune.utils.hashing import fingerprint
from studies._lib import controls, runner
from studies._lib.evalset import Exam

from . import tables
from .data import Photos
from .experiments import BEST_SUM, OPENINGS, ROWS, SCALES, System
from .train import Trained, Workshop, watched

SCORERS = {"cider": "cider", "bleu": "bleu", "health": "health"}
BY_IMAGE = ("cider", "detected")  # scorers whose figures of each image are kept, for intervals
SHOWN = 20  # captions that a record keeps
CONTROLS = ("opening", "best_of", "guidance")
SIZE = {"batch_size": 16}
LENGTH = {"max_new_tokens": 40}
JUDGED = ("rows", "refine", "zero", "decoders")  # sections whose captions the scorers judge


class Study(runner.Study):
    name, about = "photos", __doc__ or ""
    bases = ()
    rows, default = ROWS, ("rows", "cropped", "refine", "crops", "sums", "zero", "longer", "kin", "decoders", "scorers")
    seeds = {  # noqa: RUF012
        "": (7, 8, 9), "refine": (7, 8, 9, 10, 11), "choices": (1,), "sums": (7,), "longer": (7,), "scorers": (7,)
    }  # fmt: skip

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        if args.tables or args.export:
            return
        sections = set(args.only)
        for flag, given, needing in (
            ("--data flickr8k/captions.txt, the captions of the photos", args.data, sections),
            ("--detector yolox_nano.onnx", args.detector, sections - {"choices"}),
            (
                "--unlabelled FOLDER, photos without captions",
                args.unlabelled,
                sections & {"sums", "zero", "longer", "scorers"},
            ),
        ):
            if needing and not given:
                raise SystemExit(f"{', '.join(sorted(needing))}: name {flag}")
        for path in (args.data, args.texts, args.detector, args.unlabelled):
            if path and not path.exists():
                raise SystemExit(f"there is no {path}")
        self.photos = Photos(args.data, args.work, args.unlabelled, args.detector, args.quick)
        self.workshop = Workshop(self.photos, args.texts, self.chosen)

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = super().parser()
        parser.add_argument("--data", type=Path, help="a caption table of the photos, these beside it or in images/")
        parser.add_argument("--texts", type=Path, help="captions without photos, for rows that read texts first")
        parser.add_argument("--detector", type=Path, help="an ONNX detector of COCO's objects: yolox_nano.onnx")
        parser.add_argument("--unlabelled", type=Path, help="a folder of photos without captions")
        return parser

    # -- what a row depends on -----------------------------------------------------------------------------------------

    def shown(self, row: System) -> str:
        """The split that a row is judged on."""
        return "choices" if row.section in ("choices", "sums") else "test"

    def chosen(self, row: System) -> str:
        """The row's reward; of the best sum that of the row of `sums` with the highest CIDEr-D."""
        if row.reward != BEST_SUM:
            return row.reward
        (seed,) = self.seeds["sums"]
        found = {own.name: self.store.find(self.key(replace(own, seed=seed))) for own in ROWS["sums"]}
        if lacking := [name for name, record in found.items() if record is None]:
            raise CaptuneError(f"{row.name} waits for the rows of the section sums: {', '.join(lacking)}")
        return max(ROWS["sums"], key=lambda own: (found[own.name] or {})["scores"]["choices"]["cider"]).reward

    def written(self, row: System) -> list[dict[str, Any]]:
        """The records of a seed whose captions the scorers judge."""
        names = {section: {own.name for own in ROWS[section]} for section in JUDGED}
        return [
            own for own in self.store.rows
            if own["seed"] == row.seed and own["name"] in names.get(own["section"], ()) and "test" in own["scores"]
        ]  # fmt: skip

    def depends(self, row: System) -> str:
        detector = "" if row.section == "choices" else fingerprint(self.args.detector.read_bytes())
        content = [row.depends(), self.chosen(row), row.seed, self.shown(row), detector, self.args.quick]
        if row.kind == "scorer":
            content.append(sorted({own["hash"] for own in self.written(row)}))
        return fingerprint(json.dumps(content, sort_keys=True))

    # -- a row ---------------------------------------------------------------------------------------------------------

    def exam_of(self, split: str, *, plain: bool = False) -> Exam:
        """The images of a split with what judges them; plain: without detector and pair."""
        specs = dict(SCORERS)
        if not plain:
            specs |= {"detected": f"detected:?detections={self.photos.detections(split)}"}
            specs |= {"clip": f"clip:{self.photos.pair()}"}
        source = self.photos.split(split)
        rows: Any = load_images(source)[:]
        columns = {name: list(rows[name]) for name in ("image_id", "image", "references")}
        return Exam(source, columns, {name: load_scorer(spec) for name, spec in specs.items()})

    def exam(self, row: System, split: str) -> Exam:
        if row.section == "choices":
            return self.exam_of(split, plain=True)
        return self.exams({split: split}, self.exam_of)[split]

    def make(self, row: System) -> dict[str, Any]:
        made = {"command": self.command(row)}
        if row.kind == "scorer":
            return made | self.judge(row)
        trained = self.workshop.trained(row)
        captioner = Captioner.load(trained.model, adapter=trained.adapter)
        split = self.shown(row)
        chosen = self.choose(row, captioner)
        exam = self.exam(row, split)
        captions = self.captions(row, captioner, exam, chosen)
        results = exam.results(captions)
        figures = exam.figures(captions) | {"distinct": len(set(captions)) / len(captions)}
        ids = exam.columns["image_id"]
        file = self.captions_file(row.section, row.name, row.seed)
        kept = {name: results[name].rows.round(5).tolist() for name in BY_IMAGE if name in results}
        figures["chair_i"], kept["chair"] = self.named_by_nobody(captions, exam)
        with CaptionWriter(file, resume=False) as writer:
            writer.write(
                {"image_id": image_id, "caption": caption, **{name: own[i] for name, own in kept.items()}}
                for i, (image_id, caption) in enumerate(zip(ids, captions, strict=True))
            )
        made |= {
            "training_seconds": trained.seconds if row.trains else 0.0,
            "scores": {split: figures},
            "captions": dict(zip(ids[:SHOWN], captions[:SHOWN], strict=True)),
            "captions_file": file.name,
        }
        if row.section == "choices":
            shutil.rmtree(trained.model)  # half a gigabyte that no other row starts from
        else:
            made["recall"] = self.photos.recall()
        return made | self.remarks(row, trained, chosen)

    @staticmethod
    def named_by_nobody(captions: list[str], exam: Exam) -> tuple[float, list[list[float]]]:
        """CHAIR_i: the share of the objects in captions that no reference names; and the scorer's rows.

        A judge of objects that is no reward's, where `detected` is the detector that one reward has, too.
        """
        scorer = load_scorer("chair")
        rows = scorer.measure(captions, exam.columns)
        return round(scorer.corpus(rows)["chair_i"], 5), rows.round(5).tolist()

    def remarks(self, row: System, trained: Trained, chosen: str) -> dict[str, Any]:
        """What else is known of a row: what a control chose, the sum that was chosen, what gate and monitor said."""
        found: dict[str, Any] = {"chosen": chosen} if chosen else {}
        if row.reward == BEST_SUM:
            found["reward"] = self.chosen(row)
        if row.kind in ("scst", "grpo", "vizer") and trained.run is not None:
            found["watch"] = watched(trained.run)
        return found

    def choose(self, row: System, captioner: Captioner) -> str:
        """The opening or the guidance of a control, by CIDEr-D on the images for choices; else nothing."""
        if row.kind not in ("opening", "guidance"):
            return ""
        most = 1 if self.args.quick else None
        tried: dict[str, Any] = {"openings": OPENINGS[:most], "scales": SCALES[:most]}
        return controls.choose(row.kind, captioner, self.exam(row, "choices"), row.seed, **tried, **SIZE, **LENGTH)

    def captions(self, row: System, captioner: Captioner, exam: Exam, chosen: str) -> list[str]:
        """A caption of each image."""
        set_seed(row.seed)
        if row.kind in CONTROLS:
            more = {} if row.kind == "best_of" else LENGTH
            chosen = chosen or row.settings["pick"]
            return controls.captions(row.kind, chosen, captioner, exam, row.seed, **SIZE, **more)  # type: ignore[arg-type]
        if row.kind == "decoder":
            decoder = self.workshop.filled(row.decoder, row)
            return exam.captions(captioner, decoder=decoder, **SIZE, **LENGTH, **row.settings)
        return exam.captions(captioner, **SIZE, **LENGTH)

    # -- scorers -------------------------------------------------------------------------------------------------------

    def judge(self, row: System) -> dict[str, Any]:
        """How a scorer's numbers go with CIDEr-D, over the different captions that the rows wrote of each image.

        An image of which all rows say the same is left out: there is nothing to rank.
        """
        exam = self.exam(row, "test")
        place = {image_id: i for i, image_id in enumerate(exam.columns["image_id"])}
        known: dict[tuple[int, str], float] = {}
        files = sorted({own["captions_file"] for own in self.written(row)})
        for file in files:
            for line in read_jsonl(self.args.results / "captions" / file):
                known[place[line["image_id"]], line["caption"]] = line["cider"][0]
        image = np.array([i for i, _ in known], dtype=int)
        several = np.isin(image, [i for i in set(image.tolist()) if (image == i).sum() > 1])
        if not several.any():
            raise CaptuneError(f"{row.name}: there are no two captions of one image to rank; run other sections first")
        captions = [caption for (_, caption), keep in zip(known, several, strict=True) if keep]
        ratings, image = np.array(list(known.values()))[several], image[several]
        columns = {name: [exam.columns[name][i] for i in image] for name in ("image", "image_id")}
        scorer = load_scorer(self.workshop.filled(row.reward, row))
        scores = np.asarray(scorer.per_caption(scorer.measure(captions, columns)), dtype=float)
        used, image = np.unique(image, return_inverse=True)
        found = rated(image, np.arange(len(image)), ratings, scores, resamples=1000, seed=0)
        defined = {name: round(value, 5) for name, value in found.values.items() if np.isfinite(value)}
        return {
            "scores": {"test": defined},  # without a tau where a scorer says the same of all
            "interval": {"test": {name: [round(x, 5) for x in own] for name, own in found.interval().items()}},
            "judged": {"rows": len(files), "captions": len(captions), "images": len(used)},
        }

    # -- around --------------------------------------------------------------------------------------------------------

    def command(self, row: System) -> str:
        """The command of a row by file names alone: paths are the user's."""
        flags = {"data": self.args.data, "texts": self.args.texts, "detector": self.args.detector}
        flags |= {"unlabelled": self.args.unlabelled}
        given = [f"--{name} {value.name}" for name, value in flags.items() if value]
        return " ".join([f"python -m studies {self.name}", *given, f"--only {row.section}"])

    def describe(self, row: System) -> dict[str, Any]:
        return {"settings": row.depends(), "role": row.role}

    def write(self) -> list[Path]:
        return tables.write(self.args.results)


def main(argv: Sequence[str]) -> int:
    return Study.main(argv)
