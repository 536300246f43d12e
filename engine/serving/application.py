"""The OpenAI-compatible HTTP interface over a scheduler, as an ASGI application. It waits for the device by awaiting alone."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.serving import metrics
from engine.serving.metrics import Book
from engine.serving.request_builder import Served
from engine.serving.request_schemas import ChatAsked, RequestError, TextAsked, read
from engine.serving.response_schemas import BROKEN_OFF, Shape, broken_off, prompt_tokens, usage
from engine.serving.scheduler import Refused, Scheduler
from engine.serving.streams import Gone, News, Post, Replying

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
UPLOAD = 30.0
"""Seconds that a body may take to come."""
UNREAD = 60.0
"""Seconds that a client may leave a full buffer unread."""
GONE = 499
"""nginx's status for clients that have hung up; nobody is there to read it."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


@dataclass
class Outcome:
    """How a request went: its HTTP status and a word for it."""

    status: int = 200
    word: str = "served"


@dataclass
class Server:
    """What the application works with. `key`: what clients must show; empty: nothing, and then only this machine's own names are
    answered. `most_bytes`: of a body."""

    served: Served
    scheduler: Scheduler
    post: Post
    book: Book
    key: str = ""
    most_bytes: int = 1 << 20

    def application(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        routes = [
            Route(CHAT, self.complete, methods=["POST"]),
            Route(TEXT, self.complete, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        handlers: Any = {
            RequestError: self.refuse,
            HTTPException: self.refuse_route,
            ClientDisconnect: self.gone,
            Exception: self.blunder,
        }
        inner = Starlette(routes=routes, exception_handlers=handlers)

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (refusal := self._turned_away(Request(scope))):
                await self._refusal(Request(scope), refusal)(scope, receive, send)
            else:
                await inner(scope, receive, send)

        return door

    # ── what is served ────────────────────────────────────────────────────────────────────────────────────────────

    async def health(self, request: Request) -> Response:
        """200 while replies can be made."""
        well = self.scheduler.alive
        return JSONResponse({"status": "ok" if well else "the model's thread has ended"}, 200 if well else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self.book.prometheus(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self.served.check_name(request.path_params["name"])
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        served = self.served
        told = {"id": served.names[0], "object": "model", "created": served.created, "owned_by": "cockpit"}
        return told | {"max_model_len": served.context}

    async def complete(self, request: Request) -> Response:
        """Both kinds of completions."""
        chat = request.url.path == CHAT
        asked = read(await _body(request, self.most_bytes), ChatAsked if chat else TextAsked)
        jobs = await asyncio.to_thread(self.served.chat if chat else self.served.text, asked)
        shape = Shape(chat, self.served.names[0])
        replying = self.post.expect(jobs)
        try:
            self.scheduler.submit(jobs)
        except Refused as refused:
            self.post.forget(jobs)
            if refused.full:
                raise RequestError(429, f"{refused}: {self.scheduler.queue} wait already", code="queue_full")
            raise BROKEN_OFF["closing"]
        if asked.stream:
            return Events(self, replying, shape, bool(asked.stream_options and asked.stream_options.include_usage))
        choices = [News(index) for index in range(len(jobs))]
        async with self.held(request, replying) as outcome:
            while replying.open:
                for news in await replying.next():
                    choices[news.index].add(news)
            if error := broken_off(choices):
                outcome.status, outcome.word = error.status, error.code or error.message
                return JSONResponse(error.body(), error.status)
        return Response(status_code=GONE) if outcome.status == GONE else JSONResponse(shape.whole(choices, jobs))

    @asynccontextmanager
    async def held(self, request: Request, replying: Replying) -> AsyncIterator[Outcome]:
        """Within, the client is watched; after it, whatever happened, nothing of the request is left on the device, and it is noted. A
        client that is gone ends it, with the status 499."""
        began, jobs, outcome = time.time(), replying.jobs, Outcome()
        gone = asyncio.ensure_future(_disconnected(request))
        gone.add_done_callback(lambda _: replying.hang_up())
        try:
            yield outcome
        except Gone:
            outcome.status, outcome.word = GONE, "gone"
        except BaseException as error:
            outcome.status, outcome.word = 500, repr(error)
            raise
        finally:
            gone.cancel()
            for job in jobs:
                self.scheduler.cancel(job)
            self.post.forget(jobs)
            accepted = min(job.accepted for job in jobs)
            first = min((job.first for job in jobs if job.first), default=accepted)
            self.book.note(
                metrics.Request(
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

    def _turned_away(self, request: Request) -> RequestError | None:
        """Who must not come in. Without a key, a page in somebody's browser could reach the server on its machine: under another name for
        it, or from elsewhere."""
        if self.key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if request.url.path != "/health" and not hmac.compare_digest(given, self.key.encode()):
                return RequestError(401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key")
            return None
        host = request.headers.get("host", "")
        if host and host not in LOCAL and host.rpartition(":")[0] not in LOCAL:
            return RequestError(403, f"without a key this server answers as localhost alone, not as {host!r}")
        if "origin" in request.headers:
            return RequestError(403, "without a key this server answers no web pages")
        return None

    def _refusal(self, request: Request, error: RequestError) -> Response:
        # Paths that nobody serves are one: what clients make up must not grow what is counted.
        path = request.url.path if request.url.path in (CHAT, TEXT) else "/"
        self.book.note(metrics.Request(time.time(), path, error.status, error.code or error.message))
        headers = {"retry-after": "1"} if error.status in (429, 503) else {}
        if error.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        return JSONResponse(error.body(), error.status, headers)

    async def refuse(self, request: Request, error: Any) -> Response:
        return self._refusal(request, error)

    async def refuse_route(self, request: Request, error: Any) -> Response:
        told = RequestError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}")
        return self._refusal(request, told)

    async def gone(self, request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    async def blunder(self, request: Request, error: Exception) -> Response:
        return self._refusal(request, RequestError(500, f"the server made a mistake: {error!r}"))


class Events(Response):
    """A reply as server-sent events. It begins with the first news, so that what fails before has an HTTP status of its own."""

    def __init__(self, server: Server, replying: Replying, shape: Shape, with_usage: bool) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self.server, self.replying, self.shape, self.with_usage = server, replying, shape, with_usage

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        shape, replying = self.shape, self.replying
        async with self.server.held(Request(scope, receive), replying) as outcome:
            begun = False
            while replying.open:
                news = await replying.next()
                error = broken_off(news)
                if error:
                    outcome.status, outcome.word = error.status, error.code or error.message
                if not begun:
                    if error:
                        await JSONResponse(error.body(), error.status)(scope, receive, send)
                        return
                    await _sent(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    opening = [piece for index in range(len(replying.jobs)) for piece in shape.opening(index)]
                    begun = True
                else:
                    opening = []
                pieces = opening + [piece for each in news for piece in shape.pieces(each)]
                lines = [_event(shape.chunk([piece], None, self.with_usage)) for piece in pieces]
                if error:
                    lines = [_event(error.body())]
                await _sent(send, {"type": "http.response.body", "body": b"".join(lines), "more_body": True})
                if error:
                    break
            else:
                last = [_event(shape.chunk([], usage(replying.jobs), True))] if self.with_usage else []
                body = b"".join([*last, b"data: [DONE]\n\n"])
                await _sent(send, {"type": "http.response.body", "body": body, "more_body": True})
            await _sent(send, {"type": "http.response.body", "body": b"", "more_body": False})


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


async def _sent(send: Send, message: Scope) -> None:
    """Raises Gone when the client leaves it unread."""
    try:
        async with asyncio.timeout(UNREAD):
            await send(message)
    except TimeoutError:
        raise Gone


async def _body(request: Request, most: int) -> bytes:
    """Raises RequestError for one that is too large or too slow, ClientDisconnect."""
    too_large = RequestError(413, f"a body of more than {most} bytes is not taken", code="body_too_large")
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
        raise RequestError(408, f"the body did not come within {UPLOAD:g} s", code="timeout")
    return bytes(body)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
