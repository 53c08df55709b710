"""A method's reward before training: bound to the captioner, checked against the images, its statistics frozen."""

from __future__ import annotations

from functools import partial
from typing import Any

from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import check_needs
from captune.scorers.expression import Expression


def prepare_reward(
    reward: Expression, images: Any, run_dir: RunDir, captioner: Captioner, *, end_token: bool | None = None
) -> None:
    """Bind a reward to the captioner, check it against the images, and freeze what must not change during training.

    CIDEr's document frequencies, where the expression names no file of them, are those of the training images'
    references; they are kept in the run directory.

    Args:
        reward: an expression of scorers.
        images: the training images, a dataset.
        run_dir: the run.
        captioner: what is trained.
        end_token: whether the end of a caption is a word where a scorer counts words; None leaves what the spec says.

    Raises:
        MissingColumn: the images lack what a scorer needs.
        ScorerError: what a scorer runs on is missing, or what its file says of one of the images.
    """
    for part, _ in reward.parts:
        part.bind(captioner, end_token=end_token)
    check_needs([reward], {name: images[name] for name in images.column_names}, len(images))
    reward.check()
    if "image_id" in images.column_names:
        reward.check_images(list(images["image_id"]))
    for part, _ in reward.parts:
        if part.needs_fit:
            run_dir.when_begun(partial(part.fit(images["references"]).save, run_dir.path / part.fitted_file))
