"""Settings of the methods: each field is declared once, and a method names the defaults that it changes.

Fields are flags and YAML keys of the same name. The command line reads their metadata: `help`, `group`, `aliases`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from captune.errors import SettingError
from captune.scorers import scorer_class, split_specs
from captune.scorers.expression import parse
from captune.scorers.registry import known
from captune.utils.files import output_path
from captune.utils.spec import check_ranges

# The ranges of settings. The upper ends are far beyond what anyone uses: they catch a slip before it costs a day.
Count = Annotated[int, Field(ge=1, le=10**9)]  # of steps, images
Several = Annotated[int, Field(ge=1, le=10_000)]  # of what is in memory at once
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # numpy's range
Rate = Annotated[float, Field(gt=0, le=10)]  # of learning
Weight = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Tokens = Annotated[int, Field(ge=1, le=32_768)]

DEFAULT_SHOWN = 64  # training images that a run is judged on where there are no others


def setting(
    help: str,
    default: Any = MISSING,
    *,
    group: str = "training",
    aliases: tuple[str, ...] = (),
    empty: bool = False,
    metavar: str | None = None,
) -> Any:
    """Declare a field of a config.

    Args:
        help: one line; where it says "default", the command line adds none.
        default: the value when nothing is given; without one the field is required.
        group: the heading in ``--help``.
        aliases: former names, which work and warn.
        empty: whether an empty text is a value.
        metavar: SOURCE for a source, which is refused early where it is not there; default: by the type.
    """
    metadata = {"help": help, "group": group, "aliases": aliases, "empty": empty, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def like(config: type, name: str, **changes: Any) -> Any:
    """Declare a field like another config's, with another `default`, `help`, `group` or `aliases`."""
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    return setting(**{"default": field.default, **field.metadata, **changes})


def defaults(helps: Mapping[str, str] | None = None, /, **values: Any) -> Callable[[type], type]:
    """Return a class decorator, to stand below ``@dataclass``, that changes defaults of inherited fields.

    Args:
        helps: {field: help} where the text of an inherited field changes, too.
        values: {field: default}.
    """

    def change(config: type) -> type:
        base = dataclasses.make_dataclass("Base", [], bases=config.__bases__, kw_only=True)
        hints = get_type_hints(base, include_extras=True)
        for name in (*values, *(name for name in helps or {} if name not in values)):
            changes = {"default": values[name]} if name in values else {}
            if helps and name in helps:
                changes["help"] = helps[name]
            config.__annotations__[name] = hints[name]
            setattr(config, name, like(base, name, **changes))
        return config

    return change


def with_presets(presets: Mapping[str, Mapping[str, Any]]) -> Callable[[type], type]:
    """Return a class decorator, to stand above ``@dataclass``: the preset that a config is given fills in the rest.

    Args:
        presets: {preset: {field: value}}.
    """

    def change(config: type) -> type:
        build: Any = config.__init__  # type: ignore[misc]

        @functools.wraps(build)
        def init(self: Any, **values: Any) -> None:
            build(self, **{**presets.get(values.get("preset", ""), {}), **values})

        config.__init__ = init  # type: ignore[misc]
        return config

    return change


def flag(name: str) -> str:
    """Return the command line's name of a field."""
    return "--" + name.replace("_", "-")


def at_least(config: Any, least: int, *names: str) -> None:
    """Check that fields are not below a number.

    Raises:
        SettingError: names the first that is.
    """
    for name in names:
        if getattr(config, name) < least:
            raise SettingError(f"{flag(name)} must be at least {least}, it is {getattr(config, name)}")


