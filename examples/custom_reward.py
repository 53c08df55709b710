r"""A scorer of your own, as a metric and as the reward of a short GRPO run.

    python examples/custom_reward.py runs/colours

The same from the command line:

    captune grpo --model storybook --images storybook:unlabelled \
      --reward examples/custom_reward.py:Colours --accept-reward --output runs/colours

It does not look at the image, so the gate before training would refuse it: `--accept-reward` trains on it all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from captune.scorers import Scorer

COLOURS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"}


class Colours(Scorer):
    """Different colour words per caption."""

    name = "colours"
    source, cost = "this example", "below 0.1 ms"
    higher_is_better: ClassVar = {"colours": True}
    labels: ClassVar = {"colours": "colour words"}

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """(N, 1): what each caption adds to the corpus figure."""
        return np.array([[len(COLOURS & set(caption.lower().split()))] for caption in captions], dtype=float)


def main(output: str) -> None:
    """Train the embedded captioner to mention colours, a few steps long."""
    from captune.cli.main import main as captune

    reward = f"{Path(__file__).resolve()}:Colours"
    sources = ["--images", "storybook:unlabelled?n=64", "--eval-images", "storybook:val?n=32"]
    settings = ["--reward", reward, "--accept-reward", "--max-steps", "4", "--seed", "7", "--output", output]
    raise SystemExit(captune(["grpo", "--model", "storybook", *sources, *settings]))


if __name__ == "__main__":
    main(sys.argv[1])
