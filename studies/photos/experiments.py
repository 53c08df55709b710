"""What is compared: the rows of `experiments.yaml`, a line each of the study's tables. Nothing is run here.

A row is stage 1 of `captune har` at the settings named; `choices` is judged on the 100 images for choices, and the row
that was chosen there is trained again with other seeds and judged on the 100 test images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies._lib.rows import Row, read

PARTS = {"image_encoder": "efficientnet-lite2", "language_model": "smollm2-135m"}
BAR = 0.27  # CIDEr-D on test, median of the seeds


@dataclass(frozen=True, kw_only=True)
class System(Row):
    """One row of the study.

    Args:
        settings: of `captune har`, stage 1; "texts: given" stands for the captions without images of the command.
        images: the split of images that are learnt from.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    images: str = "train"

    def runs(self) -> dict[str, dict[str, Any]]:
        """The row as a file for `captune har --config`; its images are the user's."""
        return {"har": {**PARTS, **self.settings}}


ROWS = read(Path(__file__).with_suffix(".yaml"), System)
