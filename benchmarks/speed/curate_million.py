"""Filter and de-duplicate a million captions: `captune curate` beside a plain pandas script, each in its own process.

    python -m benchmarks.speed.curate_million [--sizes 50000 100000] [--data-juicer VENV/bin/dj-process]
        [--output benchmarks/speed/curate_million.json]

The table is parquet: image_id, caption (short grammatical sentences, a tenth of them said before in other case), sim (a
number) and embedding (64 numbers; a twentieth are near another one). Both programs keep the captions of 3 to 20 words
with the upper 70% of sim, drop equal ones, and drop those whose embedding has a cosine of .95 with an earlier group's.

The pandas script is what one writes in an afternoon: the whole table in memory, `str.split`, `quantile`,
`drop_duplicates`, faiss' exact range search in blocks and a union-find in scipy. Above `--slow` captions its near step
is left out, since its cost grows with the square, and so is Data-Juicer. What both keep is compared by image_id.

`--data-juicer` is the command of a Data-Juicer in an environment of its own (`pip install py-data-juicer aiohttp`). It
runs the filter and the equal captions in one process (words_num_filter, topk_specified_field_selector,
document_deduplicator), on a table without embeddings, which no operation of it compares. It lowers the case, but a full
stop at the end makes a caption another one, so that it keeps a few more.
Reported: wall and processor seconds, the peak of resident memory, and captions per second of each program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTH = 64
PANDAS = """
import sys, re, numpy as np, pandas as pd
table, output, near = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
frame = pd.read_parquet(table, columns=["image_id", "caption", "sim"] + ["embedding"] * near)
words = frame.caption.str.split().str.len()
frame = frame[(words >= 3) & (words <= 20)]
frame = frame.sort_values("sim", ascending=False, kind="stable").head(int(np.ceil(0.7 * len(frame)))).sort_index()
key = frame.caption.str.lower().str.strip().str.replace(r"\\s+", " ", regex=True).str.rstrip(".")
frame = frame[~key.duplicated()]
if near:
    import faiss
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    vectors = np.stack(frame.embedding.to_numpy()).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    rows, columns = [], []
    for start in range(0, len(vectors), 4096):
        limits, _, found = index.range_search(vectors[start:start + 4096], 0.95)
        rows.append(start + np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64)))
        columns.append(found)
    i, j = np.concatenate(rows), np.concatenate(columns)
    n = len(vectors)
    _, label = connected_components(coo_matrix((np.ones(len(i)), (i, j)), shape=(n, n)), directed=False)
    _, first = np.unique(label, return_index=True)
    frame = frame.iloc[np.sort(first)]
frame[["image_id", "caption"]].to_json(output, orient="records", lines=True)
"""
CAPTUNE = """
import sys
from captune.curation import curate
table, output, near = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
steps = [{"filter": {"by": "length", "min": 3, "max": 20}}, {"filter": {"by": "column:sim", "keep": 0.7}}]
steps.append({"dedup": {"near": 0.95, "embeddings": "embedding"} if near else {}})
curate(table, output, steps, progress=False)
"""


JUICER = """
dataset_path: {table}
export_path: {output}
text_keys: caption
np: 1
use_cache: false
process:
  - words_num_filter: {{lang: en, tokenization: false, min_num: 3, max_num: 20}}
  - topk_specified_field_selector: {{field_key: sim, top_ratio: 0.7, reverse: true}}
  - document_deduplicator: {{lowercase: true}}
