"""A real headless Chromium for tests of pages; where there is none they are skipped, and say so."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 768, 1440)


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser of Playwright: the system's Chromium, else the one that Playwright installed."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    known = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, known)), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium can be started ({str(error).splitlines()[0]}): install chromium")
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Any, link: str, **options: Any) -> Any:
    """Return a page of its own session; what its console says is kept in ``page.said``, and is an error."""
    page = browser.new_context(**options).new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(link)
    return page


class Served:
    """A command of captune that serves a page, in a process of its own.

    Attributes:
        link: the page's address, as printed.
        process: the process.
    """

    def __init__(self, *arguments: str, folder: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            "HF_HUB_OFFLINE": "1",
        }
        self.errors = folder / "stderr.txt"
        with self.errors.open("a") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "captune", *arguments],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        self._guard = threading.Timer(240, self.process.kill)
        self._guard.daemon = True
        self._guard.start()
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        found = re.search(r"http://\S+", first)
        assert found, first + self.errors.read_text()
        self.link = found.group()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self._ended()

    def end(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        self._ended()
        return self.process.returncode

    def _ended(self) -> None:
        self.process.wait(60)
        self._guard.cancel()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(*arguments: str, folder: Path) -> Iterator[Served]:
    """Serve a page and end it."""
    served = Served(*arguments, folder=folder)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.kill()
