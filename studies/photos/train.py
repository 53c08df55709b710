"""Trains the rows by the commands' own functions; what several rows start from, or are judged by, is made once.

A training that was stopped goes on from its last checkpoint. Time is the processor time of this process.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from transformers import set_seed

from captune.corpus import Corpus
from captune.data import load_images, read_jsonl
from captune.models.captioner import Captioner
from captune.models.prefix_captioner import assemble
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.training.grpo import train as grpo
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.har.config import HARConfig
from captune.training.lifecycle import load_training_images, make_trainable, start_run
from captune.training.monitor.held_out import FILE as WATCH
from captune.training.scst import train as scst
from captune.training.sft import train as sft
from captune.training.sft.config import SFTConfig
from captune.training.vizer import train as vizer
from captune.training.vizer.config import ViZerConfig
from captune.utils.files import replacing_folder
from captune.utils.hashing import fingerprint
from studies._lib.train import clean, cycle, on_wrong_image, once, picked

from .data import Photos
from .experiments import CAPTIONERS, OWN, PARTS, ROWS, SAMPLES, System, penalised, settings_of, watch_of

SAVE_STEPS = 20
ASSEMBLED = ("image_encoder", "language_model", "num_prefix_tokens", "image_feature", "whole_image", "begin_token")
TINY = {"image_encoder": "storybook-clip", "language_model": "storybook-lm"}
SMALL = {"lora_r": 2, "lora_alpha": 4}
SAMPLED = {"num_generations": 2, "max_new_tokens": 6}
QUICK: dict[str, dict[str, Any]] = {
    "har": {"mle_steps": 2, "mle_batch_size": 2, **SMALL},
    "sft": {"max_steps": 2, "batch_size": 2, "image_views": 1, **SMALL},
    "scst": {"scst_steps": 1, "scst_batch_size": 2, **SAMPLED},
    "grpo": {"max_steps": 1, "batch_size": 2, "eval_steps": 1, "gate_images": 2, **SAMPLED, **SMALL},
    "vizer": {
        "max_steps": 1, "batch_size": 2, "gate_images": 2, "mapper_size": 4, "mapper_epochs": 1, "whitened": 2,
        **SAMPLED, **SMALL,
    },
}  # fmt: skip


class Trained(NamedTuple):
    model: Path  # the captioner's folder
    adapter: Path | None
    run: Path | None  # of the row's own training
    seconds: float  # of the row's own training


class Workshop:
    """Makes captioners, corpora and mappers in the work folder of the photos, or finds them there.

    Args:
        photos: the images.
        texts: captions without photos, for what reads such.
        chosen: the reward that stands for `BEST_SUM`.
    """

    def __init__(self, photos: Photos, texts: Path | None, chosen: Callable[[System], str]) -> None:
        self.photos, self.texts, self.chosen = photos, texts, chosen

    def folder(self, *content: Any) -> Path:
        key = fingerprint(json.dumps([*content, self.photos.quick], sort_keys=True))
        return self.photos.work / "runs" / key

    # -- captioners ----------------------------------------------------------------------------------------------------

    def har(self, settings: dict[str, Any], images: str, seed: int, **more: Any) -> HARConfig:
        """The config of `captune har` whose stage 1 is a captioner of the study."""
        parts = TINY if self.photos.quick else PARTS
        run = self.folder(settings, images, seed)
        settings = {**parts, **settings}
        if settings.get("texts") == "given":
            if self.texts is None:
                raise SystemExit("name the captions without photos: --texts FILE")
            settings["texts"] = str(self.texts)
        if self.photos.quick:
            settings |= QUICK["har"] | ({"text_steps": 1} if "texts" in settings else {})
        sources = {"images": self.photos.split(images), "eval_images": self.photos.split("watched")}
        return HARConfig(output=run, seed=seed, save_steps=SAVE_STEPS, **sources, **{**settings, **more})

    def stage_1(self, settings: dict[str, Any], images: str, seed: int) -> Trained:
        """The captioner after stage 1, merged, in `captioner/` of its run."""
        config = self.har(settings, images, seed)
        stage, run = config.stage_1(), Path(config.output)
        parts, merged = Path(stage.model), run / "captioner"
        if not merged.is_dir() and not (parts / "processor_config.json").is_file():
            set_seed(seed)
            model, processor = assemble(**{name: getattr(config, name) for name in ASSEMBLED})
            with replacing_folder(parts) as folder:
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
        seconds = once(run / "seconds.json", lambda: self._timed(run, lambda: sft.run(stage)))
        if not merged.is_dir():
            with replacing_folder(merged) as folder:
                Captioner.load(parts, adapter=stage.output / "adapter").merge(folder)
        shutil.rmtree(parts, ignore_errors=True)  # half a gigabyte that is made again where it is missing
        return Trained(merged, None, stage.output, seconds)

    def base(self, row: System) -> Trained:
        """What the row starts from."""
        if row.kind == "har":
            return self.stage_1(row.settings, row.images, row.seed)
        return self.stage_1(CAPTIONERS[row.images], row.images, row.seed)

    def trained(self, row: System) -> Trained:
        """The captioner of a row; the base's, where it trains nothing."""
        base = self.base(row)
        if row.kind == "har" or not row.trains:
            return base
        content = {**row.depends(), "reward": self.chosen(row)}
        run = self.folder(content, row.seed)
        seconds = once(run / "seconds.json", lambda: self._timed(run, lambda: self.run(row, base, run)))
        return Trained(base.model, run / "adapter", run, seconds)

    def _timed(self, run: Path, train: Callable[[], object]) -> float:
        started = time.process_time()
        train()
        clean(run)
        return round(time.process_time() - started, 1)

    def run(self, row: System, base: Trained, run: Path) -> None:
        """What the row's command does; a reward that fails the gate is trained on all the same, and it is kept."""
        settings = settings_of(row) | (QUICK[row.kind] if self.photos.quick else {})
        images, watched = self.photos.split(row.learns_from), self.photos.split("watched")
        reward = self.chosen(row)
        if row.kind == "scst":
            settings |= {"reward": self.filled(reward, row), "accept_reward": True}
            stage = self.har(CAPTIONERS[row.images], row.images, row.seed, **settings).stage_2()
            scst.run(replace(stage, output=run, images=images))
            return
        common = {"model": str(base.model), "output": run, "images": images, "eval_images": watched, "seed": row.seed}
        common |= {"save_steps": SAVE_STEPS, **settings}
        if row.kind == "sft":
            sft.run(SFTConfig(**common))
        elif row.kind == "grpo":
            expression = penalised(self.filled(reward, row))
            watch = self.filled(watch_of(reward), row)
            grpo.run(CaptionGRPOConfig(reward=expression, watch=watch, accept_reward=True, **common))
        elif row.wrong_image:
            wrong_image(ViZerConfig(accept_reward=True, **common))
        else:
            vizer.run(ViZerConfig(accept_reward=True, **common))

    # -- what judges ---------------------------------------------------------------------------------------------------

    def filled(self, text: str, row: System) -> str:
        """A reward or a decoder with its places filled; what is named there is made where it is missing."""
        found = {name: self.place(name, row) for name in replace(row, reward=text, decoder="").places}
        return text.format(**found)

    def place(self, name: str, row: System) -> Path:
        """What a place stands for."""
        if name == "pair":
            return self.photos.pair()
        if name == "base":
            return self.base(row).model
        if name == "watched":
            return self.photos.detections("watched")
        if name == "detections":
            return self.photos.detections("test" if row.kind == "scorer" else row.learns_from)
        if name == "mapper":
            rows = ROWS["kin" if row.kin else "zero"]
            (fitted,) = [other for other in rows if other.kind == "vizer" and not other.wrong_image]
            run = self.trained(replace(fitted, seed=row.seed)).run
            assert run is not None
            return RunDir(run).mapper
        return self.corpus(name, row)

    def corpus(self, name: str, row: System) -> Path:
        """A corpus of the captioned images of `few`, or of the captioner's own captions; the pair encodes both."""
        pair = str(self.photos.pair())
        if name == "few":
            folder = self.photos.work / "corpus"
            Corpus.build(self.photos.split("few"), folder, text_encoder=pair, image_encoder=pair, progress=False)
            return folder
        base = self.base(row).model
        folder = base.parent / "corpus"

        def build() -> int:
            images: Any = load_images(self.photos.split("unlabelled"))
            images = images.select(range(min(OWN, len(images))))
            set_seed(row.seed)
            judge, captioner = load_scorer(f"clip:{pair}"), Captioner.load(base)
            texts = picked(captioner, images["image"], judge, SAMPLES, batch_size=16, max_new_tokens=24)
            images = images.remove_columns([c for c in images.column_names if c not in ("image", "image_id")])
            source = images.add_column("references", [[text] for text in texts])
            Corpus.build(source, folder, text_encoder=pair, image_encoder=pair, overwrite=True, progress=False)
            return len(images)

        once(base.parent / "corpus.json", build)
        return folder


