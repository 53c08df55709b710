"""Captioning many images: peak memory by the number of images, and the start of a resume over very many captions.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scale_memory --work /tmp/scale [--output benchmarks/speed/scale_memory]

A stand-in captioner says the same of every image, so that what is measured is the job. Every figure is of a fresh
process: its peak resident size (of `/proc`, since `getrusage` begins a child with the size of its parent), and seconds
from its first line.

- memory: folders of 1,000 and 100,000 images of 8 x 8 pixels, captioned from the start, with torch loaded as it is in
  ``captune caption``, and without it (a captioner that is elsewhere); each is then resumed with nothing left to do.
- resume: a caption file of 1,500,000 captions, its companion with the contents of the images, and a `datasets.Dataset`
  of as many rows and 64 more, in an Arrow file, whose images are files (1,000 different ones, each looked at for every
  row that names it). The start is over when the first batch of the 64 reaches the captioner.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
FOLDERS = (1_000, 100_000)
CAPTIONS, LEFT = 1_500_000, 64
CAPTION = "a brown dog runs across the green field with a red ball in its mouth"


def megabytes(what: str = "VmHWM") -> int:
    """The peak so far of this process; or RssFile: how much of its size now are pages of files, which others share."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) // 1024


class StandIn:
    """A captioner without a model; notes when it is first asked."""

    name, prompt, first = "stand-in", "Describe this image.", 0.0
    processor, peak, files = 0.0, 0, 0

    def generate(self, images: list[Any], **_: Any) -> list[str]:
        """The same for every image."""
        if not self.first:
            self.first, self.processor = time.perf_counter() - STARTED, time.process_time()
            self.peak, self.files = megabytes(), megabytes("RssFile")
        return [CAPTION] * len(images)


def child(kind: str, source: str, output: str) -> dict[str, Any]:
    """One job; prints its figures."""
    if kind == "torch":
        importlib.import_module("torch")
    from captune.inference.job import caption_source

    imports = megabytes()
    captioner, images = StandIn(), source
    if source.endswith(".arrow"):
        from datasets import Dataset

        images = Dataset.from_file(source)
    report = caption_source(captioner, images, output, progress=False)
    figures = {"imports MB": imports, "peak MB": megabytes(), "seconds": round(time.perf_counter() - STARTED, 1),
               "made": report.done, "kept": report.skipped}  # fmt: skip
    start = {"start s": round(captioner.first, 1), "start CPU s": round(captioner.processor, 1),
             "start MB": captioner.peak, "start MB of files": captioner.files} if report.done else {}  # fmt: skip
    return figures | start


def run(kind: str, source: Path, output: Path) -> dict[str, Any]:
    """A job in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.scale_memory", "--child", kind, str(source), str(output)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def images(folder: Path, count: int) -> list[Path]:
    """Different images of 8 x 8 pixels, a thousand to a subfolder."""
    from PIL import Image

    paths = [folder / f"{index // 1000:04d}" / f"{index:07d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", (8, 8), (index % 256, index // 256 % 256, index // 65536)).save(path)
    return paths


def finished(work: Path, count: int) -> tuple[Path, Path]:
    """A caption file of `count` captions as the job leaves it, and its source, which has `LEFT` images more."""
    import numpy as np
    import pyarrow as pa
    from datasets import Features, Image, Value

    from captune.inference.contents import content_of
    from captune.inference.job import job_settings
    from captune.utils.files import jsonl_line

    source, output = work / f"images-{count}.arrow", work / f"caps-{count}.jsonl"
    paths = [str(path) for path in images(work / "few", 1000)]
    ids = [f"train/{index // 1000:04d}/{index:07d}.png" for index in range(count + LEFT)]
    files = pa.array(paths).take(pa.array(np.arange(len(ids)) % 1000))
    column = pa.StructArray.from_arrays([pa.nulls(len(ids), pa.binary()), files], names=["bytes", "path"])
    schema = Features({"image": Image(decode=False), "image_id": Value("string")}).arrow_schema
    with pa.ipc.new_stream(str(source), schema) as writer:
        writer.write_table(pa.Table.from_arrays([column, pa.array(ids)], schema=schema))
    contents = [content_of(path, Path(path).read_bytes()) for path in paths]
    with output.open("w") as captions, output.with_name(f"{output.name}.images.jsonl").open("w") as companion:
        for index in range(count):
            captions.write(jsonl_line({"image_id": ids[index], "caption": f"{CAPTION}, number {index}"}))
            companion.write(jsonl_line({"image_id": ids[index], **contents[index % 1000]._asdict()}))
    settings = job_settings(StandIn(), None, None, {}, None)
    output.with_name(f"{output.name}.settings.json").write_text(json.dumps(settings))
    return source, output


def measure(work: Path, captions: int, folders: tuple[int, ...]) -> dict[str, Any]:
    """All figures."""
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in ("torch", "plain"):
        for count in folders:
            folder, output = work / f"folder-{count}", work / f"folder-{count}-{kind}.jsonl"
            images(folder, count)
            for stale in work.glob(f"{output.name}*"):
                stale.unlink()
            for again in (False, True):
                rows.append({"torch": kind == "torch", "images": count, "resumed": again, **run(kind, folder, output)})
    source, output = finished(work, captions)
    start = {}
    for kind in ("plain", "torch"):
        copy = work / f"resumed-{kind}" / output.name
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        for path in work.glob(f"{output.name}*"):
            shutil.copy(path, copy.with_name(path.name))
        start[kind] = run(kind, source, copy)
    return {
        "captions": captions,
        "memory": rows,
        "resume": start,
        "load": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["# Captioning many images: memory and the start of a resume", ""]
    lines += ["`python -m benchmarks.speed.scale_memory`", ""]
    rows, ratios = [], []
    for torch in (True, False):
        for resumed in (False, True):
            job = f"{'nothing left to do' if resumed else 'from the start'}, {'with' if torch else 'without'} torch"
            found = [row for row in result["memory"] if row["torch"] == torch and row["resumed"] == resumed]
            rows += [(f"{r['images']:,}", job, r["peak MB"], r["imports MB"], r["seconds"]) for r in found]
            ratios.append(f"- {job}: {found[-1]['peak MB'] / found[0]['peak MB']:.2f} times")
    lines += table(("images", "job", "peak MB", "of these imports", "seconds"), rows)
    lines += [*ratios, ""]
    lines += [f"Start of a resume over {result['captions']:,} captions, until a batch reaches the captioner:", ""]
    head = (
        "torch",
        "seconds",
        "of the processor",
        "peak MB",
        "of these imports",
        "pages of files",
        "whole job: s",
        "MB",
    )
    names = ("start s", "start CPU s", "start MB", "imports MB", "start MB of files", "seconds", "peak MB")
    resumes = result["resume"].items()
    lines += table(
        head, [("yes" if kind == "torch" else "no", *(row[name] for name in names)) for kind, row in resumes]
    )
    busy = " (other work was running)" if result["load"] > 1.5 else ""
    return "\n".join([*lines, f"{result['cores']} cores, load {result['load']}{busy}.", ""])


def main() -> None:
    """Measure, or be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument("--folders", type=int, nargs=2, default=FOLDERS)
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    result = measure(args.work, args.captions, tuple(args.folders))
    if args.output:
        args.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
