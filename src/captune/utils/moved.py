"""Former module paths: they import what took their place, with a FutureWarning that names it."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "answering": "models.answerers",
    "caption_job": "inference.job",
    "caption_order": "inference.order",
    "caption_settings": "inference.settings",
    "captioner": "models.captioner",
    "captioning": "models.captioner",
    "cards": "runs.card",
    "chat_server": "models.answerers.server",
    "commands": "cli",
    "corpus.encoders": "models.encoders",
    "demo": "cli.demo",
    "digests": "utils.hashing",
    "doctor": "cli.doctor",
    "encoders": "models.encoders.clip",
    "families": "models.families",
    "loading": "models.loading",
    "methods": "training",
    "methods.grpo": "training.grpo.train",
    "methods.har": "training.har.train",
    "methods.latent": "training.vizer.objectives",
    "methods.mapper": "training.vizer.mapper_fit",
    "methods.marks": "training.monitor.alert_rules",
    "methods.rollouts": "training.grpo.trainer",
    "methods.sc_captioner": "training.sc_captioner.train",
    "methods.scst": "training.scst.train",
    "methods.sequences": "training.sequences",
    "methods.sft": "training.sft.train",
    "methods.shared_prompts": "models.caching.prompts",
    "methods.training": "training.lifecycle",
    "methods.vizer": "training.vizer.train",
    "methods.watch": "training.monitor.held_out",
    "options": "cli.config",
    "prefill": "models.caching.prefill",
    "prefix": "models.prefix_captioner",
    "prefix_parts": "models.prefix_captioner.assembly",
    "prefix_processing": "models.prefix_captioner.processing",
    "preprocessing": "models.caching.preprocessing",
    "score_table": "evaluation.table",
    "scorers.bertscore": "scorers.reference.bertscore",
    "scorers.bias": "scorers.image.bias",
    "scorers.bleu": "scorers.reference.bleu",
    "scorers.cache": "evaluation.cache",
    "scorers.capture": "scorers.reference.capture",
    "scorers.chair": "scorers.reference.chair",
    "scorers.cider": "scorers.reference.cider",
    "scorers.clip": "scorers.image.clip",
    "scorers.cycle": "scorers.image.cycle",
    "scorers.diversity": "scorers.text.diversity",
    "scorers.elements": "scorers.reference.scene_graph_f1",
    "scorers.health": "scorers.text.health",
    "scorers.judge": "scorers.questions.vlm_judge",
    "scorers.meteor": "scorers.reference.meteor",
    "scorers.relation_qa": "scorers.questions.relation_qa",
    "scorers.retrieval": "scorers.image.retrieval",
    "scorers.rouge": "scorers.reference.rouge",
    "scorers.sbert": "scorers.reference.sentence_similarity",
    "scorers.self_retrieval": "scorers.image.self_retrieval",
    "scorers.species": "scorers.questions.classification",
    "scorers.spice": "scorers.reference.spice",
    "scorers.statistics": "evaluation.statistics",
    "scorers.storybook": "storybook.scorer",
    "scorers.vizer": "scorers.image.vizer_mapper",
    "text_encoders": "models.encoders.sentence",
    "versions": "utils.versions",
    "vision": "models.caching.vision",
}


#: Names that are called otherwise or stand elsewhere than in what took their module's place.
RENAMED = {
    "methods.grpo": {"RewardConfig": "training.grpo.config:CaptionGRPOConfig"},
    "methods.mapper": {
        "Mapper": "models.vizer_mapper:Mapper",
        "MapperConfig": "models.vizer_mapper:MapperConfig",
    },
    "methods.sc_captioner": {
        "SelfCorrection": "decoding.self_correct:SelfCorrection",
        "correct": "decoding.self_correct:correct",
    },
    "methods.training": {
        "TrainingConfig": "training.config:TrainingConfig",
        "CaptionerTrainer": "training.trainer:CaptionerTrainer",
    },
    "methods.vizer": {"ViZerConfig": "training.vizer.config:ViZerConfig"},
    "methods.watch": {
        "Watch": "training.monitor.held_out:HeldOutMonitor",
        "default_watch": "training.monitor.held_out:default_scorers",
    },
}


class _Moved:
    """A finder and loader of the former paths; `sys.meta_path` asks it before the files are looked at."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> object:
        old = name.removeprefix("captune.")
        if old == name or old not in MOVED:
            return None
        warnings.warn(f"{name} is now called captune.{MOVED[old]}", FutureWarning, stacklevel=2)
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # an empty module, whose names are looked up elsewhere

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.removeprefix("captune.")

        def look_up(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            place, _, new = RENAMED.get(old, {}).get(name, f"{MOVED[old]}:{name}").partition(":")
            return getattr(importlib.import_module(f"captune.{place}"), new)

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
    """Let the former paths import; a second call does nothing."""
    if not any(type(finder).__name__ == "_Moved" for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())  # type: ignore[arg-type]
