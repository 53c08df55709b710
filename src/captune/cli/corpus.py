"""`captune corpus build`: a retrieval corpus out of a captioned source."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.cli.command import SEVERAL, Command, echo, hide_loading_bars
from captune.errors import UsageError
from captune.utils.files import output_path
from captune.utils.ray_pool import check_ray
from captune.utils.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune corpus build`."""
    parser.add_argument("action", choices=["build"], help="encode a captioned source, or resume a build")
    parser.add_argument("--captions", required=True, metavar="SOURCE", help="images with captions (see below)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the corpus to write")
    encoders = "default: all-MiniLM-L6-v2, for storybook storybook-clip"
    parser.add_argument("--text-encoder", metavar="MODEL", help=f"a sentence encoder, or a CLIP ({encoders})")
    parser.add_argument("--image-encoder", metavar="MODEL", help="CLIP, SigLIP, DINOv2, ... (default: storybook-clip)")
    parser.add_argument("--index", choices=["flat", "ivf", "hnsw"], default="flat", help="default: flat, exact search")
    parser.add_argument("--batch-size", type=SEVERAL, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best available)")
    parser.add_argument("--engine", choices=["process", "ray"], default="process", help="ray: by several workers")
    parser.add_argument("--ray-workers", type=SEVERAL, metavar="N", help="default: one for each GPU, else 2")
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of a cluster, or auto (default: this machine)")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that was made with other settings")


def run(args: argparse.Namespace) -> int:
    """Build the corpus; 1 where images could not be read."""
    if args.engine == "ray":
        check_ray(args.ray_address)
    elif args.ray_workers is not None or args.ray_address is not None:
        raise UsageError("--ray-workers and --ray-address are for --engine ray")
    from captune.corpus import Corpus

    output_path(args.output, what="corpora", folder=True)
    hide_loading_bars()
    encoders = {name: getattr(args, name) for name in ("text_encoder", "image_encoder") if getattr(args, name)}
    corpus = Corpus.build(
        args.captions,
        args.output,
        index=args.index,
        batch_size=args.batch_size,
        device=args.device,
        overwrite=args.overwrite,
        engine=None if args.engine == "process" else args.engine,
        workers=args.ray_workers,
        address=args.ray_address,
        **encoders,
    )
    skipped = corpus.config["skipped"]
    echo(
        f"done: {counted(len(corpus), 'caption')} of {counted(len(corpus.image_ids), 'image')}, "
        f"{counted(skipped, 'image')} skipped"
    )
    print(f"corpus: {args.output}")
    return 1 if skipped else 0


COMMAND = Command(
    summary="build a retrieval corpus, for the scorers grc and qir",
    description="`captune corpus build` encodes every caption and image of a source into a folder that grc:FOLDER and "
    "qir:FOLDER search. The same command resumes a build that was stopped. The exit code is 1 when images could not be "
    "read.",
    example="captune corpus build --captions storybook:train --output runs/corpus",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
