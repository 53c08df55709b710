"""A pool: it does not matter who makes what, a lost process costs nothing, and errors are told as they are."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import pytest

from captune.errors import BadImage, CaptuneError, SettingError, UsageError
from captune.utils.pool import Pool
from captune.utils.skipped import counting, skip


class Square:
    """Squares a number; says who did, and does what it is told to do in the place of it."""

    def __init__(self, marks: Path, last: int | None = None) -> None:
        self.marks, self.last = marks, last

    def __call__(self, number: int) -> tuple[int, int]:
        if number == 3 and self.last == -3:
            raise BadImage("the third", "it is odd")
        if number == self.last and len(list(self.marks.iterdir())) < number:
            (self.marks / f"{len(list(self.marks.iterdir()))}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        skip("numbers", str(number))
        return number * number, os.getpid()


def test_two_processes(tmp_path: Path) -> None:
    with counting() as skipped, Pool(2) as pool:
        made = list(pool.answers(Square(tmp_path), range(8)))
        again = list(pool.answers(Square(tmp_path), range(8)))
    assert sorted(square for square, _ in made) == [n * n for n in range(8)]
    processes = {process for _, process in made + again}
    assert len(processes) <= 2 and os.getpid() not in processes
    assert skipped == {"numbers": {str(n): 1 for n in range(8)}}


def test_alone_or_with_one_item_nothing_is_pickled(tmp_path: Path) -> None:
    here = os.getpid()
    assert list(Pool(1).answers(lambda n: (n, os.getpid()), [1, 2])) == [(1, here), (2, here)]
    assert list(Pool(2).answers(lambda n: (n, os.getpid()), [1])) == [(1, here)]
    with Pool(2) as pool, pytest.raises(UsageError, match="leave --workers out"):
        list(pool.answers(lambda n: n, [1, 2]))


def test_a_killed_process_costs_nothing(tmp_path: Path) -> None:
    with Pool(2) as pool:
        made = list(pool.answers(Square(tmp_path, last=2), range(6)))
    assert sorted(square for square, _ in made) == [n * n for n in range(6)]
    assert len(list(tmp_path.iterdir())) == 2  # each of these began it, and was killed


def test_an_item_that_kills_every_process(tmp_path: Path) -> None:
    with Pool(2) as pool, pytest.raises(CaptuneError, match=r"lost 4 times.*take fewer --workers"):
        list(pool.answers(Square(tmp_path, last=100), [100, 100]))


def test_an_error_is_told_as_it_is(tmp_path: Path) -> None:
    with Pool(2) as pool, pytest.raises(BadImage, match="it is odd"):
        list(pool.answers(Square(tmp_path, last=-3), range(6)))
    assert pickle.loads(pickle.dumps(BadImage("a", "b"))).why == "b"


def test_wrong_settings() -> None:
    with pytest.raises(SettingError, match="not by 'threads'"):
        Pool(2, "threads")
    with pytest.raises(SettingError, match="add --engine ray"):
        Pool(2, address="auto")
    with pytest.raises(SettingError, match="at least 1"):
        Pool(0)
