"""`captune encoder train`: a pair of frozen encoders with trained heads, in place of a CLIP."""

from __future__ import annotations

from pathlib import Path

from captune.cli.heads import command


def _said(folder: Path) -> str:
    from captune.models.encoders.pair import read_config

    recall = read_config(folder).recall
    return recall.sentence if recall else str(folder)


COMMAND = command(
    "encoder",
    "EncoderConfig",
    "encoder",
    _said,
    summary="train heads that make a CLIP of two frozen encoders",
    description="`captune encoder train` trains two small heads, contrastively, that bring a frozen image encoder and "
    "a frozen text encoder together. The folder loads wherever a CLIP does (clip:FOLDER, self_retrieval:FOLDER, "
    "corpora), and states its recall on images that it has not seen. The same command resumes a stopped training.",
    example="captune encoder train --images captions.txt --image-encoder efficientnet-lite2 --output runs/pair",
)
