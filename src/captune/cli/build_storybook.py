"""`captune build-storybook`: the embedded models, trained again."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from captune.cli.command import SEED, Command
from captune.utils.files import output_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune build-storybook`."""
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where the models go (default: into the package, in place)"
    )
    parser.add_argument("--only", choices=["captioner", "clip", "lm"], help="build this one (default: all)")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="random seed (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Train the models and print what each measured."""
    from captune.storybook import MODELS, clip, language_model, train

    logging.getLogger("captune").setLevel(logging.INFO)
    folder = output_path(args.output, what="models", folder=True) if args.output else MODELS
    if args.only in (None, "captioner"):
        print(json.dumps(train.build(train.BuildConfig(seed=args.seed), folder / "storybook"), indent=1))
    if args.only in (None, "clip"):
        print(json.dumps(clip.build(clip.ClipConfig(seed=args.seed), folder / "storybook-clip"), indent=1))
    if args.only in (None, "lm"):
        config = language_model.LanguageModelConfig(seed=args.seed)
        print(json.dumps(language_model.build(config, folder / "storybook-lm"), indent=1))
    return 0


COMMAND = Command(
    summary="train the embedded models again, from nothing",
    description="Trains the captioner, the CLIP-style encoder and the language model that captune ships, on the CPU. "
    "All three take about twenty-five minutes on two cores.",
    example="captune build-storybook --output /tmp/models",
    add_arguments=add_arguments,
    run=run,
)
