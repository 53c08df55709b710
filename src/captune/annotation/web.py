"""What the pages for people are served with: an application of Starlette, guarded, on this machine's loopback.

images = ImagesById("photos")                                    # images by id, never by path
app = application([Route("/", home), post("/vote", vote)], images)
serve(app, host="127.0.0.1", port=0, announce=print)             # returns after SIGINT or SIGTERM

A handler answers with `page("arena.html.j2", ...)`, a template of this folder, autoescaped, or with an `Answer`;
a change is a `post`, a function from JSON to JSON. A `CaptuneError` that either raises becomes status 400 and
``{"error": sentence}``. Both run in threads. Served besides: ``/image?id=…&side=320`` (or 1280; `image_url` writes it),
and ``/static/NAME`` for every ``.css`` and ``.js`` of this folder and the report's page.css.

What is refused before a handler runs: a request for another host name than the loopback's (DNS rebinding), a POST from
another origin (cross-site request forgery), and, where the page can be reached from other machines, whoever does not
have the token, which is in the link once and in a cookie from then on. Pages load nothing from elsewhere and hold no
inline script or style: the Content-Security-Policy forbids both.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import logging
import secrets
import signal
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from captune.errors import AnnotationError, BadImage, CaptuneError, SourceError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as missing:
    raise AnnotationError(
        f"the page needs the Python package {missing.name!r}, which is not installed: pip install 'captune[annotate]'"
    ) from missing

SIDES = (320, 1280)
"""The longest side of an image as it is served, in pixels: in a list, and by itself."""

CACHED = 512  # encoded images in memory: some 20 MB of small ones, 150 MB of large ones
LARGEST_POST = 2**18  # bytes
LOOPBACK = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

log = logging.getLogger(__name__)


# -------------------------------------------------------------------- images


class ImagesById:
    """The images of a source by their ids, as JPEG of a bounded size.

    Args:
        source: where the images are; one that streams cannot be read by id.

    Attributes:
        source: as given.
        rows: {image_id: its row}, in the source's order.

    Raises:
        SourceError: the source streams, or cannot be read.
    """

    def __init__(self, source: str) -> None:
        from datasets import Dataset

        from captune.data import column, load_images

        dataset = load_images(source)
        if not isinstance(dataset, Dataset):
            raise SourceError(f"{source} streams; the page needs a source that can be read by id")
        self.source = source
        self.rows = {image_id: row for row, image_id in enumerate(column(dataset, "image_id"))}
        self._dataset = dataset
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def jpeg(self, image_id: str, side: int) -> bytes:
        """Return an image, upright, its longest side at most `side` pixels.

        Raises:
            BadImage: it cannot be opened.
            KeyError: the source has no such image.
        """
        row, key = self.rows[image_id], (image_id, side)
        with self._lock:
            if key not in self._kept:
                image = self._dataset[row]["image"]
                image.thumbnail((side, side))
                encoded = io.BytesIO()
                image.save(encoded, "JPEG", quality=88)
                self._kept[key] = encoded.getvalue()
                if len(self._kept) > CACHED:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def row(self, image_id: str) -> dict[str, Any]:
        """Return the source's row of an image, the image opened."""
        with self._lock:
            return dict(self._dataset[self.rows[image_id]])

    def respond(self, request: Request) -> Response:
        """Answer ``/image?id=…&side=…``."""
        image_id, side = request.query_params.get("id", ""), request.query_params.get("side", str(SIDES[0]))
        if side not in map(str, SIDES):
            return PlainTextResponse(f"side is {' or '.join(map(str, SIDES))}", 400)
        try:
            data = self.jpeg(image_id, int(side))
        except KeyError:
            return PlainTextResponse("the source has no such image", 404)
        except BadImage as error:
            log.warning("%s", error)
            return PlainTextResponse(f"this image cannot be opened: {error.why}", 404)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})


