"""`captune caption`: images into a caption file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from captune.cli.command import COUNT, DTYPES, SEED, SEVERAL, Command, echo, hide_loading_bars, number
from captune.errors import UsageError

if TYPE_CHECKING:
    from captune.inference.job import CaptionReport

NAMED = 20  # bad images of a large job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune caption`."""
    required = parser.add_argument_group("required")
    required.add_argument(
        "--model", help="a folder, a name on the hub, storybook, or a server: http://host:port/v1#name"
    )
    required.add_argument("--images", required=True, metavar="SOURCE", help="the images (see below)")
    required.add_argument(
        "--output",
        metavar="FILE",
        help="the caption file to write or resume, or - for standard output; one image's caption is printed without",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--format",
        metavar="NAME",
        help="of --output: jsonl (.jsonl, .ndjson), coco (.json), csv (.csv, .tsv), parquet, webdataset (.tar), "
        "metadata (metadata.jsonl, metadata.csv); default: by its name; of a stream jsonl, csv, tsv, or "
        "text: a caption per line",
    )
    files.add_argument(
        "--sidecar",
        metavar=".txt",
        choices=(".txt", ".caption"),
        help="write NAME.txt or NAME.caption beside each image instead of --output; those there are kept",
    )
    files.add_argument(
        "--output-folder", type=Path, metavar="FOLDER", help="put the sidecars here, in the images' tree"
    )
    files.add_argument("--prefix", default="", metavar="TEXT", help='put before each caption, such as "ohwx, "')
    files.add_argument("--suffix", default="", metavar="TEXT", help="put behind each caption")
    job = parser.add_argument_group("job")
    job.add_argument("--adapter", type=Path, metavar="FOLDER", help="a PEFT adapter, such as runs/g/adapter")
    job.add_argument("--overwrite", action="store_true", help="start again: replace the output or the sidecars")
    job.add_argument("--shard", metavar="I/N", help="caption only every N-th image from the I-th, for several machines")
    job.add_argument(
        "--engine",
        metavar="NAME",
        help="process (default), server (for an http:// model), vllm, or ray: several workers, here or on a cluster, "
        "into a folder of parts (ray:vllm: each holds vLLM)",
    )
    job.add_argument("--requests", type=SEVERAL, metavar="N", help="requests at a server at once (default: 16)")
    job.add_argument("--limit", type=COUNT, metavar="N", help="caption only the first N images")
    job.add_argument("--batch-size", type=SEVERAL, default=32, metavar="N", help="images at a time (default: 32)")
    job.add_argument(
        "--workers", type=SEVERAL, metavar="N", help="images that are read and decoded at a time (default: 1)"
    )
    job.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="precision of the weights (default: auto, as saved)"
    )
    job.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best available)")
    job.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    text = parser.add_argument_group("generation")
    text.add_argument(
        "--prompt", metavar="TEXT", help="the text beside the image (default: the adapter's, or the family's)"
    )
    text.add_argument(
        "--condition",
        metavar="COLUMN=VALUE",
        help="of an adapter that was trained with captune sft --condition: what to caption under, such as level=7 "
        "(default: the highest)",
    )
    text.add_argument(
        "--max-new-tokens",
        type=number(int, 1, 32_768),
        metavar="N",
        help="longest caption (default: the model family's)",
    )
    text.add_argument(
        "--num-beams",
        type=number(int, 1, 100),
        default=1,
        metavar="N",
        help="width of beam search (default: 1, greedy)",
    )
    text.add_argument(
        "--temperature",
        type=number(float, 1e-3, 100),
        metavar="X",
        help="sample at this temperature (default: do not sample)",
    )
    text.add_argument("--seed", type=SEED, default=0, metavar="N", help="random seed of sampling (default: 0)")
    text.add_argument(
        "--decoder", metavar="SPEC", help="cfg:2.0, contrastive:0.5, best-of:8:clip, self-correct or zerocap"
    )
    ray = parser.add_argument_group("engine ray", "--output is a folder then, or an address such as s3://bucket/caps")
    ray.add_argument("--ray-workers", type=SEVERAL, metavar="N", help="default: one for each GPU, else 2")
    ray.add_argument("--ray-address", metavar="HOST:PORT", help="of a cluster, or auto (default: this machine)")
    ray.add_argument(
        "--part-size", type=COUNT, metavar="N", help="images of a part, a multiple of 16 batches (default: 16 to 256)"
    )
    zerocap = parser.add_argument_group(
        "decoder zerocap", "captions without a captioner: give these instead of --model"
    )
    zerocap.add_argument("--language-model", metavar="NAME", help="gpt2, smollm2-135m, storybook-lm, ...")
    zerocap.add_argument("--image-encoder", metavar="NAME", help="storybook-clip, openai/clip-vit-base-patch32, ...")


