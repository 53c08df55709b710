"""What serves the pages: who is answered, what is refused, and how it ends."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs captune[annotate]")

from captune.annotation import web
from captune.errors import AnnotationError

HOSTILE = ("../secret.txt", "/etc/passwd", "..%2fsecret.txt", "file:///etc/passwd", "a.jpg\0", "")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (2000, 1000), "teal").save(folder / "a.jpg")
    Image.new("RGB", (30, 40), "red").save(folder / "b & ü.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def app(photos: Path) -> Any:
    def failing(body: dict[str, Any]) -> Any:
        raise AnnotationError("this is refused")

    routes = [
        web.Route("/", lambda _: web.HTMLResponse("hello")),
        web.post("/echo", lambda body: body),
        web.post("/fail", failing),
    ]
    return web.application(routes, web.ImagesById(str(photos)))


@contextlib.contextmanager
def asking(photos: Path, token: str | None = None) -> Iterator[httpx.Client]:
    from starlette.testclient import TestClient

    made = app(photos)
    made.state.token = token
    yield TestClient(made, base_url="http://127.0.0.1:8000", follow_redirects=False)


def test_images_are_served_by_id_upright_and_small(photos: Path) -> None:
    with asking(photos) as client:
        large, small = (client.get(web.image_url("a.jpg", side)) for side in (1280, 320))
        assert [Image.open(io.BytesIO(own.content)).size for own in (large, small)] == [(1280, 640), (320, 160)]
        assert Image.open(io.BytesIO(client.get(web.image_url("b & ü.png")).content)).size == (30, 40)
        assert client.get("/image?id=a.jpg&side=100000").status_code == 400
        assert "cannot be opened" in client.get(web.image_url("broken.jpg")).text
        for image_id in HOSTILE:
            assert client.get(web.image_url(image_id)).status_code == 404
            assert client.get(f"/static/{quote(image_id)}").status_code == 404
        assert "--paper" in client.get("/static/page.css").text


def test_every_answer_has_the_headers(photos: Path) -> None:
    with asking(photos) as client:
        for path in ("/", "/image?id=a.jpg&side=320", "/static/page.css", "/nothing"):
            headers = client.get(path).headers
            assert {name: headers[name] for name in web.HEADERS} == web.HEADERS
            assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "", "[::2]", "10.0.0.1"])
def test_another_host_name_is_refused(photos: Path, host: str) -> None:
    with asking(photos) as client:
        assert client.get("/", headers={"host": host}).status_code == 421
        for known in ("localhost:9", "127.0.0.1", "[::1]:8000"):
            assert client.get("/", headers={"host": known}).status_code == 200


def test_a_change_comes_from_the_page_itself(photos: Path) -> None:
    def status(**headers: str) -> int:
        return client.post(
            "/echo", json={"a": 1}, headers={k.replace("_", "-"): v for k, v in headers.items()}
        ).status_code

    with asking(photos) as client:
        assert status(origin="http://127.0.0.1:8000") == 200
        assert status(origin="null", sec_fetch_site="same-origin") == 200
        assert status() == status(origin="null") == status(origin="http://127.0.0.1:8001") == 403
        assert status(origin="http://evil.example") == status(origin="null", sec_fetch_site="cross-site") == 403
        own = {"origin": "http://127.0.0.1:8000"}
        assert client.post("/echo", content=b"[1]", headers=own).json()["error"] == "a request is one JSON object"
        assert client.post("/echo", content=b"x" * 300_000, headers=own).status_code == 400
        answer = client.post("/fail", json={}, headers=own)
        assert (answer.status_code, answer.json()) == (400, {"error": "this is refused"})
        assert client.get("/echo").status_code == 405


def test_with_a_token_nobody_else_is_answered(photos: Path) -> None:
    with asking(photos, token="right") as client:
        for path in ("/", "/?token=wrong", "/image?id=a.jpg&side=320", "/static/page.css"):
            assert client.get(path).status_code == 403
        first = client.get("/?a=1&token=right", headers={"host": "mine.example:8000"})
        assert (first.status_code, first.headers["location"]) == (303, "/?a=1")
        assert "HttpOnly" in first.headers["set-cookie"]
        client.cookies.set(*first.headers["set-cookie"].split(";")[0].split("="))
        assert client.get("/").text == "hello"
        assert client.post("/echo", json={}, headers={"origin": "http://evil.example"}).status_code == 403


def test_a_taken_port_is_refused() -> None:
    with web.bound("127.0.0.1", 0) as taken, contextlib.ExitStack() as more:
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("256.0.0.1", 0)):
            with pytest.raises(AnnotationError, match="name another --port"):
                more.enter_context(web.bound(host, port))


def test_links() -> None:
    assert web.link("127.0.0.1", 80, None) == "http://127.0.0.1:80/"
    assert web.link("::1", 80, "x") == "http://[::1]:80/?token=x"
    assert [web.is_loopback(h) for h in ("localhost", "127.3.2.1", "::1", "0.0.0.0", "host", "")] == [True] * 3 + [
        False
    ] * 3


SERVER = """
import sys
from captune.annotation import web
routes = [web.Route("/", lambda _: web.HTMLResponse("hello"))]
app = web.application(routes, web.ImagesById(sys.argv[1]))
web.serve(app, host=sys.argv[2], announce=lambda link: print(link, flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize(("number", "host"), [(signal.SIGINT, "127.0.0.1"), (signal.SIGTERM, "0.0.0.0")])
def test_a_signal_ends_it_cleanly(photos: Path, number: int, host: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SERVER, str(photos), host]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdout is not None
        where = process.stdout.readline().strip().replace(os.uname().nodename, "127.0.0.1")
        assert ("token=" in where) == (host == "0.0.0.0")
        with httpx.Client(follow_redirects=True) as client:
            assert client.get(where).text == "hello"
            process.send_signal(number)
            out, err = process.communicate()
        guard.cancel()
        assert (process.returncode, out, err) == (0, "ended\n", "")