@dataclass(kw_only=True)
class RunConfig:
    """Settings of every run that trains something."""

    output: Path = setting("the run directory to write", group="data")
    images: str = setting(
        "images to learn from: a folder, a file, a dataset, storybook:unlabelled", group="data", metavar="SOURCE"
    )
    limit: Count | None = setting("use only the first N images", None, group="data")
    eval_images: str | None = setting(
        "images to caption before and after; default: storybook:val for storybook, else 64 of --images (a "
        "tenth of fewer than 640), which are not trained on",
        None,
        group="data",
        metavar="SOURCE",
        aliases=("evaluation",),
    )
    overwrite: bool = setting("replace another run in --output", False, group="data")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "precision of the weights; auto: as saved", "auto", group="model"
    )
    device: str | None = setting("cpu, cuda, ...; default: the best there is", None, group="model")
    load_in_4bit: bool = setting("load the frozen weights in 4 bits (needs bitsandbytes)", False, group="model")
    lora_r: Several = setting("rank of LoRA", 32, group="adapter")
    lora_alpha: Several = setting("alpha of LoRA", 64, group="adapter")
    lora_dropout: Share = setting(
        "dropout of a new LoRA; of --adapter its own; none in scst and sc-captioner", 0.1, group="adapter"
    )
    train_all_weights: bool = setting(
        "train all weights of the language model instead of LoRA; the run holds model/, a transformers folder, too",
        False,
        group="adapter",
        aliases=("full",),
    )
    cache_features: bool = setting(
        "encode each image once, by itself, and keep its features for all of training (1 GiB of them); without it, "
        "images of a batch are encoded together, whose last bits depend on each other",
        False,
    )
    seed: Seed = setting("random seed", 0)
    gradient_accumulation_steps: Several = setting("batches per optimiser step", 1)
    save_steps: Count = setting("steps between checkpoints", 50, group="logging")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "where metrics go besides metrics.jsonl", "none", group="logging"
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SettingError: one is out of range, or needs a package that is not installed.
        """
        if not self.images:
            raise SettingError("missing required option: --images, a folder, a file, a dataset name or storybook:SPLIT")
        output_path(self.output, what="runs", folder=True)
        try:
            check_ranges(self)
        except ValueError as error:
            raise SettingError(str(error)) from error
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise SettingError(
                f"--report-to {self.report_to} needs the package {self.report_to!r}, which is not installed: "
                f"pip install {self.report_to}"
            )


@dataclass(kw_only=True)
class TrainingConfig(RunConfig):
    """Settings of every method that trains one captioner."""

    model: str = setting("a folder, a hub name, or storybook", group="model")
    adapter: Path | None = setting(
        "a PEFT adapter folder to continue from, with its own LoRA shape", None, group="model"
    )
    prompt: str | None = setting(
        "the text beside the image; default: that of --adapter, else the family's", None, group="model", empty=True
    )
    max_steps: Count = setting("optimiser steps", 100)
    batch_size: Several = setting("images per step", 16)
    learning_rate: Rate = setting("peak learning rate of AdamW, reached by warm-up, then cosine decay", 5e-4)
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = setting("steps until the peak", 10)
    weight_decay: Weight = setting("AdamW's weight decay", 0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_all_weights and self.adapter is not None:
            raise SettingError("--train-all-weights trains no adapter: merge --adapter into the model first")
        if self.train_all_weights and self.load_in_4bit:
            raise SettingError("--train-all-weights cannot train weights that --load-in-4bit quantises")


@dataclass(kw_only=True)
class RLConfig(TrainingConfig):
    """Settings of every method that samples captions and learns from what they are worth."""

    num_generations: Several = setting("captions sampled per image", 8, group="sampling")
    temperature: Annotated[float, Field(ge=1e-3, le=100)] = setting(
        "temperature of the sampled captions", 1.0, group="sampling"
    )
    max_new_tokens: Tokens = setting("longest caption in tokens", 40, group="sampling")
    beta: Weight = setting("weight of KL to the captioner that training starts from", 0.0, group="reward")
    gate_images: Annotated[int, Field(ge=2, le=10_000)] = setting(
        "training images on which the reward is checked before training: real caption > template >= empty one, real > "
        "another image's",
        32,
        group="reward",
    )
    accept_reward: bool = setting("train on a reward that fails that check, too", False, group="reward")


@dataclass(kw_only=True)
class RewardedConfig(RLConfig):
    """Settings of the methods whose reward is an expression of scorers."""

    reward: str = setting("a scorer or a weighted sum: 'cider + 0.5*clip - 0.1*length'", "", group="reward")
    watch: str = setting(
        "held-out scorers, which are not part of the reward: clip,self_retrieval; or none; default: clip on storybook, "
        "else cider where it is not rewarded and --eval-images has references, else health metrics alone",
        "auto",
        group="monitor",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reward:
            raise SettingError("missing required option: --reward, a scorer or a weighted sum: 'cider + 0.5*clip'")
        for spec in parse(self.reward):
            scorer_class(spec)
        for spec in split_specs(self.watch) if self.watch not in ("auto", "none") else ():
            known(spec)  # of a pipeline, too, before its first stage


@dataclass(kw_only=True)
class HeadsConfig:
    """Settings of what trains small heads on frozen encoders."""

    output: Path = setting("the folder to write", group="data")
    features: Path | None = setting(
        "a folder that keeps the frozen encoders' vectors for trainings with other settings; default: in --output, and "
        "removed at the end",
        None,
        group="data",
    )
    overwrite: bool = setting("replace another run in --output", False, group="data")
    device: str | None = setting(
        "of the frozen encoders: cpu, cuda, ...; default: the best there is", None, group="model"
    )
    dropout: Share = setting("dropout of the frozen vectors", 0.3)
    max_steps: Count = setting("optimiser steps", 120)
    batch_size: Several = setting("examples per step", 256)
    learning_rate: Rate = setting(
        "learning rate of AdamW: a cosine decay from it over all steps, times a linear warm-up", 1e-3
    )
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = setting("steps of the warm-up", 20)
    weight_decay: Weight = setting("AdamW's weight decay", 0.1)
    eval_steps: Count = setting("steps between two looks at what chooses the step, each with a checkpoint", 20)
    patience: Several = setting("looks without a better figure after which training stops", 5)
    seed: Seed = setting("random seed", 0)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SettingError: one is missing or out of range.
        """
        for field in dataclasses.fields(self):
            if field.default is MISSING and not str(getattr(self, field.name)).strip():
                raise SettingError(f"missing required option: {flag(field.name)}")
        output_path(self.output, what="runs", folder=True)
        try:
            check_ranges(self)
        except ValueError as error:
            raise SettingError(str(error)) from error