"""

CALL = """
import os, subprocess, sys
home, *command = sys.argv[1:]  # its caches and logs
done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HOME": home})
done.returncode and sys.exit(done.stderr[-2000:])
"""


def make_table(path: Path, count: int) -> None:
    """Write the table, a row group of 50,000 at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    size, colour, thing, place, did = (
        np.array(words.split())
        for words in (
            "small big old new round tiny huge wet dry warm",
            "red blue green grey white black brown pink orange purple",
            "ball dog cat car house tree bird boat kite chair cup horse fish lamp train door",
            "beach street field river table city roof garden hill bridge",
            "stands lies waits rests moves shines",
        )
    )
    schema = pa.schema(
        {
            "image_id": pa.string(),
            "caption": pa.string(),
            "sim": pa.float64(),
            "embedding": pa.list_(pa.float32(), WIDTH),
        }
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 50_000):
            n = min(50_000, count - start)
            words = [one[rng.integers(len(one), size=n)] for one in (size, colour, thing, did, place)]
            number = rng.integers(1_000_000, size=n)
            texts = [f"a {s} {c} {t} {d} on the {p} {k}" for s, c, t, d, p, k in zip(*words, number, strict=True)]
            for at in np.flatnonzero(rng.random(n) < 0.1).tolist():
                texts[at] = texts[rng.integers(n)].upper() + "."
            for at in np.flatnonzero(rng.random(n) < 0.02).tolist():
                texts[at] = "untitled"
            vectors = rng.normal(size=(n, WIDTH)).astype(np.float32)
            near = np.flatnonzero(rng.random(n) < 0.05)
            vectors[near] = vectors[rng.integers(n, size=len(near))] + 0.05 * vectors[near]
            columns = [
                pa.array([f"i{start + k}" for k in range(n)]),
                pa.array(texts),
                pa.array(rng.random(n)),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def measured(code: str, *arguments: str, of: str = "SELF") -> dict[str, float]:
    """Run a program in a process of its own; its seconds (of: CHILDREN for what it calls), and its peak in MB."""
    wrapped = code + (
        "\nimport resource, json\n"
        f"used = resource.getrusage(resource.RUSAGE_{of})\n"
        "print(json.dumps({'processor_seconds': used.ru_utime + used.ru_stime, 'peak_mb': used.ru_maxrss / 1024}))\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", wrapped, *arguments], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"wall_seconds": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


def juiced(command: Path, table: Path, folder: Path) -> tuple[dict[str, float], set[str]]:
    """Run Data-Juicer on the table without its embeddings; its seconds and peak, and what it keeps."""
    import pyarrow.parquet as pq

    text, config, output = folder / "text.parquet", folder / "juicer.yaml", folder / "juicer" / "kept.jsonl"
    pq.write_table(pq.read_table(table, columns=["image_id", "caption", "sim"]), text)
    config.write_text(JUICER.format(table=text, output=output))
    return measured(CALL, str(folder), str(command), "--config", str(config), of="CHILDREN"), kept(output)


def kept(path: Path) -> set[str]:
    """Return the image ids of a set in JSON lines."""
    with path.open(encoding="utf-8") as lines:
        return {json.loads(line)["image_id"] for line in lines}


def measure(count: int, slow: int, juicer: Path | None, folder: Path) -> dict[str, Any]:
    """Measure the programs on so many captions."""
    table = folder / f"{count}.parquet"
    make_table(table, count)
    result: dict[str, Any] = {"captions": count}
    for near in (False, True):
        name = "filter, equal and near" if near else "filter and equal"
        own = measured(CAPTUNE, str(table), str(folder / f"captune-{count}-{near}"), "01"[near])
        entry: dict[str, Any] = {"captune": own}
        ids = kept(folder / f"captune-{count}-{near}" / "captions.jsonl")
        entry["captune"]["kept"] = len(ids)
        if near:
            report = json.loads((folder / f"captune-{count}-{near}" / "curation.json").read_text())
            entry["near pairs found, of a sample's"] = report["records"][-1]["notes"].get(
                "near pairs found, of those of a sample"
            )
        if not near or count <= slow:
            output = folder / f"pandas-{count}-{near}.jsonl"
            entry["pandas"] = measured(PANDAS, str(table), str(output), "01"[near])
            theirs = kept(output)
            entry["pandas"]["kept"] = len(theirs)
            entry["kept by one only"] = len(ids ^ theirs)
        if not near and juicer and count <= slow:
            entry["data-juicer"], others = juiced(juicer, table, folder)
            entry["data-juicer"] |= {"kept": len(others), "kept of captune's": len(others & ids)}
        for program in ("captune", "pandas", "data-juicer"):
            if program in entry:
                entry[program]["captions_per_processor_second"] = count / entry[program]["processor_seconds"]
        result[name] = entry
        print(json.dumps({"captions": count, name: entry}), flush=True)
    table.unlink()
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 100_000, 200_000, 1_000_000])
    parser.add_argument("--slow", type=int, default=200_000, help="the most captions of pandas' near step, Data-Juicer")
    parser.add_argument("--data-juicer", type=Path, help="its dj-process")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = [measure(count, args.slow, args.data_juicer, Path(folder)) for count in args.sizes]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "address_space_limit": limit},
        "sizes": sizes,
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
