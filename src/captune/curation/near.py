"""Pairs of near vectors among many: every pair of a small set, and in a large one those that share a cell.

A cell is what is nearest to one of up to 4,096 vectors of the set, sampled at random (seed 0); each vector lies in the
cells of its three nearest ones, so that two near vectors share one. Only pairs inside a cell are compared. With cells
of a few hundred vectors the time is linear in their number; how many pairs are missed is measured on a sample, by
comparing it with all. Vectors stay on the disk: what is in memory is a cell, and a block of products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from captune.utils.progress import Bar

WHOLE = 8_192  # vectors that are compared all with all
ACROSS = 2**32  # pairs of two sets that are all compared: half a minute at 384 numbers on two cores
_CELLS, _PROBES = 4_096, 3
_BLOCK = 2_048  # vectors whose products are in memory together
_ASKED = 200  # vectors of the sample
_STEP = 16_384

Edges = tuple[np.ndarray, np.ndarray]


def near_pairs(vectors: np.ndarray, least: float, *, own: int | None = None, progress: bool = True) -> Iterator[Edges]:
    """Yield pairs (i, j), i < j, whose inner product is at least `least`; a pair may come more than once.

    Of more than two that are near one another, pairs enough come to connect them.

    Args:
        vectors: (N, D) unit vectors, float32, also on the disk.
        least: the least product.
        own: the first so many are one set and the others another, and pairs across the two are wanted only.
        progress: whether a bar is shown.
    """
    count = len(vectors)
    if is_whole(count, own):
        yield from _within(vectors, np.arange(count), least, own, progress=progress)
        return
    places, cells = _cells(vectors, progress)
    starts = np.searchsorted(cells, np.arange(int(cells[-1]) + 2))
    bar = Bar(range(len(starts) - 1), desc="comparing", unit="cell", show=progress, delay=2)
    for cell in bar:
        members = np.sort(places[starts[cell] : starts[cell + 1]])
        if len(members) > 1:
            yield from _within(vectors, members, least, own)


def is_whole(count: int, own: int | None = None) -> bool:
    """Whether of so many vectors, `own` of them one set and the others another, all pairs are compared."""
    return count <= WHOLE or (own is not None and own * (count - own) <= ACROSS)


def _cells(vectors: np.ndarray, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """(3 N,) vectors and the cell of each, sorted by cell."""
    count = len(vectors)
    cells = min(_CELLS, count // 100)
    centres = np.array(vectors[np.sort(np.random.default_rng(0).permutation(count)[:cells])])
    nearest = np.empty((count, _PROBES), dtype=np.int32)
    bar = Bar(range(0, count, _BLOCK), desc="cells", unit="block", show=progress, delay=2)
    for start in bar:
        products = np.asarray(vectors[start : start + _BLOCK]) @ centres.T
        nearest[start : start + _BLOCK] = np.argpartition(-products, _PROBES - 1, axis=1)[:, :_PROBES]
    flat = nearest.ravel()
    order = np.argsort(flat, kind="stable")
    return (order // _PROBES).astype(np.int64), flat[order]


def _within(
    vectors: np.ndarray, members: np.ndarray, least: float, own: int | None, *, progress: bool = False
) -> Iterator[Edges]:
    """Near pairs among some vectors, block against block."""
    for a in Bar(range(0, len(members), _BLOCK), desc="comparing", unit="block", show=progress, delay=2):
        left = members[a : a + _BLOCK]
        block = np.asarray(vectors[left])
        for b in range(a, len(members), _BLOCK):
            right = members[b : b + _BLOCK]
            if own is not None and (left[0] >= own or right[-1] < own):
                continue
            products = block @ (block if a == b else np.asarray(vectors[right])).T
            i, j = np.nonzero(products >= least)
            i, j = left[i], right[j]
            wanted = i < j if own is None else (i < own) & (j >= own)
            i, j = i[wanted], j[wanted]
            if len(i):
                yield (i, j) if own is not None else connected_edges(i, j)


def connected_edges(i: np.ndarray, j: np.ndarray) -> Edges:
    """Return edges enough to connect what some edges connect: each vertex to the first one of its group."""
    vertices, packed = np.unique(np.concatenate([i, j]), return_inverse=True)
    first = groups(len(vertices), [(packed[: len(i)], packed[len(i) :])])
    others = np.flatnonzero(first != np.arange(len(vertices)))
    return vertices[first[others]], vertices[others]


def groups(count: int, edges: Iterable[Edges]) -> np.ndarray:
    """Return (count,) the first vertex of each vertex's group, given the edges in parts."""
    parts = list(edges)
    first = np.arange(count)
    if not parts:
        return first
    i, j = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    while True:  # roots that an edge joins are hooked, the higher one to the lower, and paths are made short again
        a, b = first[i], first[j]
        differ = a != b
        if not differ.any():
            return first
        i, j = i[differ], j[differ]
        np.minimum.at(first, np.maximum(a, b)[differ], np.minimum(a, b)[differ])
        while bool(((up := first[first]) != first).any()):
            first = up


def found_share(
    vectors: np.ndarray, least: float, same: Callable[[int, np.ndarray], np.ndarray], *, own: int | None = None
) -> tuple[int, int]:
    """Compare a sample with all others; return (pairs that were found, pairs that there are).

    Args:
        vectors: (N, D) unit vectors.
        least: the least product.
        same: which of some vectors a vector was found together with, (n,) bool.
        own: the sample is of the first so many, the others are those behind.
    """
    count = len(vectors)
    asked = np.sort(np.random.default_rng(1).permutation(count if own is None else own)[:_ASKED])
    block = np.array(vectors[asked])
    found = there = 0
    for start in range(own or 0, count, _STEP):
        products = block @ np.asarray(vectors[start : start + _STEP]).T
        for place, row in enumerate(products):
            near = start + np.flatnonzero(row >= least)
            near = near[near != asked[place]]
            there += len(near)
            found += int(same(int(asked[place]), near).sum())
    return found, there
