"""A real browser, and a page that is served to it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; where there is no browser, its tests are skipped and say so."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    binary = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if binary is None:
        pytest.skip("no browser on this machine: install Debian's chromium, or Chrome")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def serving() -> Callable[[Any], AbstractContextManager[str]]:
    """What serves an application in a thread and yields its address."""
    import uvicorn

    from captune.annotation import web

    @contextlib.contextmanager
    def serve(app: Any) -> Iterator[str]:
        with web.bound("127.0.0.1", 0) as listener:
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            until = time.monotonic() + 60
            while not server.started:
                assert time.monotonic() < until
                time.sleep(0.01)
            yield web.link("127.0.0.1", listener.getsockname()[1], None)
            server.should_exit = True
            thread.join(30)

    return serve
