"""Trains a row with the commands' own functions, stage by stage; a stage that several rows have is trained once.

Time is the processor time of this process; with one thread (the study sees to it) that is the time of one core.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.training.har import train as har
from captune.training.scst import train as scst
from captune.training.sft import train as sft
from captune.utils.hashing import fingerprint
from studies._lib.train import UNSAVED, clean, once

from .experiments import PARTS, TRAIN, System

QUICK = {
    "sft": {"max_steps": 2, "batch_size": 4},
    "scst": {"max_steps": 2, "batch_size": 4, "max_new_tokens": 8},
    "har": {"mle_steps": 2, "mle_batch_size": 4, "scst_steps": 2, "scst_batch_size": 4, "max_new_tokens": 8},
}


@dataclass
class Trained:
    model: str  # a folder, or a name
    adapter: Path | None
    seconds: list[float]  # of each stage


def train(row: System, base: str, digest: str, seed: int, work: Path, *, quick: bool) -> Trained:
    """Runs the stages that were not run for another row already; what an unfinished one left is removed.

    `digest` is that of the base's weights.
    """
    made = Trained(base, None, [])
    for index, (method, settings) in enumerate(row.stages):
        past = [list(stage) for stage in row.stages[: index + 1]]
        run = work / "runs" / fingerprint(json.dumps([digest, seed, quick, past], sort_keys=True))
        before = made

        def stage(run: Path = run, method: str = method, settings: Any = settings, before: Trained = before) -> float:
            shutil.rmtree(run, ignore_errors=True)
            started = time.process_time()
            run_stage(method, settings, before, run, seed, quick=quick)
            clean(run)
            return round(time.process_time() - started, 1)

        seconds = once(run / "seconds.json", stage)
        model = str(run / "captioner") if method == "har" else base
        made = Trained(model, run / "adapter", [*made.seconds, seconds])
    if row.captions == "first stage":
        made.adapter = None
    return made


def run_stage(method: str, settings: dict[str, Any], before: Trained, run: Path, seed: int, *, quick: bool) -> None:
    """What the command of that name does, on few validation images, since the study has images of its own."""
    common = {"images": f"{TRAIN}?n=24" if quick else TRAIN, "eval_images": "storybook:val?n=16"}
    common |= {"output": run, "seed": seed, **UNSAVED, **settings, **(QUICK[method] if quick else {})}
    if method == "har":
        har.run(har.HARConfig(**PARTS, **common))
    elif method == "sft":
        sft.run(sft.SFTConfig(model=before.model, **common))
    else:
        scst.run(scst.SCSTConfig(model=before.model, adapter=before.adapter, **common))