def wrong_image(config: ViZerConfig) -> None:
    """`captune vizer` with a reward that judges each caption as that of another image, always the same."""
    run_dir, captioner = start_run(config, "vizer")
    images = load_training_images(config)
    make_trainable(captioner, config)
    other = cycle(len(images))

    def reward(mapper: Any) -> Any:
        return on_wrong_image(mapper, images, other)

    vizer.train_by_reward(captioner, config, run_dir, images, reward, monitored=True)
    captioner.save_adapter(run_dir.adapter)


def watched(run: Path) -> dict[str, Any]:
    """What the run's gate and its monitor said, without the paths that a reward's name has."""
    found: dict[str, Any] = {"evaluations": 0, "alerts": [], "reward": quarters(run)}
    if (run / WATCH).is_file():
        rows = read_jsonl(run / WATCH)
        found["evaluations"] = len(rows)
        keys = ("figure", "since", "text")
        found["alerts"] = [
            {"step": row["step"], **{key: alert[key] for key in keys}} for row in rows for alert in row["alerts"]
        ]
    if gate := RunDir(run).gate:
        found["gate"] = {key: gate[key] for key in ("passed", "problems", "notes")}
    return found


def quarters(run: Path) -> list[float]:
    """The reward on the photos that a run learns from: means of its first and of its last quarter."""
    rewards = [row["reward"] for row in RunDir(run).metrics() if row.get("reward") is not None]
    quarter = max(1, len(rewards) // 4)
    return [round(fmean(part), 5) for part in (rewards[:quarter], rewards[-quarter:])] if rewards else []
