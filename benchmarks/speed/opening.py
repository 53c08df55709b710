"""Reading and decoding images in this process, in threads and in worker processes: images a second, side by side.

    python -m benchmarks.speed.opening --output benchmarks/speed/opening

Why `captune caption --workers` are threads. A process has to hand over what it decoded, 3 bytes a pixel: through a
pipe, as `concurrent.futures` does, or in shared memory, which is filled on one side and copied on the other. The time
that this takes the process that captions is in the table as well; in threads it is all of the decoding.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import _lib
from captune.data import open_image

SIZES = {(640, 480): 200, (4000, 3000): 12}


def photos(folder: Path, size: tuple[int, int], number: int) -> list[str]:
    """Files of JPEG that take as many bytes a pixel as photographs do, about 0.3."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(number):
        coarse = draw.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index:03d}.jpg", quality=88)
    return sorted(str(file) for file in folder.iterdir())


def in_memory(file: str) -> tuple[str, tuple[int, int]]:
    image = open_image(file)
    memory = shared_memory.SharedMemory(create=True, size=3 * image.width * image.height)
    np.copyto(np.ndarray((image.height, image.width, 3), np.uint8, memory.buf), np.asarray(image))
    memory.close()
    return memory.name, image.size


def out_of_memory(made: tuple[str, tuple[int, int]]) -> Image.Image:
    memory = shared_memory.SharedMemory(made[0])
    try:
        return Image.frombytes("RGB", made[1], memory.buf)
    finally:
        memory.unlink()
        memory.close()


def timed(work: Callable[[list[str]], Iterable[Any]], files: list[str]) -> tuple[float, float]:
    """Images a second, and milliseconds of this process for each."""
    for _ in work(files[:2]):  # a process starts
        pass
    started, spent = time.perf_counter(), time.process_time()
    for _ in work(files):
        pass
    return len(files) / (time.perf_counter() - started), 1000 * (time.process_time() - spent) / len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    spawned = multiprocessing.get_context("spawn")
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for size, number in SIZES.items():
            files = photos(Path(scratch) / str(size[0]), size, number)
            found = rows.setdefault(f"{size[0]} x {size[1]}", {})
            for _ in range(args.repeats):
                loads.append(round(os.getloadavg()[0], 1))
                found.setdefault("this thread", []).append(timed(lambda names: map(open_image, names), files))
                for count in (1, 2):
                    with ThreadPoolExecutor(count) as threads:
                        what = f"{count} thread{'s' * (count > 1)}"
                        found.setdefault(what, []).append(timed(lambda names: threads.map(open_image, names), files))
                    for way in ("pipe", "shared memory"):
                        with ProcessPoolExecutor(count, mp_context=spawned) as processes:
                            what = f"{count} process{'es' * (count > 1)}, {way}"
                            piped = lambda names: processes.map(open_image, names)  # noqa: E731
                            shared = lambda names: map(out_of_memory, processes.map(in_memory, names))  # noqa: E731
                            found.setdefault(what, []).append(timed(piped if way == "pipe" else shared, files))
    medians = {
        size: {
            what: [statistics.median(column) for column in zip(*pairs, strict=True)] for what, pairs in found.items()
        }
        for size, found in rows.items()
    }
    alone = " of others, before which this had the cores" if os.sched_getscheduler(0) != os.SCHED_OTHER else ""
    lines = [
        "# Opening images", "",
        f"JPEG, {' and '.join(f'{number} of {size[0]} x {size[1]}' for size, number in SIZES.items())}; "
        f"{_lib.machine()['cores']} cores, load {min(loads)} to {max(loads)}{alone}; medians of {args.repeats}. "
        "In brackets: milliseconds of the process that captions, for each image.", "",
        f"| opened in | {' | '.join(f'{size}, images a second' for size in rows)} |", "|---|" + "---:|" * len(rows),
    ]  # fmt: skip
    for what in next(iter(medians.values())):
        cells = [f"{medians[size][what][0]:.1f} ({medians[size][what][1]:.1f})" for size in rows]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    result = {"machine": _lib.machine(), "repeats": args.repeats, "loads": loads, "images_per_second_and_ms": rows}
    _lib.write(result, "\n".join(lines) + "\n", args.output)


if __name__ == "__main__":
    main()
