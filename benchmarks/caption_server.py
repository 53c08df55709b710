"""A stand-in for a server of captions: real HTTP, real images, no model, and faults where they are asked for.

A caption says what was seen and asked, so that two captions are equal where image, text and seed are:

    PYTHONPATH=src python -m benchmarks.caption_server --port 8765 --slots 16 --seconds 0.05
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from PIL import Image

MODEL = "stand-in"


class Reply(NamedTuple):
    """What a fault sends instead of a caption; no status: the connection is closed without a word."""

    status: int | None = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)
    seconds_per_byte: float = 0.0


def image_of(payload: dict[str, Any]) -> Image.Image:
    url = payload["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def caption_of(payload: dict[str, Any]) -> str:
    """What the stand-in says: the image's size and a digest of its pixels, of the words beside it and of the seed."""
    image = image_of(payload)
    text = [part.get("text") for part in payload["messages"][0]["content"][1:]]
    said = json.dumps([text, payload["messages"][1:], payload.get("seed"), payload["temperature"]])
    mark = hashlib.sha256(image.convert("RGB").tobytes() + said.encode()).hexdigest()
    return f"an image of {image.width} by {image.height}, {mark[:12]}"


def completion(text: Any, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}).encode()


class CaptionServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        requests: what came, with "path", "key" and "time".
        in_flight: requests that are being answered.
        most: that ever were.

    Args:
        port: 0 for any.
        fault: gives a `Reply` for a request and its number (from 1) where it is to fail, else None.
        slots: captions at once; a further request waits, or is refused with 429 if `retry_after` is set.
        seconds: of a caption, on average; each takes 0.2 to 1.8 times that, by its image.
        retry_after: what a full server says.
        keep: remember the requests.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        port: int = 0,
        *,
        fault: Callable[[dict[str, Any], int], Reply | None] | None = None,
        slots: int = 16,
        seconds: float = 0.0,
        retry_after: str | None = None,
        keep: bool = True,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.fault, self.slots, self.seconds, self.retry_after, self.keep = fault, slots, seconds, retry_after, keep
        self.requests: list[dict[str, Any]] = []
        self.count, self.in_flight, self.most = 0, 0, 0
        self.lock, self.free = threading.Lock(), threading.Semaphore(slots)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *arguments: Any) -> None:
        pass  # clients that went away


class _Handler(BaseHTTPRequestHandler):
    server: CaptionServer

    def do_GET(self) -> None:
        self._send(Reply(body=json.dumps({"data": [{"id": MODEL}]}).encode()))

    def do_POST(self) -> None:
        server = self.server
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.count += 1
            server.in_flight += 1
            number, server.most = server.count, max(server.most, server.in_flight)
            if server.keep:
                seen = {"path": self.path, "key": self.headers.get("Authorization"), "time": time.monotonic()}
                server.requests.append({**payload, **seen})
        try:
            reply = self._reply(payload, number)
        finally:
            with server.lock:
                server.in_flight -= 1
        self._send(reply)

    def _reply(self, payload: dict[str, Any], number: int) -> Reply:
        server = self.server
        reply = server.fault(payload, number) if server.fault else None
        if reply is None and not server.free.acquire(blocking=server.retry_after is None):
            reply = Reply(429, b"full", {"Retry-After": str(server.retry_after)})
        elif reply is None:
            try:
                text = caption_of(payload)
                if server.seconds:
                    time.sleep(server.seconds * random.Random(text).uniform(0.2, 1.8))
                logprobs = {"content": [{"token": word, "logprob": -0.5} for word in text.split()]}
                more = {"logprobs": logprobs} if payload.get("logprobs") else {}
                reply = Reply(body=completion(text, **more))
            finally:
                server.free.release()
        return reply

    def _send(self, reply: Reply) -> None:
        if reply.status is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not reply.seconds_per_byte:
            self.wfile.write(reply.body)
            return
        for byte in reply.body:
            self.wfile.write(bytes([byte]))
            time.sleep(reply.seconds_per_byte)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(port: int = 0, **settings: Any) -> Iterator[CaptionServer]:
    """A `CaptionServer` in threads of this process."""
    server = CaptionServer(port, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.05)
    args = parser.parse_args()
    CaptionServer(args.port, slots=args.slots, seconds=args.seconds, keep=False).serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
