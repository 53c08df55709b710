"""The folders of the embedded models; the entry points of `captune.models` point here, and so does `model_path`."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent / "models"
CAPTIONER = MODELS / "storybook"
CLIP = MODELS / "storybook-clip"
LANGUAGE_MODEL = MODELS / "storybook-lm"