def run(args: argparse.Namespace) -> int:
    """Caption the images; 1 where some could not be read."""
    from captune.inference.engines import ray_engine

    by_ray, args.engine = ray_engine(args.engine)
    output, format = _parts(args) if by_ray else _output(args)
    _engine(args)
    if args.condition is not None:
        from captune.models.condition import prompt_under

        if args.prompt is not None:
            raise UsageError("--condition brings the prompt that the adapter was trained with: leave --prompt out")
        args.prompt = prompt_under(args.adapter, args.condition, args.model)
    if args.shard is not None:
        from captune.data.sources import sharded

        args.images = sharded(args.images, args.shard)
    sampling = {"do_sample": True, "temperature": args.temperature} if args.temperature is not None else {}
    caption: Callable[..., CaptionReport]
    if by_ray:
        from captune.inference.ray_engine import caption_to_parts as caption

        files = {"workers": args.ray_workers, "address": args.ray_address, "part_size": args.part_size}
    else:
        from captune.inference.job import caption_to_file as caption

        files = {"sidecar": args.sidecar, "output_folder": args.output_folder, "workers": args.workers or 1}
    hide_loading_bars()
    report = caption(
        args.model,
        args.images,
        output,
        format=format,
        **files,
        prefix=args.prefix,
        suffix=args.suffix,
        adapter=args.adapter,
        prompt=args.prompt,
        decoder=args.decoder,
        language_model=args.language_model,
        image_encoder=args.image_encoder,
        dtype=args.dtype,
        device=args.device,
        engine=args.engine,
        requests=args.requests,
        trust_remote_code=args.trust_remote_code,
        overwrite=args.overwrite,
        limit=args.limit,
        batch_size=args.batch_size,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        num_beams=args.num_beams,
        **sampling,
    )
    shown = report.bad[:NAMED] if by_ray else report.bad
    for image, why in shown:
        echo(f"skipped {image}: {why}")
    if len(report.bad) > len(shown):
        echo(f"and {len(report.bad) - len(shown)} more, in manifest.json")
    echo(report.sentence())
    if args.sidecar is not None and report.skipped and (args.prefix or args.suffix):
        echo(f"{args.sidecar} files that were there are as they were, without this text; --overwrite replaces them")
    return 1 if report.bad else 0


def _engine(args: argparse.Namespace) -> None:
    """Refuse what the engine cannot do before torch is loaded, and before a server is asked."""
    from captune.inference.engines import check_engine, pick_engine

    check_engine(
        pick_engine(args.engine, args.model),
        args.model,
        decoder=args.decoder,
        adapter=args.adapter,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        requests=args.requests,
        num_beams=args.num_beams,
    )


def _parts(args: argparse.Namespace) -> tuple[str, str | None]:
    """The folder of --engine ray and the format of its parts; what does not fit is refused before torch is loaded."""
    from captune.data.parts import check_part_size, parts_format
    from captune.utils.files import is_stream, output_path
    from captune.utils.ray_pool import check_ray
    from captune.utils.remote import check_address, is_address

    if args.workers is not None:
        raise UsageError("--engine ray opens images in its own workers: leave --workers out, and see --ray-workers")
    check_ray(args.ray_address)
    _decoder(args)
    if args.sidecar is not None or args.output_folder is not None:
        raise UsageError(
            "--engine ray writes a folder of parts, not sidecars: name it with --output, then captune convert"
        )
    if args.output is None or is_stream(args.output):
        raise UsageError("--engine ray writes a folder of parts: name it with --output FOLDER")
    if args.output.lower().startswith("memory://"):
        raise UsageError(
            f"{args.output} is memory that ends with this command: name a folder, or a bucket such as s3://"
        )
    if Path(args.output).suffix.lower() in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tar"):
        raise UsageError(
            f"--engine ray writes a folder of parts, not {args.output}: name a folder; --format says what its parts are"
        )
    parts_format(args.format)
    check_part_size(args.part_size, args.batch_size)
    if is_address(args.output):
        check_address(args.output)
    else:
        output_path(args.output, what="captions", folder=True)
    if is_address(args.images):
        check_address(args.images)
    return args.output, args.format


def _decoder(args: argparse.Namespace) -> None:
    if args.decoder is not None:
        from captune.decoding import DECODERS

        DECODERS.canonical(args.decoder.strip().partition(":")[0])


def _output(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """Where the captions go and in which format; what is wrong with the flags is refused before torch is loaded."""
    from captune.data.caption_formats import output_format

    _decoder(args)
    for flag in ("ray_workers", "ray_address", "part_size"):
        if getattr(args, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')} is for --engine ray")
    if "://" in args.images:
        raise UsageError(f"{args.images}: addresses are read with --engine ray; or copy the images, and name the copy")
    if args.sidecar is not None:
        if args.output is not None:
            raise UsageError("--sidecar writes beside the images, --output into one file: give one of the two")
        if args.format is not None:
            raise UsageError(f"--sidecar writes a caption to a file, as text: leave --format {args.format} out")
        return None, None
    if args.output_folder is not None:
        raise UsageError("--output-folder is for sidecars: add --sidecar .txt, or name a file with --output")
    if args.output is None:
        from captune.data.images import IMAGE_SUFFIXES

        if os.path.isfile(args.images) and Path(args.images).suffix.lower() in IMAGE_SUFFIXES:
            return "-", args.format or "text"
        raise UsageError("say where the captions go: --output FILE, --output - or --sidecar .txt")
    output_format(args.output, args.format)
    return args.output, args.format


COMMAND = Command(
    summary="caption images with any model, into a file or beside the images",
    description="Captions every image of a source, in batches, and writes each batch as it is made. After an "
    "interruption the same command resumes. Unreadable images are skipped, named and counted, and the exit code is "
    "then 1.",
    example="captune caption --model storybook --images storybook:test --output caps.jsonl",
    add_arguments=add_arguments,
    run=run,
    reads_sources=True,
)
