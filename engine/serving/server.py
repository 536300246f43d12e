"""A server of a model: its socket, the device's thread, the event loop's thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from engine.config.sampling import find_preset
from engine.inference.merged_decode import computes_on_cpu, merge_weights
from engine.models import libraries
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.serving import several
from engine.serving.application import CompletionServer
from engine.serving.connections import WAITING, GuardedProtocol
from engine.serving.metrics import RequestRecord, ServerMetrics
from engine.serving.request_builder import RequestBuilder
from engine.serving.scheduler import Scheduler
from engine.serving.settings import Settings
from engine.serving.streams import EventRouter

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel

UNREAD = 60
"""Seconds after which the system drops a connection whose other side accepts no data."""
BACKLOG = 2048
"""Connections that may wait to be accepted."""
ENDING = 1
"""Seconds that connections have at the end to receive their last data."""


class TransformersServer:
    """Serves from its creation until `close`. Raises ProblemError."""

    def __init__(
        self, target: Target, settings: Settings, home: Home, progress: Callable[[str, int, int], None]
    ) -> None:
        key = settings.read_key()
        listening = listen(settings.host, settings.port)
        try:
            beside = several.resolve(settings.adapters, target, home, Path(settings.directory or home.root))
            loaded = _load(target, settings, home, progress)
            # On a CPU, `_decode` merges, unless each row has an adapter of its own.
            model = loaded.model if computes_on_cpu(loaded.model) else None
            adapters: dict[str, str] = {}
            if beside:
                model, adapters = several.load(loaded, beside)
            self._merges = not adapters
            self._loop = asyncio.new_event_loop()
            router = EventRouter(self._loop)
            self.scheduler = Scheduler(
                model if model is not None else loaded.decoder,
                loaded.tokenizer,
                loaded.stop_ids,
                router.deliver,
                slots=settings.slots,
                queue=settings.queue,
            )
        except BaseException:
            listening.close()
            raise
        host, port = listening.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        self.label, self.device, self.template = target.label, str(loaded.device), loaded.templated
        self.note = "; ".join(filter(None, (loaded.note, several.describe_differences(loaded, beside))))
        self.metrics = ServerMetrics(lambda: self.scheduler.figures)
        builder = RequestBuilder(
            loaded,
            tuple(dict.fromkeys((target.label, settings.target))),
            self.scheduler.context,
            default_sampling(settings),
            settings.longest,
            settings.seconds,
            settings.task,
            settings.constrained,
            adapters,
            {given: found.label for given, found in zip(settings.adapters, beside, strict=True)},
        )
        server = CompletionServer(builder, self.scheduler, router, self.metrics, key, settings.most_bytes)
        self._http = _configure_http(server, settings)
        self._device_thread = threading.Thread(target=self._decode, name="device", daemon=True)
        self._http_thread = threading.Thread(target=self._listen, args=(listening,), name="http", daemon=True)
        self._device_thread.start()
        self._http_thread.start()

    def _decode(self) -> None:
        model = self.scheduler.model
        with merge_weights(model) if self._merges and model.device.type == "cpu" else nullcontext():
            self.scheduler.run()

    def _listen(self, listening: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._http.serve(sockets=[listening]))
        self._loop.close()

    @property
    def alive(self) -> bool:
        return self._device_thread.is_alive() and self._http_thread.is_alive()

    def figures(self) -> dict[str, Any]:
        """As `ServerMetrics.snapshot`."""
        return self.metrics.snapshot()

    def requests(self, since: int) -> tuple[Sequence[RequestRecord], int]:
        """The requests answered after the first `since`, only the newest if there are many, and the number of all."""
        total = self.metrics.total
        recent = [*self.metrics.recent]
        return recent[len(recent) - min(total - since, len(recent)) :], total

    def close(self, seconds: float) -> None:
        """Accept no more requests, let the running ones finish for so many seconds, end the rest, and stop."""
        self.scheduler.drain()
        deadline = time.monotonic() + seconds
        while self.alive and not self.scheduler.idle and time.monotonic() < deadline:
            time.sleep(0.02)
        self.scheduler.close()
        self._device_thread.join(ENDING)
        self._http.should_exit = True
        self._http_thread.join(ENDING + 1)


def _load(target: Target, settings: Settings, home: Home, progress: Callable[[str, int, int], None]) -> LoadedModel:
    libraries.import_all()
    from engine.inference.loaded_model import load

    loaded = load(target, home=home, dtype=settings.dtype, quantization=settings.quantization, progress=progress)
    if loaded.tokenizer is None:
        raise ProblemError(
            Problem(
                code="tokenizer.missing",
                title=f"{target.label} cannot be served",
                cause="its folder has no tokenizer",
            )
        )
    return loaded


def _configure_http(server: CompletionServer, settings: Settings) -> uvicorn.Server:
    config = uvicorn.Config(
        server.application(),
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.slots + settings.queue + 2 * WAITING,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=ENDING,
    )
    return uvicorn.Server(config)


def default_sampling(settings: Settings) -> dict[str, Any]:
    """The sampling of requests that do not set it."""
    if settings.preset is None:
        return {"temperature": 0.0 if settings.task else 1.0}
    return find_preset(settings.preset)


def listen(host: str, port: int) -> socket.socket:
    """A socket whose clients may connect at once; they wait for their answers while the model is loaded. A second
    server on the port fails here, rather than after it has loaded its model. Raises ProblemError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit both, so that clients that vanish or read nothing are dropped.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD * 1000)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ProblemError(
            Problem(
                code="serving.address_unavailable",
                title=f"cannot listen on {host}:{port}",
                cause=error.strerror or str(error),
                hint="choose another port, or --port 0 for a free one",
            )
        )
    return listening
