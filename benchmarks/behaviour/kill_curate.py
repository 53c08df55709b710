"""Kills a curation at random moments until it is done: the same bytes as one that nobody disturbed, no caption lost.

    python -m benchmarks.behaviour.kill_curate --output benchmarks/behaviour/kill_curate
    python -m benchmarks.behaviour.kill_curate --workers 2 --kills 20

The steps: a scorer that reads images and texts, equal captions and equal images, captions to other images by an encoder
of both, half of the images captioned again, long captions split, levels. Parts are made small, so that there are many.
A driver gets SIGKILL, a third of them at a random time of the first second, the others once some parts more are made,
and a little later; then the same command again, and so on. With workers, a third of the kills are theirs. When the set
is written, its files have to be those of the undisturbed run, to the byte, and another round begins, until the kills
are done. In every step's decisions the kept, dropped, changed, moved and split captions have to be those that came in.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.behaviour import kill_captioning  # sets the environment

import pyarrow.parquet as pq  # isort: skip
from benchmarks import _lib
from captune.curation import curate, dedup, reassign, scoring, vectors
from captune.data import load_images

for name in ("curation.rewrite", "models.captioner", "models.encoders.clip", "scorers.image.clip"):
    importlib.import_module(f"captune.{name}")  # so that a driver's life is work

VERDICTS = ("keep", "drop", "change", "move", "split")
STEPS: list[dict[str, Any]] = [
    {"filter": {"by": "clip - 0.01*length", "keep": 0.9}},
    {"dedup": {}},
    {"dedup": {"of": "images"}},
    {"reassign": {"by": "storybook-clip", "alike": "storybook-clip"}},
    {"rewrite": {"model": "storybook", "share": 0.5, "batch_size": 2, "temperature": 0.7, "rest": "keep"}},
    {"split": {}},
    {"levels": {"by": "clip", "bins": 5, "equal": "count"}},
]


def make_set(folder: Path, number: int) -> str:
    """Images with three captions each, of which one repeats itself; two images are equal, and one is broken."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for index, row in enumerate(load_images(f"storybook:test?caption=alt_text&n={number}&seed=77")):
        name = f"{index:05d}.png"
        row["image"].save(folder / "images" / name)
        alt = row["references"][0]
        alt = " and ".join([alt] * 40) if index == 7 else alt  # longer than an encoder reads
        lines.append({"image": name, "references": [alt, f"{alt}. A picture of {alt}. It is drawn.", f"{alt} "]})
    (folder / "images/00003.png").write_bytes((folder / "images/00002.png").read_bytes())
    (folder / "images/00005.png").write_bytes(b"no image")
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"{folder / 'set.jsonl'}?images={folder / 'images'}"


class Curation(kill_captioning.Engine):
    """A curation, in one process or with workers."""

    def __init__(self, source: str, work: Path, workers: int) -> None:
        super().__init__(Path(), work)
        self.source, self.workers, self.driver = source, workers, 0

    def start_driver(self, output: Path) -> int:
        self.driver = super().start_driver(output)
        return self.driver

    def caption(self, output: Path) -> Any:
        scoring.IMAGES, scoring.TEXTS, vectors.TEXTS, vectors.IMAGES, dedup._IMAGES = 24, 64, 32, 12, 16
        reassign._QUERIES = 16
        curate(self.source, output, STEPS, device="cpu", progress=False, workers=self.workers)
        return SimpleNamespace(bad=[])

    def captions(self, output: Path) -> list[tuple[str, str]]:
        """(step and caption, verdict) of the decisions that are whole."""
        found = []
        for path in sorted((output / "decisions").glob("*.parquet")):
            rows = pq.read_table(path).to_pylist()
            found += [(f"{path.stem} {row['number']}", json.dumps(row)) for row in rows]
        return found

    def count(self, output: Path) -> int:
        """Parts of the step that is being made, and a number that grows with the steps."""
        try:
            steps = len(list((output / "decisions").glob("*.parquet")))
            return 1000 * steps + sum(1 for _ in (output / ".work").rglob("*.*"))
        except OSError:  # removed meanwhile
            return 0

    def whole(self, output: Path) -> bytes:
        files = sorted(path for path in output.rglob("*") if path.is_file() and path.name != ".lock")
        return b"".join(f"{path.relative_to(output)}\n".encode() + path.read_bytes() for path in files)

    def victims(self) -> dict[str, int]:
        """One of the worker processes, where any has started."""
        if self.workers < 2:
            return {}
        try:
            children = Path(f"/proc/{self.driver}/task/{self.driver}/children").read_text().split()
            lines = {int(number): Path(f"/proc/{number}/cmdline").read_bytes() for number in children}
        except OSError:
            lines = {}
        found = [number for number, line in lines.items() if b"spawn_main" in line]
        return {"worker": random.choice(found) if found else 0}


class Trial(kill_captioning.Trial):
    """Rounds of a curation under fire."""

    def run(self, work: Path) -> None:
        undisturbed = work / "undisturbed"
        started = time.monotonic()
        if self.wait(self.engine.start_driver(undisturbed), undisturbed):
            raise SystemExit("the undisturbed run failed: " + (work / "driver.log").read_text(errors="replace")[-2000:])
        self.seconds = time.monotonic() - started
        self.expected, self.whole = dict(self.engine.captions(undisturbed)), self.engine.whole(undisturbed)
        self.account(undisturbed)
        while self.done.total() < self.kills and not self.wrong:
            self.rounds += 1
            self.round(work / f"round{self.rounds}")
            self.account(work / f"round{self.rounds}")

    def account(self, output: Path) -> None:
        """Look for captions that are lost: what comes in is decided about, and what is left comes in next."""
        if self.wrong:
            return
        report = json.loads((output / "curation.json").read_text())
        come = report["in"]["captions"]
        self.decided = Counter[str]()
        for record in report["records"]:
            rows = pq.read_table(output / "decisions" / f"{record['step']}.parquet").to_pylist()
            counts = Counter(row["verdict"] for row in rows)
            made = sum(len(row["after"]) for row in rows if row["verdict"] == "split")
            left = counts["keep"] + counts["change"] + counts["move"] + made
            said = {name: record[name] for name in VERDICTS if record[name]}
            unexplained = sum(row["verdict"] != "keep" and not row["reason"] for row in rows)
            numbers = len({row["number"] for row in rows})
            if not (come == len(rows) == numbers == sum(said.values()) and said == counts and not unexplained):
                self.wrong.append(f"{output.name}: {record['step']} was given {come} captions and decided {counts}")
            if left != record["captions out"]:
                self.wrong.append(f"{output.name}: {record['step']} leaves {left}, not {record['captions out']}")
            come = left
            self.decided += counts

    def result(self) -> dict[str, Any]:
        return {
            **super().result(), "steps": [next(iter(step)) for step in STEPS],
            "seconds undisturbed": round(self.seconds, 1), "decisions of a round": dict(self.decided),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        engine = Curation(make_set(work, args.images), work, args.workers)
        trial = Trial(engine, args.kills, args.images, random.Random(args.seed))
        trial.run(work)
    result = {"workers": args.workers, **trial.result(), "seconds": round(time.monotonic() - started)}
    _lib.write({**result, "machine": _lib.machine()}, None, args.output)
    raise SystemExit(1 if trial.wrong else 0)


if __name__ == "__main__":
    main()
