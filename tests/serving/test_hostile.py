"""Many clients, slow readers, disconnects, invalid bodies: the server keeps serving, and its memory stays flat."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from engine.protocol.home import Home
from tests.serving.conftest import ENDLESS, Kitchen, Served

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
ASKED: Any = [{"role": "user", "content": "w1 w2 w3"}]


def body(**settings: Any) -> bytes:
    return json.dumps({"messages": ASKED, "max_tokens": 8, "temperature": 0} | settings).encode()


def raw(served: Served, sent: bytes, *, reads: bool = True) -> bytes:
    """What the server says to these bytes, until it closes or a second has passed."""
    with socket.create_connection(("127.0.0.1", served.port), 5) as connection:
        try:
            connection.sendall(sent)
        except ConnectionError:
            pass
        if not reads:
            return b""
        connection.settimeout(1)
        told = b""
        try:
            while part := connection.recv(65536):
                told += part
        except (TimeoutError, ConnectionError):  # it does not read on what it has refused
            pass
        return told


def post(data: bytes, *headers: str) -> bytes:
    lines = (f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + data


def figure(served: Served, name: str) -> float:
    lines = httpx.get(f"http://127.0.0.1:{served.port}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"cockpit_serve_{name}"))


def until_idle(served: Served, seconds: float = 10.0) -> float:
    """Waits until nothing runs or waits; returns how long that took."""
    began = time.monotonic()
    while figure(served, "running") or figure(served, "waiting"):
        assert time.monotonic() - began < seconds, "something is left on the device"
        time.sleep(0.02)
    return time.monotonic() - began


def works(served: Served) -> bool:
    told = httpx.post(f"http://127.0.0.1:{served.port}{CHAT}", content=body(), timeout=30)
    return bool(told.status_code == 200 and told.json()["choices"][0]["finish_reason"] == "length")


def test_invalid_bodies_are_refused(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}{CHAT}"
    wrong: list[tuple[bytes, int]] = [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"messages": "hi"}', 400),
        (b'{"messages": [{"role": 1}]}', 400),
        (b'{"messages": [{"role": "user", "content": {"a": 1}}]}', 400),
        (b'{"messages": [], "messages": []}', 400),
        (b"[" * 10_000, 400),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, 400),
        (body(max_tokens=2.5), 400),
        (body(seed=-(10**6)), 200),
        (body(stop=[""]), 400),
        (body(stop=["x"] * 17), 400),
        (body(temperature=1e400), 400),
        (body(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}), 400),
        (b" " * 20_001, 413),
    ]
    for data, status in wrong:
        told = httpx.post(url, content=data, timeout=30)
        assert told.status_code == status, (data[:60], told.text)
        if status != 200:
            error = told.json()["error"]
            assert error["message"] and error["type"] == "invalid_request_error", told.text
    assert httpx.get(url).status_code == 405 and httpx.get(url.replace("chat", "chap")).status_code == 404
    assert httpx.post(url, content=body(), headers={"host": "evil.example"}).status_code == 403
    assert httpx.post(url, content=body(), headers={"origin": "http://evil.example"}).status_code == 403
    assert works(served)


def test_bytes_that_are_not_http_are_refused(served: Served) -> None:
    assert b" 400 " in raw(served, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
    assert b" 400 " in raw(served, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
    assert b" 413 " in raw(served, post(b"x").replace(b"Content-Length: 1", b"Content-Length: 99999999999"))
    endless = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in raw(served, endless + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 8)
    raw(served, post(b"{}").replace(b"Content-Length: 2", b"Content-Length: 2000"), reads=False)  # leaves in mid-body
    assert works(served)


def test_a_client_that_disconnects_leaves_no_job(served: Served) -> None:
    until_idle(served)
    for stream in (True, False):
        connection = socket.create_connection(("127.0.0.1", served.port), 5)
        connection.sendall(post(body(max_tokens=ENDLESS, stream=stream)))
        while not figure(served, "running"):
            time.sleep(0.01)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert until_idle(served) < 1.0, "a token's time, and the metrics' own"
    assert works(served)


async def test_many_clients_of_all_kinds_leave_memory_flat(served: Served) -> None:
    """64 clients at a time, five times over: readers, slow readers, some that leave early, some that only talk
    nonsense."""
    process, replies = served.process, set[str]()

    async def reader(client: openai.AsyncOpenAI, index: int) -> None:
        stream = await client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=60, temperature=0, stream=True, seed=index
        )
        replies.add("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

    async def slow(index: int) -> None:
        """Takes nothing for a while, then all of it. Half leave in the middle of a long reply; two take one whole."""
        streams = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        tokens = 300 if index % 2 and index > 3 else 2000
        streams[1].write(post(body(max_tokens=tokens, stream=True), "Connection: close"))
        await asyncio.sleep(1 + index % 3)
        told = await streams[0].read(-1) if index % 2 else await streams[0].read(5000)
        assert told.startswith(b"HTTP/1.1 200") and (not index % 2 or told.rstrip().endswith(b"[DONE]\n\n\r\n0"))
        streams[1].close()

    async def leaver(index: int) -> None:
        streams = await asyncio.open_connection("127.0.0.1", served.port)
        streams[1].write(post(body(max_tokens=ENDLESS, stream=bool(index % 2))))
        await asyncio.sleep(0.05 * index)
        streams[1].transport.abort()

    async def nonsense(index: int) -> None:
        streams = await asyncio.open_connection("127.0.0.1", served.port)
        streams[1].write(post(b"[" * (index + 1) * 1000, "Connection: close"))
        assert b" 400 " in await streams[0].read(-1) or index > 18
        streams[1].close()

    async def crowd() -> None:
        client = openai.AsyncOpenAI(base_url=served.address, api_key="none", max_retries=10)
        async with client, asyncio.TaskGroup() as group:
            for index in range(16):
                group.create_task(reader(client, index))
                group.create_task(slow(index))
                group.create_task(leaver(index))
                group.create_task(nonsense(index))

    sizes = []
    for _ in range(5):
        await crowd()
        await asyncio.to_thread(until_idle, served, 30.0)
        sizes.append(process.memory_info().rss)
    assert await asyncio.to_thread(works, served)
    assert len(replies) == 1, "they all asked the same"
    # The allocator keeps what crowds made it take, in some steps of 20 MB, whichever crowd is the first to need one;
    # most crowds add nothing.
    growth = sorted(later - earlier for earlier, later in itertools.pairwise(sizes))
    assert growth[1] < 3e6 and growth[2] < 12e6 and sizes[-1] - sizes[0] < 60e6, [size // 1024 for size in sizes]
    assert process.num_fds() < 80 and process.num_threads() < 60
    assert figure(served, "replies_total") > 150


def read_on(stream: Any) -> Callable[[], str]:
    """Read a reply to its end in a thread; the function returned waits for that and says what broke it off."""
    broken: list[str] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except openai.APIError as error:
            broken.append(error.message)

    thread = threading.Thread(target=read)
    thread.start()

    def ended() -> str:
        thread.join(10)
        return "; ".join(broken)

    return ended


def test_it_shuts_down_in_order_with_requests_in_flight(kitchen: Kitchen) -> None:
    """A short one is finished, a long one told, and the process is gone within seconds."""
    server = kitchen.serve("--slots", "4")
    process = server.process
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        settings: Any = {"model": "tiny", "messages": ASKED, "temperature": 0, "stream": True}
        long = read_on(client.chat.completions.create(max_tokens=ENDLESS, **settings))
        short = read_on(client.chat.completions.create(max_tokens=400, **settings))
        began = time.monotonic()
        stopped = server.stop()
        assert stopped.returncode == 0, stopped.stderr
        assert 4.5 < time.monotonic() - began < 12
        assert (long(), short()) == ("the server is shutting down", "")
    assert not process.is_running() or process.status() == "zombie"
    assert server.address not in kitchen.cockpit("serve", "--json").stdout


def test_it_ends_at_once_when_the_engine_does(bare_home: Home, kitchen: Kitchen) -> None:
    other = Kitchen(bare_home, kitchen.model)
    server = other.serve()
    process = server.process
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        long = read_on(
            client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=ENDLESS, temperature=0, stream=True)
        )
        refused = other.cockpit("engine", "stop")
        assert refused.returncode == 2 and server.told["service"] in refused.stderr, "a server is a live job"
        began = time.monotonic()
        assert other.cockpit("engine", "stop", "--force").returncode == 0
        assert time.monotonic() - began < 8
        assert long() == "the server is shutting down"
    assert not process.is_running()
