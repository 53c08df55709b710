"""Trains one row of the study with the library's own parts, as `captune vizer` and `captune sft` do.

Differences to the command line: nothing is captioned or reported here, and what several rows share (the captions that
a mapper is fitted on, the fitted mapper) is made once per base and kept in `work/`, keyed by all that it depends on.
"""

# ruff: noqa: SIM905

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from captune.cli.config import build
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper
from captune.scorers import load_scorer
from captune.scorers.image.vizer_mapper import ViZerScorer
from captune.training.config import TrainingConfig
from captune.training.lifecycle import load_training_images, start_run
from captune.training.sft.train import SFTConfig
from captune.training.vizer.config import PRESETS, ViZerConfig
from captune.training.vizer.mapper_fit import fit_mapper
from captune.training.vizer.objectives import ViZerTrainer
from captune.training.vizer.train import captions_for_mapper, mapper_images, train_by_reward
from studies._lib import train
from studies._lib.train import UNSAVED, clean, cycle, key_of, on_wrong_image, once, supervise

from .experiments import ROWS, Spec

# What does not decide a result. The model is in the key by the digest of its weights.
NOT_IN_KEY = "prompt model output evaluation eval_images overwrite save_steps device report_to".split()
# In the key of every row; `guidance` where on; others, younger than the first rows, where not at their default.
KEYED = """images seed limit max_steps batch_size gradient_accumulation_steps learning_rate warmup_steps weight_decay
    lora_r lora_alpha lora_dropout dtype width depth feature pool caption_pool blind centred whitened shift preset
    objective mapper_captions mapper_size mapper_samples mapper_epochs mapper_learning_rate rounds beta
    repetition_weight num_generations temperature max_new_tokens""".split()
MAPPER_FIELDS = (
    "mapper_captions", "mapper_size", "mapper_samples", "guidance", "temperature", "max_new_tokens", "limit", "seed",
)  # fmt: skip
QUICK = {"max_steps": 2, "limit": 24, "batch_size": 4, "save_steps": 2}
QUICK_VIZER = {"num_generations": 2, "mapper_samples": 2, "mapper_epochs": 1, "max_new_tokens": 8}


