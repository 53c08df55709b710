"""Millions of ids in little memory: sorted records of a 128-bit digest of each, with what is known about it.

Two different ids would have to share all 128 bits to be taken for one; of 10 thousand million ids the chance that any
two do is 1e-19.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

_KEY = 16  # bytes of a digest


def digests(ids: Sequence[str]) -> np.ndarray:
    """Return the digests of ids, (n,) of 16 bytes each."""
    digest = xxhash.xxh3_128_digest
    return np.frombuffer(b"".join([digest(one.encode("utf-8", "surrogatepass")) for one in ids]), dtype=f"S{_KEY}")


class Ids:
    """A set of ids, each with a few bytes. What is added is merged into few sorted runs.

    Args:
        width: bytes of each value. Of an id that stands twice in what is loaded, the largest value is kept.
    """

    def __init__(self, width: int = 0) -> None:
        self.width = width
        self._runs: list[np.ndarray] = []  # each (n, 16 + width) uint8, sorted

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def __contains__(self, one: object) -> bool:
        return isinstance(one, str) and bool(self.known(digests([one]))[0])

    def known(self, keys: np.ndarray) -> np.ndarray:
        """Return which ids are there, given by their digests."""
        return self.find(keys)[0]

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which ids are there, and their values, (n, width) uint8; zeros for the others."""
        known, values = np.zeros(len(keys), dtype=bool), np.zeros((len(keys), self.width), dtype=np.uint8)
        order = np.argsort(keys)  # neighbours are looked for together
        keys = keys[order]
        for run in self._runs:
            at = np.minimum(np.searchsorted(_flat(run), keys), len(run) - 1)
            hit = np.ascontiguousarray(run[at, :_KEY]).view(f"S{_KEY}").ravel() == keys
            known[order[hit]] = True
            values[order[hit]] = run[at[hit], _KEY:]
        return known, values

    def add(self, keys: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Add ids that are not there; returns which are, or stand twice among these.

        Args:
            keys: their digests.
            values: (n, width) uint8.
        """
        repeated = self.known(keys)
        order = np.argsort(keys, kind="stable")
        repeated[order[1:][keys[order[1:]] == keys[order[:-1]]]] = True
        new = ~repeated
        if new.any():
            self._runs.append(_sorted(_records(keys[new], None if values is None else values[new], self.width)))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            self._runs[-2:] = [_sorted(np.concatenate(self._runs[-2:]))]
        return repeated

    def load(self, pieces: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> bool:
        """Fill an empty table; returns whether an id stands twice.

        Args:
            pieces: digests and values, as in `add`; sorted where they are stored, without a copy.
        """
        stored = bytearray()
        for keys, values in pieces:
            stored += _records(keys, values, self.width).tobytes()
        run = _sorted(np.frombuffer(stored, dtype=np.uint8).reshape(-1, _KEY + self.width))
        twice = np.zeros(len(run), dtype=bool)
        for start in range(0, len(run) - 1, 2**16):
            piece = run[start : start + 2**16 + 1, :_KEY]
            twice[start : start + len(piece) - 1] = (piece[1:] == piece[:-1]).all(axis=1)
        if twice.any():
            run = run[~twice]
        self._runs = [run] if len(run) else []
        return bool(twice.any())


def numbers(values: np.ndarray) -> np.ndarray:
    """Return values of 8 bytes as whole numbers, int64."""
    return np.ascontiguousarray(values).view(">i8").ravel().astype(np.int64)


def as_values(numbers: np.ndarray) -> np.ndarray:
    """Return whole numbers, which are not negative, as values of 8 bytes that sort as they do."""
    return np.ascontiguousarray(numbers).astype(">i8").view(np.uint8).reshape(-1, 8)


def _flat(run: np.ndarray) -> np.ndarray:
    return run.view(f"S{run.shape[1]}").ravel()


def _sorted(run: np.ndarray) -> np.ndarray:
    """Sort records in place."""
    _flat(run).sort()
    return run


def _records(keys: np.ndarray, values: np.ndarray | None, width: int) -> np.ndarray:
    records = np.empty((len(keys), _KEY + width), dtype=np.uint8)
    records[:, :_KEY] = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, _KEY)
    if values is not None:
        records[:, _KEY:] = values
    return records
