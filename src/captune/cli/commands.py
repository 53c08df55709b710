"""What each verb of the command line takes and does: ``add_<verb>`` names its flags, ``run_<verb>`` calls and prints.

Answers go to stdout, progress and warnings to stderr. Each function imports what it needs, so that no verb waits for
another's libraries.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from captune.cli.config import add_fields, build
from captune.errors import UsageError

METHODS = {
    "vizer": ("captune.training.vizer.train", "ViZerConfig"),
    "sft": ("captune.training.sft", "SFTConfig"),
    "grpo": ("captune.training.grpo.train", "RewardConfig"),
    "scst": ("captune.training.scst", "SCSTConfig"),
    "har": ("captune.training.har", "HARConfig"),
    "sc-captioner": ("captune.training.sc_captioner", "SCConfig"),
}


def say(sentence: str) -> None:
    """Something for the person, not for a pipe."""
    print(sentence, file=sys.stderr)


def hush_transformers() -> None:
    """No bars for reading and writing weights; those of downloads, of training and of captune's own work stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def add_caption(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", help="a folder, a hub name, or storybook")
    p.add_argument("--adapter", type=Path, help="a PEFT adapter folder, such as runs/g/adapter")
    p.add_argument("--images", required=True, metavar="SOURCE", help="what to caption (see below)")
    p.add_argument("--decoder", metavar="SPEC", help="cfg:2.0, contrastive:0.5, best-of:8:clip, self-correct, zerocap")
    p.add_argument("--language-model", metavar="NAME", help="for zerocap, in place of --model: storybook-lm, gpt2, ...")
    p.add_argument("--image-encoder", metavar="NAME", help="for zerocap: storybook-clip, openai/clip-vit-base-patch32")
    p.add_argument("--prompt", metavar="TEXT", help="the text beside the image (default: the model family's)")
    p.add_argument("--output", type=Path, required=True, help="the JSONL file to write; an existing one is continued")
    p.add_argument("--overwrite", action="store_true", help="start the output afresh instead of continuing it")
    p.add_argument("--limit", type=int, metavar="N", help="caption only the first N images")
    p.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="longest caption (default: the family's)")
    p.add_argument("--num-beams", type=int, default=1, metavar="N", help="beam search width (default: 1, greedy)")
    p.add_argument("--temperature", type=float, metavar="X", help="sample at this temperature instead")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed for sampling (default: 0)")
    p.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    p.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    p.add_argument("--trust-remote-code", action="store_true", help="run Python code that the model's folder brings")


def run_caption(args: argparse.Namespace) -> int:
    from captune.inference.job import caption_to_file

    hush_transformers()
    sampling = {"do_sample": True, "temperature": args.temperature} if args.temperature is not None else {}
    report = caption_to_file(
        args.model,
        args.images,
        args.output,
        adapter=args.adapter,
        prompt=args.prompt,
        decoder=args.decoder,
        language_model=args.language_model,
        image_encoder=args.image_encoder,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        overwrite=args.overwrite,
        limit=args.limit,
        batch_size=args.batch_size,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        num_beams=args.num_beams,
        **sampling,
    )
    for image, why in report.bad:
        say(f"skipped {image}: {why}")
    say(report.sentence())
    return 1 if report.bad else 0


# ------------------------------------------------------------------- methods


