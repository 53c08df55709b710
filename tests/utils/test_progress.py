"""Progress: a bar in a terminal, lines in a log, nothing for what is short."""

from __future__ import annotations

import io
import sys
import time

import pytest

from captune.utils import progress
from captune.utils.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(steps: int, seconds: float, monkeypatch: pytest.MonkeyPatch, *, show: bool = True, log: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", log)
    with Bar(total=steps, desc="work", show=show) as bar:
        for _ in range(steps):
            time.sleep(seconds)
            bar.update()
    return log.getvalue()


def test_a_log_gets_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.1)
    started = time.monotonic()
    lines = run(20, 0.02, monkeypatch, log=io.StringIO()).splitlines()
    assert 2 <= len(lines) <= 1 + (time.monotonic() - started) / progress.EVERY  # 5 where nothing waits
    assert all(line.startswith("work: ") for line in lines) and "\r" not in "".join(lines)
    assert "20/20" in lines[-1] and "<" in lines[0]  # how far, and the time left


def test_what_is_short_or_not_to_be_shown_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(3, 0, monkeypatch, log=io.StringIO()) == ""
    monkeypatch.setattr(progress, "EVERY", 0.01)
    assert run(3, 0.02, monkeypatch, show=False, log=io.StringIO()) == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\rwork: " in run(3, 0, monkeypatch, log=Terminal())