class Answer(JSONResponse):
    """JSON that every text fits into: half a character, which is no UTF-8, is escaped."""

    def render(self, content: Any) -> bytes:
        """Return it encoded."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def image_url(image_id: str, side: int = SIDES[0]) -> str:
    """Return the address of an image on the page."""
    return f"/image?{urlencode({'id': image_id, 'side': side}, quote_via=quote)}"


# -------------------------------------------------------------------- the application


def application(routes: Sequence[Route], images: ImagesById) -> Starlette:
    """Return the application: the given routes, the images, the files of this folder, and the guard before them."""
    files = _assets()

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            return PlainTextResponse("no such file", 404)
        return Response(files[name], media_type="text/css" if name.endswith(".css") else "text/javascript")

    app = Starlette(
        routes=[
            *routes,
            Route("/image", images.respond),
            Route("/static/{name}", static),
            Route("/favicon.ico", lambda _: Response(status_code=204)),
        ],
        middleware=[Middleware(Guard)],
        exception_handlers={CaptuneError: _refused},
    )
    app.state.token = None
    return app


def _refused(_: Request, error: Exception) -> Response:
    return Answer({"error": str(error)}, 400)


def _assets() -> dict[str, str]:
    """The files that pages may load, by name."""
    from captune.report.page import asset

    own = resources.files("captune.annotation").iterdir()
    return {"page.css": asset("page.css")} | {
        file.name: file.read_text(encoding="utf-8") for file in own if file.name.endswith((".css", ".js"))
    }


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page: a template of this folder, filled; it may use `image_url`."""
    from captune.report.page import environment

    text = (resources.files("captune.annotation") / template).read_text(encoding="utf-8")
    html = environment().from_string(text).render(image_url=image_url, **values)
    return HTMLResponse(html.encode("utf-8", "replace"), status)  # a lone surrogate of a caption is no UTF-8


def post(path: str, answer: Callable[[dict[str, Any]], Any]) -> Route:
    """Return the route of a change: `answer` gets the JSON object that was sent and returns what is sent back as JSON.

    A request that holds no object, or one of more than 256 KiB, is refused.
    """

    async def handler(request: Request) -> Response:
        return Answer(await run_in_threadpool(answer, await _posted(request)))

    return Route(path, handler, methods=["POST"])


async def _posted(request: Request) -> dict[str, Any]:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST_POST:
            raise AnnotationError(f"a request may have {LARGEST_POST:,} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise AnnotationError("a request is one JSON object")
    return body


# -------------------------------------------------------------------- the guard


class Guard:
    """Refuses who must not be answered, before anything of the application runs; adds the headers of every answer.

    The application's ``state.token`` is what a visitor must bring; None: only the loopback's names are answered.

    Args:
        app: what is guarded.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        answer = self._refusal(request, scope["app"].state.token)
        await (answer or self.app)(scope, receive, guarded)

    def _refusal(self, request: Request, token: str | None) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin", "null")
        if token is None and (urlsplit(f"//{host}").hostname or "") not in LOOPBACK:
            return PlainTextResponse("this page answers to localhost only", 421)
        if request.method not in ("GET", "HEAD"):
            site = request.headers.get("sec-fetch-site")
            if not (urlsplit(origin).netloc == host or (origin == "null" and site == "same-origin")):
                return PlainTextResponse("a change can be asked for by this page only", 403)
        if token is None:
            return None
        cookie = f"captune-{(request.scope.get('server') or ('', 0))[1]}"
        query = parse_qsl(request.url.query, keep_blank_values=True)
        shown = dict(query).get("token")
        if shown is not None and hmac.compare_digest(shown.encode(), token.encode()):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            away = RedirectResponse(f"{quote(request.url.path)}{f'?{rest}' if rest else ''}", 303)
            away.set_cookie(cookie, token, httponly=True, samesite="lax")
            return away
        if hmac.compare_digest(request.cookies.get(cookie, "").encode(), token.encode()):
            return None
        return PlainTextResponse("open the link that captune printed: it holds the token of this page", 403)


# -------------------------------------------------------------------- serving


def serve(
    app: Starlette, *, host: str = "127.0.0.1", port: int = 0, announce: Callable[[str], Any] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; then finish the answers that are under way and return.

    Args:
        app: from `application`.
        host: the address to bind; one that other machines can reach needs the token, which is made here.
        port: 0: a free one.
        announce: called with the whole link when the page can be opened.

    Raises:
        AnnotationError: the address cannot be bound.
    """
    with bound(host, port) as listener:
        port = listener.getsockname()[1]
        app.state.token = None if is_loopback(host) else secrets.token_urlsafe(24)
        if announce is not None:
            announce(link(host, port, app.state.token))
        config = uvicorn.Config(
            app, log_level="warning", lifespan="off", access_log=False, server_header=False, timeout_graceful_shutdown=3
        )
        with _signals_end_it():
            uvicorn.Server(config).run(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise AnnotationError(f"the page cannot be served at {host}, port {port}: {why}; name another --port") from None
    with listener:
        yield listener


def link(host: str, port: int, token: str | None) -> str:
    """Return the address that a person opens; one bound to all addresses is shown with this machine's name."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Inside, uvicorn raises the signal that ended it again, to whoever handled it before: nobody."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
