"""Nearest vectors by inner product: exact, or through one of faiss' indexes on disk.

Exact search runs in faiss over the memory-mapped vectors, or on an accelerator that holds a copy of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from captune.corpus.files import open_vectors, replacing_file
from captune.errors import CorpusError
from captune.utils.device import pick_device
from captune.utils.progress import Bar

if TYPE_CHECKING:
    import faiss

#: kind -> how much of it a query visits by default: IVF's lists (nprobe), HNSW's candidates (efSearch)
INDEXES = {"flat": 0, "device": 0, "ivf": 32, "hnsw": 128}
EXACT = ("flat", "device")
_CELLS = 2**24  # of the matrix of products that the exact search holds at once: 64 MiB
_ROWS = 65_536  # copied to an accelerator at a time
_LOCK = threading.Lock()


def nearest(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search exactly; the vectors are read in place, not copied.

    Returns:
        (scores, rows), each (Q, k), best first.
    """
    faiss = load_faiss()
    with _wide_products(faiss, len(queries)):
        return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


@contextmanager
def _wide_products(faiss: Any, queries: int) -> Iterator[None]:
    """Run faiss' exact search as matrix products of a good shape while this lasts.

    By itself faiss 1.15 multiplies 1,024 vectors at a time, and for fewer than about 170 queries of 768 dimensions it
    does not multiply at all: 64 queries take three to ten times as long as the product does. The settings belong to
    the process, so they are restored; they change nothing but the speed.
    """
    at_once = min(max(1, queries), 4096)
    settings = {
        "distance_compute_blas_threshold": 1,
        "distance_compute_blas_query_bs": at_once,  # room for both sizes' product is taken, however few queries come
        "distance_compute_blas_database_bs": _CELLS // at_once,
    }
    with _LOCK:
        before = {name: getattr(faiss.cvar, name) for name in settings}
        try:
            for name, value in settings.items():
                setattr(faiss.cvar, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(faiss.cvar, name, value)


class OnDevice:
    """Searches exactly, by matrix products in float32 on an accelerator: 4 bytes of its memory for each number."""

    def __init__(self, vectors: np.ndarray, device: str | None) -> None:
        self.device = torch.device(pick_device(device))
        self.vectors = torch.empty(vectors.shape, device=self.device)
        for start in range(0, len(vectors), _ROWS):
            part = np.array(vectors[start : start + _ROWS])  # a copy: torch takes no read-only memory
            self.vectors[start : start + _ROWS] = torch.from_numpy(part)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, rows), each (Q, k), best first; see `nearest`."""
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self.device)
        scores = torch.empty(len(asked), 0, device=self.device)
        rows = torch.empty(len(asked), 0, dtype=torch.long, device=self.device)
        step = max(k, _CELLS // max(1, len(asked)))
        for start in range(0, len(self.vectors), step):
            products = asked @ self.vectors[start : start + step].T
            found = products.topk(min(k, products.shape[1]))
            scores, rows = torch.cat([scores, found.values], 1), torch.cat([rows, found.indices + start], 1)
            best = scores.topk(min(k, scores.shape[1]))
            scores, rows = best.values, rows.gather(1, best.indices)
        return scores.cpu().numpy(), rows.cpu().numpy()


def make_index(folder: Path, kind: str, *, progress: bool = True) -> None:
    """Build index-<kind>.faiss from texts.npy, unless it exists.

    IVF: 4 sqrt(N) lists, k-means on up to 40 vectors per list (seed 0). HNSW: 32 links, 80 candidates at building.
    """
    path = folder / f"index-{kind}.faiss"
    if path.is_file():
        return
    faiss = load_faiss()
    vectors = open_vectors(folder, "texts.npy", (None, None), np.float32)
    count, dimension = vectors.shape
    if kind == "ivf":
        lists = int(max(1, min(4 * count**0.5, count / 40)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).permutation(count)[: 40 * lists]
        index.cp.seed, index.cp.spherical = 0, True
        index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    else:
        index = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
    step = 16_384
    with Bar(total=count, desc=f"{kind} index", unit="vector", show=progress) as bar:
        for start in range(0, count, step):
            index.add(np.ascontiguousarray(vectors[start : start + step]))
            bar.update(min(step, count - start))
    with replacing_file(path) as temporary:
        faiss.write_index(index, str(temporary))


def open_index(folder: Path, kind: str, search_effort: int | None, count: int) -> faiss.Index:
    """Open the index of a corpus of `count` entries; the lists of IVF stay on the disk until they are visited.

    Raises:
        CorpusError: if it is missing, cannot be read, or it belongs to another corpus.
    """
    faiss = load_faiss()
    path = folder / f"index-{kind}.faiss"
    if not path.is_file():
        raise CorpusError(
            f"{folder} has no {kind} index; build the corpus again with index={kind!r}: its vectors are kept, only the "
            "index is added"
        )
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if kind == "ivf" else 0
    try:
        index = faiss.read_index(os.fspath(path), flags)
    except RuntimeError as error:
        raise CorpusError(f"{path} cannot be read; delete it and build the corpus again with index={kind!r}") from error
    if index.ntotal != count:
        raise CorpusError(f"{path} is an index of another corpus: it has {index.ntotal:,} vectors, not {count:,}")
    if kind == "ivf":
        index.nprobe = min(search_effort or INDEXES[kind], index.nlist)
    else:
        index.hnsw.efSearch = search_effort or INDEXES[kind]
    return index


def load_faiss() -> Any:
    """Return the module faiss.

    Raises:
        CorpusError: if it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise CorpusError(f"a retrieval corpus needs faiss ({error}); run: pip install 'captune[scorers]'") from error
    return faiss
