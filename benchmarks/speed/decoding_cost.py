"""What a caption costs with every decoder, beside one forward pass of a trained captioner; what ZeroCap gains.

    python -m benchmarks.speed.decoding_cost [--adapter RUN/adapter] [--output benchmarks/speed/decoding_cost.json]

Cost. Each decoder captions the same 16 pictures of storybook:val in one batch; the decoders take turns, and the median
of the turns is kept: `cpu` is the processor's time per caption, which other work on the machine disturbs less than the
clock's (`wall`). One forward pass is the trained captioner reading its own greedy caption beside the picture, without a
cache: what it costs to score a caption, and what each guided *token* costs ZeroCap several times over. ZeroCap's model
is half as large as the captioner and sees no picture itself.

Every candidate. ZeroCap as the paper asks, on 2 of the pictures: one turn takes minutes for 16.

Batch. ZeroCap one picture at a time, on the same 16.

Gain. CLIPScore of ZeroCap against the same language model unguided, on storybook:test: 95% paired bootstrap. The
encoder that guides is the one that scores, as in the paper's own tables, so this says that guidance guides, not that
captions are better; CIDEr-D and exact facts, which it does not see, stand beside it.

Curve (decoding_guidance.json). CLIPScore, CIDEr-D and facts over guidance scales, greedy, on storybook:val?n=128:
classifier-free guidance, and contrastive decoding with alpha = scale - 1, which is the same with a plausibility
constraint. Scale 1 is plain decoding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import _lib
from captune import storybook
from captune.decoding import load_decoder
from captune.decoding.zerocap import ZeroCapModel
from captune.evaluation.statistics import paired
from captune.models.captioner import Captioner
from captune.scorers import load_scorer

DECODERS = ("cfg:2.0", "contrastive:1.0", "best-of:8:clip", "zerocap")
EVERY_CANDIDATE = "zerocap:?min_p=0"  # as the paper asks: CLIP reads the 512 best tokens, plausible or not
FEW = 2  # pictures for that
SCALES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)


def contenders(captioner: Captioner, pair: ZeroCapModel, images: list[Any]) -> dict[str, tuple[Callable[[], Any], int]]:
    """What is timed, by name, and how many captions it makes."""
    captions = captioner.generate(images)

    def forward() -> None:
        with torch.no_grad():
            batch = captioner.prepare(images, captions)
            batch.pop("caption_mask")
            captioner.model(**batch, use_cache=False)

    def decoded(spec: str) -> Callable[[], Any]:
        decoder = load_decoder(spec)
        return lambda: decoder(pair if spec.startswith("zerocap") else captioner, images)

    def one_by_one() -> None:
        decoder = load_decoder("zerocap")
        for image in images:
            decoder(pair, [image])

    jobs = {
        "one forward pass": forward,
        "greedy": lambda: captioner.generate(images),
        **{spec: decoded(spec) for spec in DECODERS},
        "the language model alone": lambda: pair.generate(images),
        "zerocap, one at a time": one_by_one,
    }
    every = load_decoder(EVERY_CANDIDATE)
    return {name: (job, len(images)) for name, job in jobs.items()} | {
        EVERY_CANDIDATE: (lambda: every(pair, images[:FEW]), FEW)
    }


def cost(captioner: Captioner, pair: ZeroCapModel, repeats: int) -> dict[str, Any]:
    """Seconds per caption: medians of the turns."""
    images = list(storybook.load("val", 16, seed=3)["image"])
    jobs = contenders(captioner, pair, images)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, (job, captions) in jobs.items():
            started = time.process_time(), time.perf_counter()
            job()
            if turn:  # the first is for warming up
                ended = time.process_time(), time.perf_counter()
                taken[name].append(((ended[0] - started[0]) / captions, (ended[1] - started[1]) / captions))
    medians = {name: [statistics.median(column) for column in zip(*own, strict=True)] for name, own in taken.items()}
    unit = medians["one forward pass"][0]
    rows = {
        name: {"cpu ms": round(1e3 * cpu, 2), "wall ms": round(1e3 * wall, 2), "forward passes": round(cpu / unit, 1)}
        for name, (cpu, wall) in medians.items()
    }
    return {
        "pictures": len(images),
        "repeats": repeats,
        "per caption": rows,
        "zerocap: one at a time over a batch of 16": {
            kind: round(medians["zerocap, one at a time"][i] / medians["zerocap"][i], 2)
            for i, kind in enumerate(("cpu", "wall"))
        },
    }


def figures(captions: list[str], data: Any) -> dict[str, float]:
    """Corpus figures of the captions: CLIPScore, CIDEr-D, facts, words."""
    columns = {name: list(data[name]) for name in ("image", "references", "scene")}
    found: dict[str, float] = {}
    for spec in ("clip", "cider", "storybook", "length"):
        scorer = load_scorer(spec)
        found |= scorer.corpus(scorer.measure(captions, columns))
    kept = ("clip", "cider", "fact_precision", "fact_recall", "words", "length")
    return {key: round(float(found[key]), 4) for key in kept if key in found}


def gain(pair: ZeroCapModel, n: int) -> dict[str, Any]:
    """ZeroCap against the unguided language model on storybook:test."""
    data = storybook.load("test", n)
    images = list(data["image"])
    scorer, decoder = load_scorer("clip"), load_decoder("zerocap")
    guided = [caption for start in range(0, n, 16) for caption in decoder(pair, images[start : start + 16])]
    alone = pair.generate(images)
    compared = paired(scorer.rows(guided, image=images), scorer.rows(alone, image=images), scorer)
    return {
        "images": f"storybook:test?n={n}",
        "zerocap": figures(guided, data),
        "the language model alone": figures(alone, data),
        "CLIPScore difference": round(compared.difference["clip"], 4),
        "95% interval": [round(end, 4) for end in compared.interval["clip"]],
        "p": round(compared.p_value["clip"], 5),
        "examples": guided[:4],
    }


def curve(captioner: Captioner, n: int) -> list[dict[str, Any]]:
    """The figures at every guidance scale."""
    data = storybook.load("val", n)
    images, points = list(data["image"]), []
    for scale in SCALES:
        for spec in (f"cfg:{scale:g}", f"contrastive:{scale - 1:g}"):
            if scale > 1 or spec.startswith("cfg"):
                captions = load_decoder(spec)(captioner, images)
                points.append({"decoder": spec, "scale": scale, **figures(captions, data), "example": captions[0]})
    return points


def page(result: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> str:
    """The Markdown beside the JSON."""
    cost, gain = result["cost"], result["gain"]
    ratio = cost["zerocap: one at a time over a batch of 16"]
    lines = [
        "# What a caption costs with every decoder",
        "",
        f"{cost['pictures']} pictures of storybook:val in one batch, one thread, medians of {cost['repeats']} turns; "
        f"the trained captioner: {result['trained captioner']}; load {result['load']} on {result['cores']} cores. "
        "Made by `python -m benchmarks.speed.decoding_cost`; its head says what is measured.",
        "",
        "| | processor ms per caption | wall ms | in forward passes |",
        "|---|---:|---:|---:|",
    ]
    for name, row in cost["per caption"].items():
        lines.append(f"| {name} | {row['cpu ms']} | {row['wall ms']} | {row['forward passes']} |")
    low, high = gain["95% interval"]
    lines += [
        "",
        f"ZeroCap one picture at a time costs {ratio['cpu']} x the processor time per picture of a batch of 16 "
        f"({ratio['wall']} x on the clock).",
        "",
        f"On {gain['images']} ZeroCap's CLIPScore is {gain['CLIPScore difference']} [{low}, {high}] above that of the "
        "language model alone:",
        "",
        "| | CLIPScore | CIDEr-D | facts, precision | recall |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in ("the language model alone", "zerocap"):
        own = gain[name]
        lines.append(f"| {name} | {own['clip']} | {own['cider']} | {own['fact_precision']} | {own['fact_recall']} |")
    for name, points in curves.items():
        lines += ["", f"Guidance on storybook:val, the {name} captioner:", ""]
        lines += ["| decoder | CLIPScore | CIDEr-D | facts, precision | recall |", "|---|---:|---:|---:|---:|"]
        for own in points:
            facts = f"{own['fact_precision']} | {own['fact_recall']}"
            lines.append(f"| {own['decoder']} | {own['clip']} | {own['cider']} | {facts} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="of the trained captioner (default: the base as it is shipped)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--test", type=int, default=200, help="pictures of storybook:test for ZeroCap's gain")
    parser.add_argument("--val", type=int, default=128, help="pictures of storybook:val for the curve")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/speed/decoding_cost.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    captioner = Captioner.load("storybook", adapter=args.adapter, device="cpu")
    captioner.merge_adapter()
    pair = ZeroCapModel.load("storybook-lm", "storybook-clip", device="cpu")
    curves = {"base": curve(Captioner.load("storybook", device="cpu"), args.val)}
    if args.adapter:
        curves["supervised"] = curve(captioner, args.val)
    where = args.output.with_name("decoding_guidance.json")
    where.write_text(json.dumps({"images": f"storybook:val?n={args.val}", "curves": curves}, indent=1) + "\n")
    result = {
        "cost": cost(captioner, pair, args.repeats),
        "gain": gain(pair, args.test),
        "trained captioner": "storybook, supervised adapter merged" if args.adapter else "storybook",
        **_lib.machine(),
    }
    _lib.write(result, page(result, curves), args.output)


if __name__ == "__main__":
    main()
