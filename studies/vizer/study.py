"""What the ViZer study runs: its sections, each a list of `Spec`. Nothing is run here.

`main` and `controls` carry the claims and run on every base; `choices`, `sweep` and `learning` explain them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from captune.training.vizer.train import ViZerConfig

SECTIONS = ("main", "controls", "learning", "choices", "sweep")
ONE_BASE = ("choices", "sweep")  # the others run on every base

BASE, ZERO, PAPER_GT, PAPER_G, SUPERVISED = "base", "zero-label", "paper GT", "paper G", "supervised"
MAIN_ROWS = (BASE, ZERO, PAPER_GT, PAPER_G, SUPERVISED)
LABELLED, UNLABELLED = "storybook:train", "storybook:unlabelled"
# What controls and choices start from: the preset as it was before guidance and longer training were tried.
SHORT = {"images": UNLABELLED, "rounds": 3, "max_steps": 40, "guidance": 0.0}

# A prompt-less captioner, as SmolVLM-Base is: text beside the image *is* the opening, so that a forced opening and a
# prompted one are the same thing.
OPENINGS = ("a", "there is a", "a big", "a small", "in the", "a photo of a", "this picture shows a")
PICKS = {
    "mean": "best of 8 by mean log-likelihood",
    "total": "best of 8 by total log-likelihood",
    "mapper": "best of 8 by the mapper (information)",
    "all": "mean over 8 samples (information)",
}
CHOICES: dict[str, tuple[Any, ...]] = {  # (): all that the setting can be; what was thought to matter most comes first
    "whitened": (0, 32, 128),
    "repetition_weight": (0.0,),
    "blind": (False,),
    "mapper_captions": ("generated", LABELLED),
    "mapper_size": (1000, 2000),
    "pool": (),
    "objective": (),
    "caption_pool": (),
    "beta": (0.0, 0.2, 0.5),
    "feature": (),
    "centred": (False,),
    "shift": (True,),
    "mapper_samples": (1, 6),
    "max_steps": (20, 80),
    "rounds": (2, 3),
    "guidance": (2.0,),
}
WIDTHS, SIZES = (128, 256, 512, 1024), (250, 1000, "all")


@dataclass(frozen=True)
class Spec:
    """One row of the study.

    Args:
        kind: how the captions come about: greedy (no training), vizer, sft, opening, best_of, references; or probe.
        settings: of the method's config for vizer and sft (as `captune vizer` takes them), else of the kind.
        reward: what GRPO rewards: "mapper", "length", or "wrong image", the right mapper on another image.
    """

    section: str
    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    reward: str = "mapper"
    role: str = ""


def main() -> Iterator[Spec]:
    yield Spec("main", BASE, "greedy", role="base")
    yield Spec("main", SUPERVISED, "sft", {"images": LABELLED}, role="supervised")
    yield Spec("main", ZERO, "vizer", {"images": UNLABELLED}, role="zero")
    yield Spec("main", PAPER_GT, "vizer", paper(LABELLED), role="gt")
    yield Spec("main", PAPER_G, "vizer", paper("generated"), role="zero")
    yield Spec("main", "references", "references", role="other")


def paper(mapper_captions: str, **settings: Any) -> dict[str, Any]:
    return {"images": UNLABELLED, "preset": "paper", "mapper_captions": mapper_captions, **settings}


def controls() -> Iterator[Spec]:
    trained = {**SHORT, "objective": "reward"}
    yield Spec("controls", "length reward", "vizer", trained, reward="length", role="control")
    yield Spec("controls", "reward on the wrong image", "vizer", trained, reward="wrong image", role="control")
    for text in OPENINGS:
        yield Spec("controls", f'forced opening "{text}"', "opening", {"text": text}, role="control")
    for pick, name in PICKS.items():
        yield Spec("controls", name, "best_of", {"n": 8, "pick": pick}, role="other" if pick == "all" else "control")


def learning() -> Iterator[Spec]:
    for row in (BASE, ZERO, PAPER_GT, SUPERVISED):
        yield Spec("learning", row, "probe", {"row": row})


def choices() -> Iterator[Spec]:
    """From `SHORT` with one round (to save hours), one change at a time; then the preset as it is."""
    start = {**SHORT, "rounds": 1}
    yield Spec("choices", "preset", "vizer", start)
    defaults = {f.name: f.default for f in fields(ViZerConfig)} | start
    kinds = get_type_hints(ViZerConfig)
    for name, values in CHOICES.items():
        for value in values or get_args(kinds[name]):
            if value != defaults[name]:
                settings = {**start, name: value}
                yield Spec("choices", f"{name} = {value}", "vizer", settings)
    yield Spec("choices", "the preset, whole", "vizer", {"images": UNLABELLED})


def sweep() -> Iterator[Spec]:
    """The paper's Table 2 and Figure 3: width of the mapper by the number of images that it is fitted on."""
    for variant, captions in (("GT", LABELLED), ("G", "generated")):
        for size in SIZES:
            for width in WIDTHS:
                settings = paper(captions, width=width, mapper_size=None if size == "all" else size)
                yield Spec("sweep", f"{variant} {size} x {width}", "vizer", settings)


def specs(section: str) -> list[Spec]:
    return list(dict(zip(SECTIONS, (main, controls, learning, choices, sweep), strict=True))[section]())
