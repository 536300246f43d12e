"""A real HTTP server on the loopback that speaks like an OpenAI-compatible service, and misbehaves when it is told to.

`behave(number, body)` is asked for each request, numbered from 0 as they come: it returns what to do, one of the
functions below.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[BaseHTTPRequestHandler], None]


def completion(content: str, finish: str = "stop", usage: tuple[int, int] | None = (100, 50), **headers: str) -> Act:
    """A proper answer."""
    body: dict[str, Any] = {
        "id": "one",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}},
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return answer(200, json.dumps(body).encode(), **headers)


def answer(status: int, body: bytes = b"{}", **headers: str) -> Act:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def error(status: int, message: str, code: str = "", **headers: str) -> Act:
    return answer(status, json.dumps({"error": {"message": message, "code": code}}).encode(), **headers)


def disconnect(handler: BaseHTTPRequestHandler) -> None:
    """Half an answer, then a closed connection."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def hang(seconds: float) -> Act:
    """Bytes that trickle, but no answer."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(int(seconds * 20)):
            time.sleep(0.05)
            handler.wfile.write(b" ")
        handler.close_connection = True

    return act


def invented(prompt: str, count: int) -> list[dict[str, Any]]:
    """Items that follow from the prompt alone: texts with their triples, each of its own words."""
    items = []
    for place in range(count):
        digest = hashlib.sha256(f"{place} {prompt}".encode()).hexdigest()
        name, city = digest[:16], digest[16:32]
        triple = {"subject": name, "subject_type": "company", "predicate": "based in"}
        items.append(
            {"text": f"{name} lives at {city}.", "triples": [{**triple, "object": city, "object_type": "city"}]}
        )
    return items


def good(body: dict[str, Any]) -> Act:
    """As many items as the prompt asks for."""
    prompt = body["messages"][0]["content"]
    asked = re.search(r"Write (\d+) new", prompt)
    return completion(json.dumps(invented(prompt, int(asked[1]) if asked else 1)))


class LoopbackService:
    """`prompts`: of the requests so far, as they came. Use as a context manager."""

    def __init__(
        self, behave: Callable[[int, dict[str, Any]], Act] = lambda _, body: good(body), pause: float = 0
    ) -> None:
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.times: list[float] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each body waits 40 ms for the headers to be acknowledged

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.prompts)
                    outer.prompts.append(body["messages"][0]["content"])
                    outer.bodies.append(body)
                    outer.keys.add(self.headers["Authorization"])
                    outer.times.append(time.monotonic())
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    time.sleep(pause)
                    act = answer(404) if self.path != "/chat/completions" else behave(number, body)
                    act(self)
                except ConnectionError:
                    self.close_connection = True
                finally:
                    with lock:
                        outer.at_once -= 1

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
