"""`captune detect`: the objects that images show, into a file."""

from __future__ import annotations

import argparse

from captune.cli.command import COUNT, SEVERAL, Command, echo, hide_loading_bars, number
from captune.errors import UsageError

SHARE = number(float, 0, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune detect`."""
    required = parser.add_argument_group("required")
    required.add_argument(
        "--model",
        required=True,
        help="an .onnx file (YOLOX, YOLOv5 to v11, DETR, RT-DETR), a folder of transformers, or a name on the hub",
    )
    required.add_argument("--images", required=True, metavar="SOURCE", help="the images (see below)")
    required.add_argument(
        "--output", required=True, metavar="FILE", help="the .jsonl file to write or resume, or - for standard output"
    )
    found = parser.add_argument_group("objects")
    found.add_argument(
        "--threshold", type=SHARE, default=0.3, metavar="X", help="leave out what scores less (default: 0.3)"
    )
    found.add_argument(
        "--nms",
        type=SHARE,
        metavar="X",
        help="of two boxes of a class whose overlap (IoU) is larger, leave out the weaker; 1: none (default: 0.45 for "
        "YOLOX to YOLOv8, 1 for YOLOv10 and DETR, which give each object once)",
    )
    job = parser.add_argument_group("job")
    job.add_argument("--overwrite", action="store_true", help="start again: replace the output")
    job.add_argument("--limit", type=COUNT, metavar="N", help="use only the first N images")
    job.add_argument("--shard", metavar="I/N", help="only every N-th image from the I-th, for several machines")
    job.add_argument("--batch-size", type=SEVERAL, default=8, metavar="N", help="images at a time (default: 8)")
    job.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best available; for .onnx cpu)")


def run(args: argparse.Namespace) -> int:
    """Find the objects; 1 where some images could not be read."""
    from captune.models.detectors import check_detector
    from captune.utils.files import is_stream, output_path

    if "://" in args.images:
        raise UsageError(f"{args.images} is an address: copy the images, and name the copy")
    if not is_stream(args.output):  # before the libraries are imported, which takes seconds
        output_path(args.output, ".jsonl", what="detections")
    check_detector(args.model)
    if args.shard is not None:
        from captune.data.sources import sharded

        args.images = sharded(args.images, args.shard)
    from captune.inference.detect import detect_to_file

    hide_loading_bars()
    report = detect_to_file(
        args.model,
        args.images,
        args.output,
        threshold=args.threshold,
        nms=args.nms,
        device=args.device,
        batch_size=args.batch_size,
        limit=args.limit,
        overwrite=args.overwrite,
    )
    for image, why in report.bad:
        echo(f"skipped {image}: {why}")
    echo(report.sentence())
    return 1 if report.bad else 0


COMMAND = Command(
    summary="find the objects of images, for the scorers that take detections as evidence",
    description="Finds the objects of every image of a source with a detector, in batches, and writes a line of JSON "
    "for each image: image_id, its size, and its objects with label, score and box (x0, y0, x1, y1 in pixels). After "
    "an interruption the same command resumes. Unreadable images are skipped, named and counted, and the exit code is "
    "then 1. The scorers detected and chair read the file.",
    example="captune detect --model yolox_nano.onnx --images photos --output detections.jsonl",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
