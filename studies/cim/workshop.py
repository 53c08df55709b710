"""Trains one row of the study with the library's own parts, as `captune sft` and `captune grpo` do."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from galleries import gallery
from rows import LABELLED, REWARDS, Corpus, Spec, Training

from captune.corpus import Corpus as Index
from captune.models.captioner import Captioner
from captune.models.hub import resolve
from captune.models.loading import load_adapter
from captune.scorers import load_scorer
from captune.scorers.image.retrieval import GRC, QIR
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import TrainingConfig, load_training_images, start
from captune.training.sft import SFTConfig, SFTTrainer

QUICK = {"max_steps": 2, "limit": 24, "batch_size": 4}
Reward = Callable[..., list[float]]


def key_of(content: Any) -> str:
    """16 hexadecimal digits that stand for any JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Workshop:
    """The base captioner, the galleries, and everything trained from them.

    Args:
        base: as `Captioner.load` takes it.
        work: the folder for what can be made again.
        quick: tiny settings, to try the study itself.
    """

    def __init__(self, base: str, work: Path, *, quick: bool = False) -> None:
        self.base, self.work, self.quick = base, work, quick
        folder, digest = Path(resolve(base)), hashlib.sha256()
        for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
            if file.name != "build.json":
                digest.update(file.read_bytes())
        self.digest = digest.hexdigest()[:16]
        self._open: tuple[Corpus, Index] | None = None

    def key(self, spec: Spec) -> str:
        """What the row's result depends on, but for the images of the evaluation."""
        settings = asdict(spec.training) if spec.kind == "grpo" else dict(spec.settings)
        return key_of([self.digest, spec.kind, settings, spec.seed, self.quick])

    def load(self, adapter: Path | None = None) -> Captioner:
        return Captioner.load(self.base, adapter=adapter)

    def gallery(self, corpus: Corpus, *, judged: Sequence[Any] = ()) -> Index:
        """The newest is kept open: GRC and QIR, and row after row, share its encoders and what was searched."""
        if self.quick:
            corpus = Corpus(40, corpus.text, corpus.image)
        if self._open is None or self._open[0] != corpus or judged:
            self._open = (corpus, gallery(corpus, self.work, base=self.base, judged=judged))
        return self._open[1]

    def adapter(self, spec: Spec) -> tuple[Path, float]:
        """The adapter of a trained row, and the seconds that its training took, now or when it was done."""
        output = self.work / "runs" / self.key(spec)
        done = output / "seconds.json"
        if not done.is_file():
            started = time.perf_counter()
            (self.supervise if spec.kind == "sft" else self.reinforce)(spec, output)
            for checkpoint in output.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            write(done, time.perf_counter() - started)
        return output / "adapter", json.loads(done.read_text())

    def supervise(self, spec: Spec, output: Path) -> None:
        """`captune sft` with its defaults."""
        flags = {"model": self.base, "output": output, "images": LABELLED, "seed": spec.seed, "overwrite": True}
        config = SFTConfig(**flags | {"save_steps": 10**6} | (QUICK if self.quick else {}))
        run_dir, captioner = start(config, "sft")
        images = load_training_images(config, references=True)
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        with captioner.share_vision():
            SFTTrainer.fit(captioner, images, config, run_dir)
        captioner.save_adapter(run_dir.adapter)

    def reinforce(self, spec: Spec, output: Path) -> None:
        """GRPO on a row's reward."""
        training = spec.training
        begun = self.adapter(Spec("", "", "sft", spec.seed))[0] if training.start == "sft" else None
        flags = {"model": self.base, "output": output, "images": training.learn_from, "seed": spec.seed,
                 "max_steps": training.steps, "batch_size": training.images, "learning_rate": training.learning_rate,
                 "save_steps": 10**6, "overwrite": True}  # fmt: skip
        config = TrainingConfig(**flags | (QUICK if self.quick else {}))
        run_dir, captioner = start(config, "grpo")
        images = load_training_images(config)
        if begun is None:
            captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        else:
            captioner.model = load_adapter(captioner.core, begun, trainable=True)
        train_with_reward(
            captioner,
            images,
            self.rewards(training, images),
            config,
            run_dir,
            beta=training.kl,
            num_generations=training.generations,
            temperature=training.temperature,
            max_new_tokens=40,
        )
        captioner.save_adapter(run_dir.adapter)

    def rewards(self, training: Training, images: Any) -> list[tuple[Reward, float]]:
        """Equation (3) with beta = 1, its parts apart."""
        if training.reward == "length":
            return [(load_scorer("length"), 1.0)]
        parts = self.measures(training.corpus, f"?own={int(training.own)}&distinct={int(training.distinct)}")
        chosen = [parts[name] for name in REWARDS[training.reward]]
        return [(wrong_image(part, images) if training.wrong_image else part, 1.0) for part in chosen]

    def measures(self, corpus: Corpus, argument: str | None = None) -> dict[str, Any]:
        """The scorers of a gallery, with the paper's K = 5."""
        index = self.gallery(corpus)
        return {"grc": GRC(argument, corpus=index), "qir": QIR(argument, corpus=index)}


def wrong_image(reward: Any, images: Any) -> Reward:
    """The reward of each caption as if it were said of another image: always the same one, and never its own."""
    order = list(range(len(images)))
    random.Random(0).shuffle(order)
    names = images["image_id"]
    other = {names[i]: j for i, j in zip(order, [*order[1:], order[0]], strict=True)}  # one cycle through all

    def judge(completions: list[Any], *, image_id: list[str], **_: Any) -> list[float]:
        places = [other[name] for name in image_id]
        return reward(completions, image=[images[i]["image"] for i in places], image_id=[names[i] for i in places])

    judge.__name__ = f"{reward.name}_of_another_image"
    return judge


def write(file: Path, content: Any) -> None:
    """JSON, in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(content))
    partial.replace(file)
