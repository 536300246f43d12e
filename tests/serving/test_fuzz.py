"""Random and extreme requests: each is answered or refused by name, and none harms the reply beside it."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.serving import connections
from engine.serving.server import TransformersServer, listen
from engine.serving.settings import Settings
from tests.training.harness import make_model

MESSAGES = [{"role": "user", "content": "w1 w2"}]
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
"""Without connections that are kept: the server closes those that wait, just when the client asks again by chance."""
NUMBERS = [0, -1, 1, 1e-38, 1.6e-39, 5e-324, 1e308, -1e308, 0.5, 2, 1 << 31, 1 << 63, -(1 << 63), 1 << 64, 10**40, 1e-6]


def deep(levels: int, kind: str = "list") -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made] if kind == "list" else {"a": made}
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersServer]:
    folder = tmp_path_factory.mktemp("fuzz")
    home = Home(folder / "home").create()
    model = make_model(folder / "tiny")
    target = targets.resolve(str(model), home, Path("/"))
    made = TransformersServer(target, Settings(target=str(model), port=0, slots=4), home, lambda *_: None)
    yield made
    made.close(0)


def post(server: TransformersServer, path: str, body: Any) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return CLIENT.post(f"{server.address}{path}", content=data, timeout=60)


class Bystander:
    """A long reply that is being generated meanwhile."""

    def __init__(self, server: TransformersServer) -> None:
        self.server, self.answers, self.ended = server, list[dict[str, Any]](), False
        self.thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Bystander:
        self.thread.start()
        return self

    def _ask(self) -> None:
        while not self.ended:
            body = {"messages": MESSAGES, "max_tokens": 100, "temperature": 1.0, "seed": 1}
            time.sleep(0.02)
            answer = post(self.server, "/chat/completions", body)
            self.answers.append({"status": answer.status_code} | answer.json())

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.thread.join(60)
        assert self.answers and {each["status"] for each in self.answers} == {200}, self.answers[-1]


def assert_answered(answer: httpx.Response, body: Any) -> None:
    assert answer.status_code < 500, (body, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error", (body, answer.text)


def test_an_address_accepts_connections_before_the_model_is_loaded() -> None:
    """Whoever is told the address may connect at once, and a second server on it fails before it loads its model."""
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(ProblemError, match="cannot listen"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("setting", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "n"])
def test_no_number_harms_the_reply_beside_it(server: TransformersServer, setting: str) -> None:
    with Bystander(server):
        for number in NUMBERS:
            body = {"messages": MESSAGES, "max_tokens": 3, "temperature": 0.7, setting: number}
            assert_answered(post(server, "/chat/completions", body), body)
            body |= {"repetition_penalty": number} if setting == "temperature" else {"temperature": 1e-40}
            assert_answered(post(server, "/chat/completions", body), body)


def test_the_error_names_the_clients_own_field(server: TransformersServer) -> None:
    wrong = {
        "max_tokens": 0, "max_completion_tokens": -1, "temperature": -1, "top_p": -0.1, "top_k": -5, "min_p": 2,
        "repetition_penalty": 0, "n": 0, "stop": [""], "stream": "x", "seed": "y", "model": "other",
    }  # fmt: skip
    for field, value in wrong.items():
        answer = post(server, "/chat/completions", {"messages": MESSAGES, field: value})
        assert answer.status_code in (400, 404), (field, answer.text)
        error = answer.json()["error"]
        assert error["param"] == field, answer.text
        assert "max_new_tokens" not in error["message"], answer.text
    assert post(server, "/completions", {"prompt": "w1", "max_tokens": 0}).json()["error"]["param"] == "max_tokens"
    both = {"messages": MESSAGES, "max_tokens": 0, "max_completion_tokens": 5}
    assert post(server, "/chat/completions", both).json()["error"]["param"] == "max_tokens"


@pytest.mark.slow
def test_depths_and_texts(server: TransformersServer) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": deep(400, "dict")}}]
    bodies: list[Any] = []
    for levels in (50, 200, 900, 5_000, 100_000):
        arguments = "[" * levels + "]" * levels
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        bodies.append({"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]})
        nested = '{"type":"object","properties":{"a":' * levels + '{"type":"string"}' + "}}" * levels
        schema = f'{{"type":"json_schema","json_schema":{{"schema":{nested}}}}}'
        bodies.append(f'{{"messages":{json.dumps(MESSAGES)},"response_format":{schema}}}'.encode())
        bodies.append(f'{{"messages":{"[" * levels}{"]" * levels}}}'.encode())
    bodies += [{"messages": MESSAGES, "tools": tools}, {"messages": [{"role": "x" * 1000, "content": "\x00\x1b"}]}]
    bodies += [
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"prompt":"\\udc00"}',
        b"NaN",
        b'{"prompt":NaN}',
    ]
    bodies += [{"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
               for schema in ({"pattern": "(a+)+$", "type": "string"}, {"$ref": "#"}, {"enum": []}, {"not": {}},
                              {"type": "string", "pattern": "["}, {"type": "array", "minItems": 10**9})]  # fmt: skip
    with Bystander(server):
        for body in bodies:
            for path in ("/chat/completions", "/completions"):
                limited = (
                    body | {"max_tokens": 4} if isinstance(body, dict) else body.replace(b"{", b'{"max_tokens":4,', 1)
                )
                assert_answered(post(server, path, limited), body if len(str(body)) < 300 else str(body)[:300])


@pytest.mark.slow
def test_random_bodies(server: TransformersServer) -> None:
    dice = random.Random(7)
    fields = ["messages", "prompt", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
              "min_p", "repetition_penalty", "n", "seed", "stop", "stream", "stream_options", "response_format",
              "tools", "tool_choice", "logprobs", "logit_bias", "best_of", "echo", "suffix", "functions",
              "nothing"]  # fmt: skip

    def value(depth: int = 0) -> Any:
        simple = [*NUMBERS, None, True, False, "", "w1", "\x00", "汉", "a" * 3000, "\ud83d"]
        if depth > 3 or dice.random() < 0.5:
            return dice.choice(simple)
        if dice.random() < 0.5:
            return [value(depth + 1) for _ in range(dice.randint(0, 3))]
        names = ["role", "content", "type", "text", "tool_calls", "function", "arguments", "schema", "json_schema"]
        return {dice.choice(names): value(depth + 1) for _ in range(dice.randint(0, 3))}

    with Bystander(server):
        for _ in range(60):
            body = {field: value() for field in dice.sample(fields, dice.randint(1, 6))}
            if dice.random() < 0.7:
                body |= {"messages": MESSAGES, "prompt": "w1"}
            body["max_tokens"] = dice.choice([1, 2, body.get("max_tokens", 3) if dice.random() < 0.2 else 3])
            if isinstance(body["max_tokens"], (int, float)) and body["max_tokens"] > 100:
                body["max_tokens"] = 5
            for path in ("/chat/completions", "/completions"):
                assert_answered(post(server, path, body), body)


def connect(port: int) -> socket.socket:
    """A new connection; where the system's queue of new ones is full, once the server has taken some."""
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port), 5)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("the server takes no connection any more")


def test_connections_that_send_nothing_shut_nobody_out(server: TransformersServer) -> None:
    port = int(server.address.removesuffix("/v1").rpartition(":")[2])
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    for sent in (b"", half + b"X-Sl", half + b"Content-Length: 500\r\n\r\n{"):
        opened = []
        for _ in range(450):
            connection = connect(port)
            connection.sendall(sent)
            opened.append(connection)
        began = time.monotonic()
        answer = post(server, "/chat/completions", {"messages": MESSAGES, "max_tokens": 2})
        assert answer.status_code == 200 and time.monotonic() - began < 5
        for connection in opened:
            connection.close()


def test_headers_must_arrive_in_time(server: TransformersServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS", 0.3)
    port = int(server.address.removesuffix("/v1").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 5) as slow:
        slow.settimeout(3)
        began, lost = time.monotonic(), False
        try:
            while time.monotonic() - began < 3 and not lost:
                slow.sendall(b"G" if time.monotonic() - began < 0.05 else b"E")
                slow.settimeout(0.05)
                try:
                    lost = slow.recv(1) == b""
                except TimeoutError:
                    pass
        except ConnectionError:
            lost = True
        assert lost and time.monotonic() - began < 2
