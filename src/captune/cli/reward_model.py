"""`captune reward-model train`: a learned preference scorer, out of pairs of captions."""

from __future__ import annotations

from pathlib import Path

from captune.cli.heads import command


def _said(folder: Path) -> str:
    from captune.models.heads import read_config
    from captune.models.reward_model import RewardConfig

    accuracy = read_config(folder, RewardConfig).accuracy
    return f"it {accuracy.sentence}" if accuracy else str(folder)


COMMAND = command(
    "reward_model",
    "RewardModelConfig",
    "reward model",
    _said,
    summary="train a scorer on pairs of a preferred and another caption",
    description="`captune reward-model train` trains a small head on a frozen CLIP's vectors that tells which of two "
    "captions of an image is preferred (Compress & Align). The folder is a scorer, reward_model:FOLDER, for filters, "
    "evaluations and rewards, and states its accuracy on pairs of images that it has not seen. The same command "
    "resumes a stopped training.",
    example="captune reward-model train --pairs pairs.parquet --output runs/reward",
)
