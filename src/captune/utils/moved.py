"""Former module paths: they import what took their place, with a FutureWarning that names it."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = "captune.methods"
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
    "methods.har": "training.har",
    "methods.latent": "training.vizer.objectives",
    "methods.mapper": "training.vizer.mapper_fit",
    "methods.marks": "training.monitor.rules",
    "methods.rollouts": "training.grpo.trainer",
    "methods.sc_captioner": "training.sc_captioner",
    "methods.scst": "training.scst",
    "methods.sequences": "training.sequences",
    "methods.sft": "training.sft",
    "methods.shared_prompts": "models.caching.prompts",
    "methods.training": "training.lifecycle",
    "methods.vizer": "training.vizer.train",
    "methods.watch": "training.monitor.watch",
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


class _Moved:
    """A finder and loader of the former paths; `sys.meta_path` asks it before the files are looked at."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> object:
        if not name.startswith("captune.") or (new := MOVED.get(name[len("captune.") :])) is None:
            return None
        if name != PACKAGE:
            warnings.warn(f"{name} is now called captune.{new}", FutureWarning, stacklevel=2)
        return ModuleSpec(name, self, is_package=name == PACKAGE)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if spec.name == PACKAGE:  # a package of its own: what is imported below it becomes its attribute
            return None
        module = importlib.import_module(f"captune.{MOVED[spec.name[len('captune.') :]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ != PACKAGE and (spec := module.__spec__) is not None:
            module.__spec__ = spec.loader_state  # the import machinery has put the former path's here


def install() -> None:
    """Let the former paths import; a second call does nothing."""
    if not any(type(finder).__name__ == "_Moved" for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())  # type: ignore[arg-type]