class Bench(train.Bench):
    """One base captioner and everything trained from it with one seed."""

    def __init__(self, base: str, seed: int, work: Path, *, quick: bool = False) -> None:
        super().__init__(base, work, quick=quick)
        self.seed, self.label = seed, Path(base).name

    def config(self, spec: Spec) -> TrainingConfig:
        """The method's config with the spec's settings, presets applied as on the command line."""
        flags = {"model": self.base, "output": self.work, "seed": self.seed, **UNSAVED, **spec.settings}
        if self.quick:
            flags |= QUICK if spec.kind == "sft" else QUICK | QUICK_VIZER
            flags |= {name: min(8, value) for name, value in spec.settings.items() if name == "whitened"}
        config = build(ViZerConfig, flags, presets=PRESETS) if spec.kind == "vizer" else build(SFTConfig, flags)
        config.output = self.work / "runs" / self.key(spec, config)
        return config

    def key(self, spec: Spec, config: TrainingConfig | None = None) -> str:
        """What the row's result depends on, but for the images of the evaluation."""
        if config is None and spec.trains:
            config = self.config(spec)
        settings = spec.settings
        if config is not None:
            default = {f.name: 0.0 if f.name == "guidance" else f.default for f in fields(config)}
            settings = {name: value for name, value in asdict(config).items() if name not in NOT_IN_KEY}
            settings = {name: v for name, v in settings.items() if name in KEYED or v != default[name]}
        seeded = spec.kind in ("best_of", "probe")
        return key_of([self.digest, spec.kind, spec.reward, settings, self.seed if seeded else None])

    def trained(self, spec: Spec) -> tuple[Path, Mapper | None, float]:
        """The adapter of a row, its mapper, and the seconds that training took, now or when it was done."""
        config = self.config(spec)
        seconds = once(config.output / "seconds.json", lambda: self.train(spec, config))
        mapper = self.mapper(self.load(), config)[0] if isinstance(config, ViZerConfig) else None
        return config.output / "adapter", mapper, seconds

    def train(self, spec: Spec, config: TrainingConfig) -> float:
        """Trains and leaves the adapter in the config's output; the seconds it took, the mapper's fit included."""
        run_dir, captioner = start_run(config, spec.kind)
        images = load_training_images(config, references=spec.kind == "sft")
        mapper, seconds = None, 0.0
        if isinstance(config, ViZerConfig) and config.objective != "reward":
            mapper, seconds = self.mapper(captioner, config)
        started = time.perf_counter()
        if mapper is not None:
            torch.manual_seed(config.seed)  # as `captune vizer` does
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        if isinstance(config, SFTConfig):
            supervise(captioner, images, config, run_dir)
        elif isinstance(config, ViZerConfig) and mapper is None:
            if spec.reward == "length":  # which has no use for the mapper
                config = replace(config, mapper_size=128, mapper_samples=1)
            train_by_reward(captioner, config, run_dir, images, lambda scorer: reward_of(spec.reward, scorer, images))
        elif isinstance(config, ViZerConfig):
            with captioner.share_vision():
                ViZerTrainer.fit(captioner, images, config, run_dir, mapper=mapper, **config.trainer_settings())
        captioner.save_adapter(run_dir.adapter)
        clean(run_dir.path)
        return seconds + time.perf_counter() - started

    def mapper(self, captioner: Captioner, config: ViZerConfig) -> tuple[Mapper, float]:
        """The fitted mapper of a config and the seconds its captions and its fit took, now or when it was made."""
        settings = asdict(config.mapper_config()) | {name: getattr(config, name) for name in MAPPER_FIELDS}
        settings |= {"epochs": config.mapper_epochs, "lr": config.mapper_learning_rate, "images": config.images}
        folder = self.work / "mappers" / key_of([self.digest, settings])

        def fit() -> dict[str, float]:
            captions, images, seconds = self.mapper_captions(captioner, config)
            started = time.perf_counter()
            more = {"epochs": config.mapper_epochs, "lr": config.mapper_learning_rate, "seed": config.seed}
            mapper, losses = fit_mapper(captioner, images, captions, config.mapper_config(), **more)
            mapper.save(folder)
            seconds += time.perf_counter() - started
            return {"seconds": seconds, "loss": losses[-1], "first": losses[0]}

        seconds = once(folder / "done.json", fit)["seconds"]
        return Mapper.load(folder).to(captioner.device), seconds

    def mapper_captions(self, captioner: Captioner, config: ViZerConfig) -> tuple[list[list[str]], Any, float]:
        """The captions that the mapper is fitted on, with their images and the seconds that writing them took."""
        images = mapper_images(config, load_training_images(config))
        if not config.zero_label:
            return list(images["references"]), images, 0.0
        settings = {name: getattr(config, name) for name in MAPPER_FIELDS}

        def write() -> dict[str, Any]:
            started = time.perf_counter()
            captions = captions_for_mapper(captioner, images, config)
            return {"seconds": time.perf_counter() - started, "captions": captions}

        file = self.work / "mapper-captions" / f"{key_of([self.digest, settings, config.images])}.json"
        content = once(file, write)
        return content["captions"], images, content["seconds"]

    def judge(self, captioner: Captioner, mapper: Mapper | None = None) -> ViZerScorer:
        """By a row's own mapper; rows without one are judged by a mapper fitted on the base's plain samples."""
        if mapper is None:
            config = self.config(ROWS["choices"][0])
            assert isinstance(config, ViZerConfig)
            mapper = self.mapper(captioner, config)[0]
        return ViZerScorer(captioner=captioner, mapper=mapper)


def reward_of(kind: str, mapper: ViZerScorer, images: Any) -> Callable[..., list[float]]:
    """The reward function of a run. "wrong image": each image has another one, always the same and never itself."""
    if kind == "wrong image":
        return on_wrong_image(mapper, images, cycle(len(images["image_id"])))
    return load_scorer("length") if kind == "length" else mapper