def add_method(verb: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(p: argparse.ArgumentParser) -> None:
        module = importlib.import_module(METHODS[verb][0])
        p.add_argument("--config", type=Path, metavar="FILE", help="a YAML file with the settings below; flags win")
        add_fields(p.add_argument_group("settings"), getattr(module, METHODS[verb][1]))

    return add


def run_method(verb: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        module = importlib.import_module(METHODS[verb][0])
        config = build(getattr(module, METHODS[verb][1]), vars(args), args.config, getattr(module, "PRESETS", None))
        hush_transformers()
        folder = module.run(config).path
        say(f"done: {folder}")
        print(f"adapter: {folder / 'adapter'}")
        return 0

    return run


# ---------------------------------------------------------------- evaluation


def add_evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("captions", nargs="+", type=Path, help="caption files: JSONL or COCO results")
    p.add_argument("--references", metavar="SOURCE", help="where the references are (see below)")
    p.add_argument("--images", metavar="SOURCE", help="where the images are, when --references has none")
    p.add_argument(
        "--scorers",
        default="bleu,rouge,cider,health",
        metavar="A,B",
        help="comma-separated, or all; weighted sums such as 'cider + 0.5*rouge' are scorers too; "
        "`captune scorers` lists them (default: bleu,rouge,cider,health)",
    )
    p.add_argument("--paired", action="store_true", help="test each further file against the first, image by image")
    p.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples per interval (default: 1000)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the resampling (default: 0)")
    p.add_argument(
        "--cache",
        type=Path,
        default=Path("~/.cache/captune/scores"),
        metavar="DIR",
        help="where the judgements of costly scorers are kept, by content (default: ~/.cache/captune/scores)",
    )
    p.add_argument("--no-cache", action="store_true", help="judge everything anew and keep nothing")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run_evaluate(args: argparse.Namespace) -> int:
    from captune.evaluation.run import evaluate_files
    from captune.evaluation.table import table
    from captune.scorers import split_specs

    if args.paired and len(args.captions) < 2:
        raise UsageError("--paired needs at least two caption files: captune evaluate a.jsonl b.jsonl --paired …")
    hush_transformers()
    result = evaluate_files(
        args.captions,
        references=args.references,
        images=args.images,
        scorers=split_specs(args.scorers),
        bootstrap=args.bootstrap,
        seed=args.seed,
        paired=args.paired,
        cache=None if args.no_cache else args.cache,
    )
    for warning in result["warnings"]:
        say(f"warning: {warning}")
    print(json.dumps(result, ensure_ascii=False, indent=1) if args.json else table(result))
    for spec, why in result["failed"].items():
        say(f"{spec} could not be scored: {why}")
    return 1 if result["failed"] else 0


def add_scorers(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print one JSON object instead of a list")


def run_scorers(args: argparse.Namespace) -> int:
    from captune.scorers import describe

    rows = describe()
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return 0
    for row in rows:
        needs = " and ".join(row.needs) or "captions only"
        print(f"{row.name:<15} {row.measures}\n{'':<15} needs {needs}; {row.source}; cost: {row.cost}")
    return 0


def add_corpus(p: argparse.ArgumentParser) -> None:
    build = p.add_subparsers(dest="action", required=True, metavar="build").add_parser(
        "build", help="encode a captioned source; a build that was stopped goes on", allow_abbrev=False
    )
    build.add_argument("--captions", required=True, metavar="SOURCE", help="images with captions (see captune corpus)")
    build.add_argument("--output", type=Path, required=True, help="the corpus's folder")
    encoders = "default: all-MiniLM-L6-v2, for storybook storybook-clip"
    build.add_argument("--text-encoder", metavar="MODEL", help=f"a sentence encoder, or a CLIP ({encoders})")
    build.add_argument("--image-encoder", metavar="MODEL", help="CLIP, SigLIP, DINOv2 … (default: storybook-clip)")
    build.add_argument("--index", choices=["flat", "ivf", "hnsw"], default="flat", help="default: flat, exact search")
    build.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    build.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    build.add_argument("--overwrite", action="store_true", help="replace a corpus that was made otherwise")


def run_corpus(args: argparse.Namespace) -> int:
    from captune.corpus import Corpus

    hush_transformers()
    named = {slot: getattr(args, slot) for slot in ("text_encoder", "image_encoder") if getattr(args, slot)}
    corpus = Corpus.build(
        args.captions,
        args.output,
        index=args.index,
        batch_size=args.batch_size,
        device=args.device,
        overwrite=args.overwrite,
        **named,
    )
    left_out = corpus.config["skipped"]
    say(f"done: {len(corpus)} captions of {len(corpus.image_ids)} images, {left_out} images left out")
    print(f"corpus: {args.output}")
    return 1 if left_out else 0


# ----------------------------------------------------- report, demo, and care


def add_report(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="+", type=Path, help="run directories, in the order of the page")
    p.add_argument("--output", type=Path, default=Path("report.html"), help="the page to write (default: report.html)")


def run_report(args: argparse.Namespace) -> int:
    from captune.report import render

    for folder in args.runs:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no run directory; runs are what `captune vizer --output …` leaves behind")
    print(render(args.runs, args.output))
    return 0


def add_demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for the runs (default: runs/demo)")
    p.add_argument("--seed", type=int, default=7, metavar="N", help="seed of the training (default: 7)")
    p.add_argument("--model", default="storybook", help="the captioner (default: storybook)")
    for name, default, what in (
        ("images", "storybook:unlabelled", "unlabelled images to learn from"),
        ("labelled", "storybook:train", "images with references, for ViZer_GT's mapper and for supervision"),
        ("test", "storybook:test?n=500&seed=91", "images with references to evaluate on"),
    ):
        p.add_argument(f"--{name}", default=default, metavar="SOURCE", help=f"{what} (default: {default})")


def run_demo(args: argparse.Namespace) -> int:
    from captune.cli.demo import demo

    hush_transformers()
    sources = {"unlabelled": args.images, "labelled": args.labelled, "test": args.test}
    print(demo(args.output, model=args.model, seed=args.seed, **sources))
    return 0


def add_doctor(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print one JSON object instead of a list")


def run_doctor(args: argparse.Namespace) -> int:
    from captune.cli.doctor import examine

    checks = examine()
    if args.json:
        print(json.dumps([c._asdict() for c in checks], indent=1))
    else:
        for check in checks:
            print(check)
    return 1 if any(c.state == "missing" for c in checks) else 0


def add_storybook(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", type=Path, help="folder for the models (default: inside the package, in place)")
    p.add_argument("--only", choices=["captioner", "clip", "lm"], help="build this one (default: all)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and pictures (default: 0)")


def run_storybook(args: argparse.Namespace) -> int:
    from captune.storybook import MODELS, clip, language_model, train

    logging.getLogger("captune").setLevel(logging.INFO)
    folder = args.output or MODELS
    if args.only in (None, "captioner"):
        print(json.dumps(train.build(train.BuildConfig(seed=args.seed), folder / "storybook"), indent=1))
    if args.only in (None, "clip"):
        print(json.dumps(clip.build(clip.ClipConfig(seed=args.seed), folder / "storybook-clip"), indent=1))
    if args.only in (None, "lm"):
        config = language_model.LanguageModelConfig(seed=args.seed)
        print(json.dumps(language_model.build(config, folder / "storybook-lm"), indent=1))
    return 0
