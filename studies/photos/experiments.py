"""What is compared: the rows of `experiments.yaml`, a line each of the study's tables. Nothing is run here.

`choices` is judged on the 100 images for choices, and so is `sums`; what is best there is trained with other seeds and
judged on the 100 test images, as all other rows are. Every section has its base as a row, so that each can be read, and
run, by itself; a row that two sections share is run once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from captune.scorers.expression import parse
from studies._lib.rows import COMMON, Row, read, shared

FILE = Path(__file__).with_suffix(".yaml")
PARTS = {"image_encoder": "efficientnet-lite2", "language_model": "smollm2-135m"}
BAR = 0.27  # CIDEr-D of stage 1 on test, median of the seeds
SHARE = 0.3  # of the gap to supervision that a reward without labels is to close
BEST_SUM = (
    "best of sums"  # stands for the reward of the row of `sums` with the highest CIDEr-D on the images for choices
)
CAPTIONERS: dict[str, dict[str, Any]] = shared(FILE, "captioners")  # {split: settings of stage 1 on it}
OPENINGS = ("a", "a man", "two people", "a dog", "there is a", "a photo of", "this picture shows")
SCALES = (1.25, 1.5, 2.0, 3.0)  # of classifier-free guidance
REPETITION = 0.5  # what the share of repeated 3-grams costs in every reward
WATCHES = ("clip:{pair}", "detected:?detections={watched}", "pmi:{base}", "vizer:{mapper}")
OWN, SAMPLES = 300, 2  # images of the own corpus, and samples of each, the best of which is its entry
LATER = ("crops", "kin")  # splits, each a field of a row; rows that were there before them keep their results
TRAINS = ("har", "sft", "scst", "grpo", "vizer")


@dataclass(frozen=True, kw_only=True)
class System(Row):
    """One row of the study.

    Args:
        kind: har (stage 1 of `captune har`), sft, scst, grpo, vizer: what trains; greedy, decoder, opening, best_of,
            guidance: how the captioner writes; scorer: judges the captions of all other rows.
        role: base, supervised, zero (no label at any time), outside (no label of the images, but what judges has
            learned from the captions of `few`, or from COCO's boxes), labels, control or other.
        images: what stage 1 learns from: that of the row, or of the captioner that it starts from.
        reward: an expression of scorers with places for what the study makes: {pair}, the encoder pair; {detections} of
            the training images; {mapper} of the row "vizer"; {own} and {few}, corpora; {base}, the captioner. Of a
            scorer's row, the scorer.
        decoder: of `captune.decoding`, with the same places.
        wrong_image: the reward judges a caption as that of another image.
        crops: stage 2 learns from crops of the images, those that stage 1 has not seen.
        kin: rewards see the photos of `train` alone, which are of the test photos' kind, and not the unlabelled ones.
        settings: of the command, where other than those that the file shares by kind.
    """

    kind: Literal[
        "har", "sft", "scst", "grpo", "vizer", "greedy", "decoder", "opening", "best_of", "guidance", "scorer"
    ] = "har"
    role: Literal["base", "supervised", "zero", "outside", "labels", "control", "other"] = "other"
    images: Literal["few", "train"] = "train"
    reward: str = ""
    decoder: str = ""
    wrong_image: bool = False
    crops: bool = False
    kin: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.kind in TRAINS

    @property
    def learns_from(self) -> str:
        """The split whose images the row itself trains on."""
        own = {"har": self.images, "sft": "train", "scst": "train"}.get(self.kind, "unlabelled")
        return next((split for split in LATER if getattr(self, split)), own)

    @property
    def places(self) -> set[str]:
        """What its reward or decoder has to be given."""
        return {name for _, name, _, _ in Formatter().parse(self.reward + self.decoder) if name}

    def depends(self) -> dict[str, Any]:
        """What a result depends on besides the seed: all but how the row is called."""
        own = {key: value for key, value in vars(self).items() if key not in (*COMMON, "role")}
        own = {key: value for key, value in own.items() if value or key not in LATER}
        if self.kind == "har":
            return own
        return own | {"captioner": CAPTIONERS[self.images], "shared": settings_of(self) if self.trains else {}}

    def runs(self) -> dict[str, dict[str, Any]]:
        """The row as a file for `captune METHOD --config`, where it needs nothing that the study makes.

        Its images, and the captioner that it starts from, are the user's.
        """
        if not self.trains or self.wrong_image or self.crops or self.kin or self.places or self.reward == BEST_SUM:
            return {}
        if self.kind == "har":
            return {"har": {**PARTS, **self.settings}}
        if self.kind == "scst":
            return {"har": {**PARTS, **CAPTIONERS[self.images], **settings_of(self), "reward": self.reward}}
        return {self.kind: settings_of(self) | ({"reward": penalised(self.reward)} if self.kind == "grpo" else {})}


def settings_of(row: System) -> dict[str, Any]:
    """The settings of a trained row's command, but for what it trains on; stage 2 has LoRA and cache of stage 1."""
    return {**({} if row.kind == "scst" else SHARED["all"]), **SHARED.get(row.kind, {}), **row.settings}


def penalised(reward: str) -> str:
    """A reward with the cost of repetition that all have."""
    return f"{reward} - {REPETITION}*repetition"


def watch_of(reward: str) -> str:
    """The scorer that watches a run of `captune grpo`: it reads no label, and chooses the step that is kept.

    It is the first of `WATCHES` that is no part of the reward; nor is the pair, where a corpus is searched with it.
    """
    optimised = {spec.partition(":")[0] for spec in parse(reward)}
    if "{own}" in reward or "{few}" in reward:
        optimised.add("clip")
    return next(watch for watch in WATCHES if watch.partition(":")[0] not in optimised)


SHARED: dict[str, dict[str, Any]] = shared(FILE, "settings")  # {kind: settings of its command}
ROWS = read(FILE, System)
