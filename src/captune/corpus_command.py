"""``captune corpus build``: the verb's flags, and what it calls and prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_corpus(p: argparse.ArgumentParser) -> None:
    from captune.corpus.encoders import DEFAULT_IMAGE_ENCODER, DEFAULT_TEXT_ENCODER
    from captune.corpus.index import INDEXES

    actions = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    b = actions.add_parser("build", help="make a corpus of a captioned source", allow_abbrev=False)
    b.add_argument("--captions", required=True, metavar="SOURCE", help="images with captions, such as storybook:train")
    b.add_argument("--output", type=Path, required=True, help="the folder to make; an unfinished corpus is continued")
    b.add_argument("--text-encoder", default=DEFAULT_TEXT_ENCODER, metavar="NAME",
                   help=f"a sentence-transformers or CLIP-like model (default: {DEFAULT_TEXT_ENCODER}; CIM's: "
                        "sentence-transformers/all-mpnet-base-v2)")  # fmt: skip
    b.add_argument("--image-encoder", default=DEFAULT_IMAGE_ENCODER, metavar="NAME",
                   help=f"a CLIP-like or vision model (default: {DEFAULT_IMAGE_ENCODER}, for storybook's pictures; "
                        "CIM's: laion/CLIP-ViT-H-14-laion2B-s32B-b79K)")  # fmt: skip
    b.add_argument("--index", choices=list(INDEXES), default="flat",
                   help="flat is exact; ivf and hnsw add an approximate index (default: flat)")  # fmt: skip
    b.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    b.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    b.add_argument("--overwrite", action="store_true", help="start afresh where a corpus lies already")


def run_corpus(args: argparse.Namespace) -> int:
    from captune.corpus import Corpus

    corpus = Corpus.build(args.captions, args.output, text_encoder=args.text_encoder, image_encoder=args.image_encoder,
                          index=args.index, batch_size=args.batch_size, overwrite=args.overwrite,
                          device=args.device)  # fmt: skip
    skipped = corpus.config["skipped"]
    left_out = f"; {skipped:,} images left out, see {args.output / 'skipped.jsonl'}" if skipped else ""
    print(f"{args.output}: {len(corpus):,} captions of {len(corpus.image_ids):,} images{left_out}")
    print(f"to score with it: --scorers grc:{args.output},qir:{args.output}", file=sys.stderr)
    return 1 if skipped else 0
