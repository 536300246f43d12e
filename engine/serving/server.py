"""A model that is being served: its socket, the device's thread, the loop's thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import uvicorn

from engine.config.sampling import find_preset
from engine.inference.merged_decode import folded
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.serving.application import Server
from engine.serving.metrics import Book, Request
from engine.serving.request_builder import Served
from engine.serving.scheduler import Scheduler
from engine.serving.settings import Settings
from engine.serving.streams import Post

IDLE_CONNECTIONS = 256
"""Open beside those whose requests run or wait."""
UNREAD = 60
"""Seconds after which the system gives a connection up whose other side takes nothing."""
ENDING = 1
"""Seconds that connections have to take what they are told at the end."""


class Running:
    """Served from the moment it is made, until `close`. Raises ProblemError."""

    def __init__(
        self, target: Target, settings: Settings, home: Home, progress: Callable[[str, int, int], None]
    ) -> None:
        from engine.inference.loaded_model import load

        key = settings.key()
        listening = bound(settings.host, settings.port)
        try:
            loaded = load(
                target, home=home, dtype=settings.dtype, quantization=settings.quantization, progress=progress
            )
            if loaded.tokenizer is None:
                raise ProblemError(
                    Problem(
                        code="tokenizer.missing",
                        title=f"{target.label} cannot be served",
                        cause="its folder has no tokenizer",
                    )
                )
            self._loop = asyncio.new_event_loop()
            post = Post(self._loop)
            self.scheduler = Scheduler(
                loaded.model,
                loaded.tokenizer,
                loaded.stop_ids,
                post.deliver,
                slots=settings.slots,
                queue=settings.queue,
            )
        except BaseException:
            listening.close()
            raise
        host, port = listening.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        self.label, self.device, self.template = target.label, str(loaded.device), loaded.templated
        self.note = loaded.note
        self.book = Book(lambda: self.scheduler.figures)
        served = Served(
            loaded,
            tuple(dict.fromkeys((target.label, settings.target))),
            self.scheduler.context,
            defaults(settings),
            settings.longest,
            settings.seconds,
            settings.task,
            settings.constrained,
        )
        server = Server(served, self.scheduler, post, self.book, key, settings.most_bytes)
        self._http = uvicorn.Server(
            uvicorn.Config(
                server.application(),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=settings.slots + settings.queue + IDLE_CONNECTIONS,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=ENDING,
            )
        )
        self._device_thread = threading.Thread(target=self._decode, name="device", daemon=True)
        self._http_thread = threading.Thread(target=self._listen, args=(listening,), name="http", daemon=True)
        self._device_thread.start()
        self._http_thread.start()

    def _decode(self) -> None:
        model = self.scheduler.model
        with folded(model) if model.device.type == "cpu" else nullcontext():
            self.scheduler.run()

    def _listen(self, listening: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._http.serve(sockets=[listening]))
        self._loop.close()

    @property
    def alive(self) -> bool:
        return self._device_thread.is_alive() and self._http_thread.is_alive()

    def figures(self) -> dict[str, Any]:
        """As `Book.now`."""
        return self.book.now()

    def requests(self, since: int) -> tuple[Sequence[Request], int]:
        """Those answered after the first `since`, the newest of them when they are many, and how many there have been."""
        total = self.book.total
        recent = [*self.book.recent]
        return recent[len(recent) - min(total - since, len(recent)) :], total

    def close(self, seconds: float) -> None:
        """Take nothing more in, let what is in flight finish for so long, tell the rest, and end."""
        self.scheduler.drain()
        deadline = time.monotonic() + seconds
        while self.alive and not self.scheduler.idle and time.monotonic() < deadline:
            time.sleep(0.02)
        self.scheduler.close()
        self._device_thread.join(ENDING)
        self._http.should_exit = True
        self._http_thread.join(ENDING + 1)


def defaults(settings: Settings) -> dict[str, Any]:
    """The sampling of requests that do not say."""
    if settings.preset is None:
        return {"temperature": 0.0 if settings.task else 1.0}
    return find_preset(settings.preset)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ProblemError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # What is accepted inherits both: who has vanished, or takes nothing, does not stay for good.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD * 1000)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ProblemError(
            Problem(
                code="serving.address_unavailable",
                title=f"{host}:{port} cannot be listened at",
                cause=error.strerror or str(error),
                hint="--port 0 takes a free one",
            )
        )
    return listening
