"""The OpenAI-compatible HTTP interface of a scheduler, as an ASGI application. It never blocks on the device."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.serving import metrics
from engine.serving.jobs import Rejection
from engine.serving.metrics import ServerMetrics
from engine.serving.request_builder import RequestBuilder
from engine.serving.request_schemas import ChatRequest, RequestError, TextRequest, parse_body
from engine.serving.response_schemas import FAILURES, ResponseWriter, find_failure, prompt_tokens, usage
from engine.serving.scheduler import Scheduler
from engine.serving.streams import ChoiceUpdate, ClientGone, EventRouter, ReplyStream
from engine.serving.tool_calls import ToolCallReader

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
UPLOAD = 30.0
"""Seconds within which a request's body must arrive."""
UNREAD = 60.0
"""Seconds within which a client must read from a full buffer."""
GONE = 499
"""nginx's status for clients that have disconnected; it is only counted."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


@dataclass
class Outcome:
    """The outcome of a request: its HTTP status and a word for it."""

    status: int = 200
    word: str = "served"


@dataclass
class CompletionServer:
    """The HTTP handlers, and what they work with."""

    builder: RequestBuilder
    scheduler: Scheduler
    router: EventRouter
    counters: ServerMetrics
    key: str = ""
    """The key that clients must send; empty: none, and only requests to this machine's own names are answered."""
    most_bytes: int = 1 << 20
    """Largest body of a request."""

    def application(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        routes = [
            Route(CHAT, self.complete, methods=["POST"]),
            Route(TEXT, self.complete, methods=["POST"]),
            Route("/v1/embeddings", self.refuse_embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        handlers: Any = {
            RequestError: self.handle_request_error,
            HTTPException: self.handle_route_error,
            ClientDisconnect: self.handle_disconnect,
            Exception: self.handle_failure,
        }
        inner = Starlette(routes=routes, exception_handlers=handlers)

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (refusal := self._find_refusal(Request(scope))):
                await self._refuse(Request(scope), refusal)(scope, receive, send)
            else:
                await inner(scope, receive, send)

        return guarded

    # ── what is served ────────────────────────────────────────────────────────────────────────────────────────────

    async def health(self, request: Request) -> Response:
        """200 while replies can be generated."""
        alive = self.scheduler.alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self.counters.prometheus(), media_type="text/plain; version=0.0.4")

    async def refuse_embeddings(self, request: Request) -> Response:
        raise RequestError(
            404, "embeddings are not served: this model generates text, at /v1/chat/completions and /v1/completions"
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe_model(name) for name in self.builder.models]})

    async def model(self, request: Request) -> Response:
        self.builder.check_name(name := request.path_params["name"])
        return JSONResponse(self._describe_model(self.builder.choose_name(name)))

    def _describe_model(self, name: str) -> dict[str, Any]:
        builder = self.builder
        model = {"id": name, "object": "model", "created": builder.created, "owned_by": "cockpit"}
        return model | {"max_model_len": builder.context}

    async def complete(self, request: Request) -> Response:
        """Answer a chat or text completion."""
        chat = request.url.path == CHAT
        completion = parse_body(await _read_body(request, self.most_bytes), ChatRequest if chat else TextRequest)
        jobs = await asyncio.to_thread(self.builder.chat if chat else self.builder.text, completion)
        family = self.builder.find_family(completion) if chat else None
        reader = partial(ToolCallReader, family, completion.parameters()) if family else None
        writer = ResponseWriter(chat, self.builder.choose_name(completion.model), reader)
        stream = self.router.expect(jobs)
        try:
            self.scheduler.submit(jobs)
        except Rejection as rejection:
            self.router.forget(jobs)
            if rejection.full:
                raise RequestError(429, f"{rejection}: {self.scheduler.queue} requests are waiting", code="queue_full")
            raise FAILURES["closing"]
        if completion.stream:
            return EventStream(
                self, stream, writer, bool(completion.stream_options and completion.stream_options.include_usage)
            )
        choices = [ChoiceUpdate(index) for index in range(len(jobs))]
        async with self.track(request, stream) as outcome:
            while stream.open:
                for update in await stream.next():
                    choices[update.index].add(update)
            if error := find_failure(choices):
                outcome.status, outcome.word = error.status, error.code or error.message
                return JSONResponse(error.body(), error.status)
        return Response(status_code=GONE) if outcome.status == GONE else JSONResponse(writer.whole(choices, jobs))

    @asynccontextmanager
    async def track(self, request: Request, stream: ReplyStream) -> AsyncIterator[Outcome]:
        """Watch a request: if the client disconnects, the outcome has the status 499. At the end the jobs are cancelled
        and the request is recorded, whatever happened."""
        began, jobs, outcome = time.time(), stream.jobs, Outcome()
        gone = asyncio.ensure_future(_wait_for_disconnect(request))
        gone.add_done_callback(lambda _: stream.hang_up())
        try:
            yield outcome
        except ClientGone:
            outcome.status, outcome.word = GONE, "gone"
        except BaseException as error:
            outcome.status, outcome.word = 500, repr(error)
            raise
        finally:
            gone.cancel()
            for job in jobs:
                self.scheduler.cancel(job)
            self.router.forget(jobs)
            accepted = min(job.accepted for job in jobs)
            first = min((job.first for job in jobs if job.first), default=accepted)
            self.counters.record(
                metrics.RequestRecord(
                    time=began,
                    path=request.url.path,
                    status=outcome.status,
                    word=outcome.word,
                    prompt_tokens=prompt_tokens(jobs),
                    tokens=sum(job.tokens for job in jobs),
                    seconds=time.monotonic() - accepted,
                    first=first - accepted,
                )
            )

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _find_refusal(self, request: Request) -> RequestError | None:
        """The error for a request without access. Without a key, a web page in a browser on this machine could
        otherwise reach the server, under another host name or from another origin."""
        if self.key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if request.url.path != "/health" and not hmac.compare_digest(given, self.key.encode()):
                return RequestError(401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key")
            return None
        host = request.headers.get("host", "")
        if host and host not in LOCAL and host.rpartition(":")[0] not in LOCAL:
            return RequestError(403, f"without a key this server answers only as localhost, not as {host!r}")
        if "origin" in request.headers:
            return RequestError(403, "without a key this server does not answer web pages")
        return None

    def _refuse(self, request: Request, error: RequestError) -> Response:
        # Unknown paths count as one, so that clients cannot grow the number of counters.
        path = request.url.path if request.url.path in (CHAT, TEXT) else "/"
        self.counters.record(metrics.RequestRecord(time.time(), path, error.status, error.code or error.message))
        headers = {"retry-after": "1"} if error.status in (429, 503) else {}
        if error.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        return JSONResponse(error.body(), error.status, headers)

    async def handle_request_error(self, request: Request, error: Any) -> Response:
        return self._refuse(request, error)

    async def handle_route_error(self, request: Request, error: Any) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return self._refuse(request, RequestError(error.status_code, message))

    async def handle_disconnect(self, request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    async def handle_failure(self, request: Request, error: Exception) -> Response:
        return self._refuse(request, RequestError(500, f"the server failed: {error!r}"))


class EventStream(Response):
    """A reply as server-sent events. It begins with the first update, so that an earlier failure has an HTTP status of
    its own."""

    def __init__(self, server: CompletionServer, stream: ReplyStream, writer: ResponseWriter, with_usage: bool) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self.server, self.stream, self.writer, self.with_usage = server, stream, writer, with_usage

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        writer, stream = self.writer, self.stream
        async with self.server.track(Request(scope, receive), stream) as outcome:
            begun = False
            while stream.open:
                updates = await stream.next()
                error = find_failure(updates)
                if error:
                    outcome.status, outcome.word = error.status, error.code or error.message
                if not begun:
                    if error:
                        await JSONResponse(error.body(), error.status)(scope, receive, send)
                        return
                    await _send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    opening = [piece for index in range(len(stream.jobs)) for piece in writer.opening(index)]
                    begun = True
                else:
                    opening = []
                pieces = opening + [piece for each in updates for piece in writer.pieces(each)]
                lines = [_event(writer.chunk([piece], None, self.with_usage)) for piece in pieces]
                if error:
                    lines = [_event(error.body())]
                await _send(send, {"type": "http.response.body", "body": b"".join(lines), "more_body": True})
                if error:
                    break
            else:
                last = [_event(writer.chunk([], usage(stream.jobs), True))] if self.with_usage else []
                body = b"".join([*last, b"data: [DONE]\n\n"])
                await _send(send, {"type": "http.response.body", "body": body, "more_body": True})
            await _send(send, {"type": "http.response.body", "body": b"", "more_body": False})


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


async def _send(send: Send, message: Scope) -> None:
    """Send a message. Raises ClientGone when the client does not read it."""
    try:
        async with asyncio.timeout(UNREAD):
            await send(message)
    except TimeoutError:
        raise ClientGone


async def _read_body(request: Request, most: int) -> bytes:
    """The body of a request. Raises RequestError for one that is too large or too slow, and ClientDisconnect."""
    too_large = RequestError(413, f"the body is larger than {most} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {UPLOAD:g} s", code="timeout")
    return bytes(body)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
