"""What trainings of studies share: names for what results depend on, work that is done once, the wrong image."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from captune.models.captioner import Captioner
from captune.models.hub import resolve
from captune.training.sft.train import SFTTrainer
from captune.utils.files import replace_file

from .evalset import Exam, batches, best

Reward = Callable[..., list[float]]
UNSAVED = {"save_steps": 10**6, "overwrite": True}  # no checkpoint, and what an unfinished run left is removed


def key_of(content: Any) -> str:
    """16 hexadecimal digits that stand for any JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_of(base: str) -> str:
    """16 hexadecimal digits that stand for the files of a captioner."""
    folder, digest = Path(resolve(base)), hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        if file.name != "build.json":
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def once(file: Path, make: Callable[[], Any]) -> Any:
    """The JSON content of a file; where it is missing it is made."""
    if not file.is_file():
        content = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(content) + "\n")
    return json.loads(file.read_text())


class Bench:
    """A base captioner and everything made from it; `work` is the folder for what can be made again."""

    def __init__(self, base: str, work: Path, *, quick: bool = False) -> None:
        self.base, self.work, self.quick, self.digest = base, work, quick, digest_of(base)

    def load(self, adapter: Path | None = None) -> Captioner:
        return Captioner.load(self.base, adapter=adapter)

    def captions(self, row: Any, captioner: Captioner, exam: Exam) -> list[str]:
        """The captions of a row of any kind, one for each image but for "all" samples."""
        if row.kind == "references":
            return [refs[0] for refs in exam.columns["references"]]
        if row.kind == "opening":
            return exam.captions(captioner, forced_opening=row.settings["text"])
        if row.kind != "best_of":
            return exam.captions(captioner)
        n, pick = row.settings["n"], row.settings["pick"]
        file = self.work / "samples" / f"{key_of([self.digest, exam.source, n, row.seed])}.json"
        made = once(file, lambda: exam.samples(captioner, n, row.seed, batch_size=32))
        if pick == "all":
            return made["captions"]
        if pick not in made:
            images = [image for image in exam.columns["image"] for _ in range(n)]
            made[pick] = self.judge(captioner)(made["captions"], image=images)
        return best(made["captions"], made[pick], n)

    def judge(self, captioner: Captioner) -> Any:
        """The scorer that picks samples where their likelihood does not."""
        raise NotImplementedError


def supervise(captioner: Any, images: Any, config: Any, run_dir: Any) -> None:
    """As `captune sft` does."""
    with captioner.share_vision():
        SFTTrainer.fit(captioner, images, config, run_dir)


def picked(
    captioner: Captioner, images: Any, judge: Any, samples: int, *, batch_size: int = 64, **settings: Any
) -> list[str]:
    """The captioner's own caption of each image: of some samples the one that a scorer of images likes best."""
    chosen: list[str] = []
    for batch in batches(images, batch_size, "own captions"):
        texts = captioner.generate(batch, do_sample=True, num_return_sequences=samples, **settings)
        scores = judge(texts, image=[image for image in batch for _ in range(samples)])
        chosen += best(texts, scores, samples)
    return chosen


def clean(folder: Path, *patterns: str) -> None:
    """Removes checkpoints, and what else is named."""
    for pattern in ("**/checkpoint-*", *patterns):
        for left in list(folder.glob(pattern)):
            shutil.rmtree(left)


def cycle(n: int) -> list[int]:
    """Another index for each of n, in a random order that is always the same: one cycle through all of them."""
    order = list(range(n))
    random.Random(0).shuffle(order)
    other = [0] * n
    for a, b in zip(order, order[1:] + order[:1], strict=True):
        other[a] = b
    return other


def on_wrong_image(reward: Any, images: Any, other: Sequence[int]) -> Reward:
    """The reward of each caption as if it described another image: image i is judged as image `other[i]`."""
    names = images["image_id"]
    index = dict(zip(names, other, strict=True))

    def judge(completions: list[Any], *, image_id: list[str], **_: Any) -> list[float]:
        chosen = [index[name] for name in image_id]
        return reward(completions, image=[images[i]["image"] for i in chosen], image_id=[names[i] for i in chosen])

    judge.__name__ = f"{getattr(reward, 'name', 'reward')}_of_another_image"
    return judge
