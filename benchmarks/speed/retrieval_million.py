"""A million captions: exact top-5 against the bare matrix product, memory, and what approximate indexes find.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.retrieval_million --work /tmp/million \
        [--output benchmarks/speed/retrieval_million]

Corpora of N x 768 float32 unit vectors are built by `Corpus.build` itself, with encoders that answer with prepared
vectors: "random", where nothing is near anything (the worst case for an index), and "clustered", N / 100 topics whose
members have cosine 0.6 with each other (captions are of this kind). 1,280 queries of the same kind are searched.

- exact: `Corpus.search` in turns with the same product by numpy and by torch in blocks of 16,384 vectors, which finds
  nothing; medians. Also k different images with the own image excluded, and a reward's batch of 96.
- memory: the peak resident size of a fresh process that opens the corpus and does the exact search once.
- approximate: recall@5 against the exact answer, and seconds, by effort. HNSW on the first N / 10 only: it takes long.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DIMENSION, QUERIES, K, BLOCK = 768, 1280, 5, 16_384
KINDS = ("random", "clustered")


def vectors(kind: str, count: int, topics: int, seed: int) -> np.ndarray:
    """(count, 768) unit rows; the topics are the same for every seed."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, DIMENSION), dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    if kind == "random":
        return noise
    centres = np.random.default_rng(1).standard_normal((topics, DIMENSION), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    mixed = np.sqrt(0.6) * centres[rng.integers(topics, size=count)] + np.sqrt(0.4) * noise
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


class Prepared:
    """Both slots of a corpus: texts are numbers of blocks of vectors; images all look alike."""

    name = "prepared"

    def __init__(self, kind: str, topics: int) -> None:
        self.kind, self.topics, self.digest = kind, topics, kind

    def encode_texts(self, texts):
        return vectors(self.kind, len(texts), self.topics, 1000 + int(texts[0]))

    def encode_images(self, images):
        return np.ones((len(images), 16), dtype=np.float32)


def build(folder: Path, kind: str, count: int, topics: int, index: str = "flat"):
    """(the corpus, seconds)"""
    import io

    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as Pillow

    from captune.corpus import Corpus

    file = io.BytesIO()
    Pillow.new("RGB", (8, 8)).save(file, "PNG")
    features = Features(
        {"image": Image(decode=False), "image_id": Value("string"), "references": List(Value("string"))}
    )
    rows = {
        "image": [{"bytes": file.getvalue(), "path": None}] * count,
        "image_id": [str(i) for i in range(count)],
        "references": [[str(i)] for i in range(count)],
    }
    encoder = Prepared(kind, topics)
    start = time.perf_counter()
    corpus = Corpus.build(Dataset.from_dict(rows, features), folder, text_encoder=encoder, image_encoder=encoder,
                          index=index, batch_size=512, shard_size=16_384, progress=sys.stderr.isatty())  # fmt: skip
    return corpus, time.perf_counter() - start


def product(library: str, queries: np.ndarray, matrix: np.ndarray) -> None:
    """The bare product, in blocks; nothing is kept."""
    if library == "torch":
        import torch

        queries, matrix = torch.from_numpy(queries), torch.from_numpy(matrix)
    for start in range(0, len(matrix), BLOCK):
        queries @ matrix[start : start + BLOCK].T


def exact(corpus, queries: np.ndarray, repeats: int) -> dict:
    """Seconds, in turns."""
    matrix = np.load(corpus.folder / "texts.npy", mmap_mode="c")  # torch wants it writable; it is only read
    own = [str(i) for i in range(QUERIES)]
    jobs = {
        "product, numpy": lambda: product("numpy", queries, matrix),
        "product, torch": lambda: product("torch", queries, matrix),
        "top-5": lambda: corpus.search(queries, K),
        "top-5 images, own excluded": lambda: corpus.search(queries, K, exclude=own, unique_images=True),
        "96: product, numpy": lambda: product("numpy", queries[:96], matrix),
        "96: product, torch": lambda: product("torch", queries[:96], matrix),
        "96: top-5": lambda: corpus.search(queries[:96], K),
    }
    corpus.search(queries[:1], K)  # the vectors are in the page cache from here on
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    median = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    best = min(median["product, numpy"], median["product, torch"])
    few = min(median["96: product, numpy"], median["96: product, torch"])
    ratios = {name: round(median[name] / best, 2) for name in ("top-5", "top-5 images, own excluded")}
    return {"seconds": median, "times_the_faster_product": {**ratios, "96: top-5": round(median["96: top-5"] / few, 2)}}


def memory(folder: Path, kind: str) -> dict:
    """What a fresh process needs; `only_search` is what it runs."""
    command = [sys.executable, "-m", "benchmarks.speed.retrieval_million", "--only-search", str(folder), kind]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mib() -> float:
    """Since this program began: getrusage counts what the process was before its exec, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def only_search(folder: str, kind: str) -> None:
    from captune.corpus import Corpus
    from captune.corpus.index import load_faiss

    load_faiss()
    before = peak_mib()
    corpus = Corpus.open(folder)
    corpus.search(vectors(kind, QUERIES, max(1, len(corpus) // 100), 7), K)
    peak = peak_mib()
    size = corpus.text_vectors.nbytes / 2**20
    print(json.dumps({"vectors_MiB": round(size), "libraries_MiB": round(before), "peak_MiB": round(peak),
                      "peak_over_vectors": round(peak / size, 3)}))  # fmt: skip


def approximate(folder: Path, index: str, queries: np.ndarray, efforts: tuple[int, ...]) -> dict:
    from captune.corpus import Corpus

    corpus = Corpus.open(folder)
    start = time.perf_counter()
    _, truth = corpus.search(queries, K)
    found = {"exact_seconds": round(time.perf_counter() - start, 2)}
    for effort in efforts:
        corpus = Corpus.open(folder, index=index, search_effort=effort)
        corpus.search(queries[:8], K)
        start = time.perf_counter()
        _, rows = corpus.search(queries, K)
        seconds = time.perf_counter() - start
        recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), truth.tolist(), strict=True)])
        found[f"effort {effort}"] = {"recall@5": round(float(recall), 3), "seconds": round(seconds, 2)}
    return found


def markdown(result: dict) -> str:
    """The result as a page."""
    exact, memory = result["random"]["exact"], result["random"]["memory"]
    seconds, ratio = exact["seconds"], exact["times_the_faster_product"]
    entries, tenth = f"{result['entries']:,}", f"{result['entries'] // 10:,}"
    lines = [
        f"# Retrieval among {entries} captions",
        "",
        f"Made by `benchmarks/speed/retrieval_million.py`: {entries} x {DIMENSION} float32 unit vectors, "
        f"{QUERIES:,} queries, top {K}; "
        f"{result['machine']}, {result['threads']['faiss']} thread(s), other work beside it: trust ratios.",
        "",
        "| exact search, random vectors | seconds | times the faster bare product |",
        "|---|---|---|",
        *(f"| {name} | {value} | {ratio.get(name, '')} |" for name, value in seconds.items()),
        "",
        f"Memory: {memory['peak_MiB']} MiB at the peak of a fresh process, {memory['peak_over_vectors']} times the "
        f"{memory['vectors_MiB']} MiB of vectors ({memory['libraries_MiB']} MiB are the libraries).",
        "",
        "| approximate index | vectors | built in | effort | recall@5 | seconds | exact |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, index in itertools.product(KINDS, ("ivf", "hnsw_tenth")):
        found = result[kind][index]
        count = tenth if index.endswith("tenth") else entries
        built = result[kind][f"{index}_build_seconds"]
        for effort, said in found.items():
            if effort != "exact_seconds":
                lines.append(f"| {index.partition('_')[0]} | {count} {kind} | {built} s | {effort.split()[1]} | "
                             f"{said['recall@5']} | {said['seconds']} | {found['exact_seconds']} |")  # fmt: skip
    lines += [
        "",
        "Random vectors have no near neighbours, which is the worst case for any index; real captions lie between the",
        "two kinds. Where an index must visit many lists it is slower than the exact search, one matrix product. HNSW",
        "is shown on a tenth because building it takes longest.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder with 15 GB of room; emptied at the end")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the results' path, without its ending: .json and .md")
    parser.add_argument("--only-search", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_search:
        only_search(*args.only_search)
        return
    if not args.work:
        parser.error("--work is needed")

    import faiss
    import torch

    result: dict = {"entries": args.entries, "dimension": DIMENSION, "queries": QUERIES, "k": K,
                    "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()},
                    "versions": {"python": platform.python_version(), "numpy": np.__version__,
                                 "torch": torch.__version__, "faiss": faiss.__version__},
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
                    }  # fmt: skip
    for kind in KINDS:
        said = result[kind] = {}
        folder, topics = args.work / kind, max(1, args.entries // 100)
        corpus, seconds = build(folder, kind, args.entries, topics)
        said["build_seconds"] = round(seconds, 1)
        queries = vectors(kind, QUERIES, topics, 7)
        if kind == "random":
            said["exact"] = exact(corpus, queries, args.repeats)
            said["memory"] = memory(folder, kind)
        _, seconds = build(folder, kind, args.entries, topics, "ivf")
        said["ivf_build_seconds"] = round(seconds, 1)
        said["ivf"] = approximate(folder, "ivf", queries, (32, 128, 512))
        shutil.rmtree(folder)
        tenth = args.work / f"{kind}-tenth"
        _, seconds = build(tenth, kind, args.entries // 10, max(1, topics // 10), "hnsw")
        said["hnsw_tenth_build_seconds"] = round(seconds, 1)
        said["hnsw_tenth"] = approximate(tenth, "hnsw", vectors(kind, QUERIES, max(1, topics // 10), 7), (32, 128, 512))
        shutil.rmtree(tenth)
        print(json.dumps({kind: said}, indent=1), flush=True)
        if args.output:
            args.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.output:
        args.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
