"""What does fusing by the grammar keep, and what does it let in? `captune curate fuse` on storybook's alt texts.

    python -m benchmarks.behaviour.fuse --work WORK [--output benchmarks/behaviour/fuse]

Each scene's alt text, fused with the base captioner's greedy caption (which is as noisy as the alt texts that it
learned from), with three further alt texts, or with what an expert found (FuseCap), who says of each thing kind,
colour, size and sub-kind, and the background, each right with probability q and else another value. The facts of the
set that each writer leaves, over all captions: what is not changed stays as the alt text was, as in a run.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks._lib import machine, main
from captune.curation import curate
from captune.data import load_images
from captune.models.captioner import Captioner
from captune.scorers import load_scorer
from captune.storybook.noise import alt_text
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, KINDS, SIZES, Scene
from captune.utils.files import jsonl_line

SOURCE = "storybook:val?n=300&seed=92"
VOTE, EXPERTS = "storybook?keep=vote", (1.0, 0.9, 0.7, 0.5)
ROWS: dict[str, dict[str, Any]] = {
    "with the base captioner's: union": {"model": ["storybook"], "captions": ["model"]},
    "with the base captioner's: vote": {"model": [VOTE], "captions": ["model"]},
    "with three more alt texts: union": {"model": ["storybook"], "captions": ["alt-0", "alt-1", "alt-2"]},
    "with three more alt texts: vote": {"model": [VOTE], "captions": ["alt-0", "alt-1", "alt-2"]},
    **{f"with an expert, q = {q}: union": {"model": ["storybook"], "facts": [f"expert-{q}"]} for q in EXPERTS},
    "with an expert, q = 0.9: vote": {"model": [VOTE], "facts": ["expert-0.9"]},
    "with an expert, q = 0.9: union, what is false refused": {
        "model": ["storybook"], "facts": ["expert-0.9"], "check": "nli", "least": 1.0,
    },
}  # fmt: skip
FIGURES = ("fact_precision", "fact_recall", "fact_f1", "hallucinated_per_caption")


def expert(scene: Scene, q: float, rng: random.Random) -> dict[str, Any]:
    """What an expert found in a scene."""

    def seen(value: str, values: Sequence[str]) -> str:
        return value if rng.random() < q else rng.choice([other for other in values if other != value])

    things = []
    for thing in scene.things:
        kind = seen(thing.kind, KIND_NAMES)
        words = [seen(thing.size, SIZES), seen(thing.colour, COLOURS)]
        if kind == thing.kind and thing.subkind:
            words.append(seen(thing.subkind, KINDS[kind]))
        things.append(" ".join([*words, kind]))
    return {"objects": things, "background": seen(scene.background, BACKGROUNDS)}


def texts(work: Path) -> dict[str, str]:
    """Files about the same scenes: the base captioner's captions, more alt texts of each, and what experts found."""
    rows = load_images(SOURCE)
    captioner = Captioner.load("storybook", device="cpu")
    model = dict(captioner.caption([(row["image_id"], row["image"]) for row in rows], progress=False))
    ids, scenes = rows["image_id"], [Scene.from_json(text) for text in rows["scene"]]
    said: dict[str, list[dict[str, Any]]] = {"model": [{"caption": model[image_id]} for image_id in ids]}
    for k in range(3):
        said[f"alt-{k}"] = [
            {"caption": alt_text(scene, random.Random(f"{n}/{k}"), scenes[n - 1])} for n, scene in enumerate(scenes)
        ]
    for q in EXPERTS:
        said[f"expert-{q}"] = [expert(scene, q, random.Random(f"{n}/{q}")) for n, scene in enumerate(scenes)]
    files = {}
    for name, lines in said.items():
        path = work / f"{name}.jsonl"
        path.write_text("".join(jsonl_line({"image_id": i} | line) for i, line in zip(ids, lines, strict=True)))
        files[name] = str(path)
    return files


def facts(captions: list[str], scenes: list[str]) -> dict[str, float]:
    """The figures of a set of captions."""
    judge = load_scorer("storybook")
    found = judge.corpus(judge.rows(captions, scene=scenes))
    return {name: round(found[name], 3) for name in FIGURES}


def measure(work: Path) -> dict[str, Any]:
    """Fuse in each way."""
    work.mkdir(parents=True, exist_ok=True)
    cpu = time.process_time()
    files = texts(work)
    rows = load_images(SOURCE, decode=False).remove_columns("image")
    said = [json.loads(line)["caption"] for line in Path(files["model"]).read_text().splitlines()]
    found = {
        "alt text": facts(list(rows["alt_text"]), list(rows["scene"])),
        "the base captioner's": facts(said, list(rows["scene"])),
    }
    for number, (name, settings) in enumerate(ROWS.items()):
        named = {key: [files[file] for file in settings[key]] for key in ("captions", "facts") if key in settings}
        step = {"fuse": settings | named}
        output = work / f"out-{number}"
        curate(f"{SOURCE}&caption=alt_text", output, [step], progress=False, overwrite=True)
        left = load_images(str(output / "captions.parquet"), decode=False)
        verdicts = pq.read_table(output / "decisions" / "1-fuse.parquet")["verdict"].to_pylist()
        found[name] = facts([own[0] for own in left["references"]], list(left["scene"]))
        found[name]["changed"] = round(verdicts.count("change") / len(verdicts), 3)
    return {"texts": found, "CPU seconds": round(time.process_time() - cpu), "machine": machine()}


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Fusing by the grammar", "",
        f"Exact facts of the captions of {SOURCE}; what a run does not change stays as the alt text was. Script: "
        "`benchmarks/behaviour/fuse.py`.", "",
        "| captions | precision | recall | F1 | false facts per caption | changed |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, own in result["texts"].items():
        figures = " | ".join(f"{own[figure]:.3f}" for figure in FIGURES)
        changed = f"{own['changed']:.0%}" if "changed" in own else ""
        lines.append(f"| {name} | {figures} | {changed} |")
    return "\n".join([*lines, "", f"{result['CPU seconds']} CPU seconds."]) + "\n"


if __name__ == "__main__":
    main(__doc__, measure, page)
