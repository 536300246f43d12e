"""The chat service as a real process, spoken to over a real socket."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from engine.protocol import wire
from engine.protocol.home import Home
from engine.protocol.messages import Answered, CancelInstruction, Instruction, Joined, Said, Status
from engine.tasks import triples
from tests.inference.conftest import make_adapters

pytestmark = pytest.mark.slow


class Desk:
    """The supervisor's end of one worker's line."""

    def __init__(self, home: Home, options: dict[str, Any]) -> None:
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        address = f"ipc://{home.root}/desk"
        self.socket.bind(address)
        command = [sys.executable, "-P", "-m", "engine.workers.chat", "--home", str(home.root), "--job", "chat-1"]
        command += ["--attempt", "1", "--address", address, "--options", json.dumps(options)]
        self.process = subprocess.Popen(command, cwd="/")
        self.said: list[tuple[float, Any]] = []
        self.identity = b""
        self.until(lambda message: isinstance(message, Joined))

    def until(self, wanted: Any, seconds: float = 120) -> Any:
        """Read on until a message fits; all are kept in `said` with their time."""
        deadline = time.monotonic() + seconds
        while self.socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            self.identity, payload = self.socket.recv_multipart()
            message = wire.decode_from_worker(payload)
            self.said.append((time.monotonic(), message))
            if wanted(message):
                return message
        raise AssertionError(f"nothing fitting in {seconds} s; last: {self.said[-3:]}")

    def ask(self, name: str, **arguments: Any) -> str:
        request = uuid.uuid4().hex
        instruction = Instruction(id=request, name=name, arguments={**arguments, "request": request})
        self.socket.send_multipart([self.identity, wire.encode(instruction)])
        return request

    def answered(self, request: str) -> Answered:
        answer: Answered = self.until(lambda message: isinstance(message, Answered) and message.id == request)
        return answer

    def result(self, name: str, **arguments: Any) -> dict[str, Any]:
        answer = self.answered(self.ask(name, **arguments))
        assert answer.problem is None, answer.problem
        result: dict[str, Any] = answer.result
        return result

    def cancel(self, request: str) -> None:
        self.socket.send_multipart([self.identity, wire.encode(CancelInstruction(request=request))])

    def pieces(self, request: str) -> list[dict[str, Any]]:
        return [m.data for _, m in self.said if isinstance(m, Said) and m.request == request and m.kind == "tokens"]


@pytest.fixture
def home(bare_home: Home, whole_smollm2: Path) -> Home:
    (bare_home.models / whole_smollm2.name).symlink_to(whole_smollm2)
    return bare_home


@pytest.fixture
def adapters(whole_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_adapters(whole_smollm2, (8, 8), tmp_path_factory)


@pytest.fixture
def desk(home: Home) -> Iterator[Desk]:
    opened = Desk(home, {"idle_seconds": 4})
    yield opened
    opened.process.kill()
    opened.process.wait()
    opened.socket.close(0)


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_conversation(desk: Desk, adapters: list[Path], home: Home) -> None:
    loaded = desk.result("load", target="smollm2-135m-instruct")
    assert loaded["label"] == "smollm2-135m-instruct"
    assert loaded["template"] and loaded["context"] == 8192

    request = desk.ask("generate", messages=say("What is the capital of France?"), max_new_tokens=16, temperature=0)
    reply = desk.answered(request).result
    assert (
        reply["reply"] == "".join(piece["text"] for piece in desk.pieces(request)) == "The capital of France is Paris."
    )
    assert reply["finish"] == "stop" and reply["tokens"] == 8
    assert 0 < reply["first_token_seconds"] < reply["seconds"]
    # Greedy: each of its tokens is the likeliest of all; nobody would have written another reply.
    asked = {"messages": say("What is the capital of France?"), "alternatives": 2}
    scored = desk.result("score", **asked, reply=reply["reply"])
    assert (
        scored["own"]
        and scored["scored"] == 8
        and "".join(text for text, _, _ in scored["tokens"][:-1]) == (reply["reply"])
    )
    assert all([text, value] == likeliest[0] and len(likeliest) == 2 for text, value, likeliest in scored["tokens"])
    other = desk.result("score", **asked, reply="The capital of France is Bonn.")
    worst = min(other["tokens"], key=lambda token: float(token[1]))
    assert not other["own"] and worst[0] == " Bonn" and worst[2][0][0] == " Paris"
    pasted = desk.result("score", text="The capital of France is Paris.")
    assert pasted["tokens"][0][:2] == ["The", None] and 1 < pasted["perplexity"] < other["perplexity"]
    nothing = desk.answered(desk.ask("score", text="A")).problem
    assert nothing is not None and "no token to score" in nothing.cause

    # Cancelled while it is talking: it stops within a token, and what came is kept.
    request = desk.ask("generate", messages=say("Count from 1 to 1000."), max_new_tokens=1000)
    desk.until(lambda message: isinstance(message, Said) and message.request == request)
    desk.cancel(request)
    asked = time.monotonic()
    cancelled = desk.answered(request).result
    assert cancelled["finish"] == "cancelled" and 0 < cancelled["tokens"] < 1000
    assert time.monotonic() - asked < 2, "a loaded test machine; alone it takes a token's time"

    swapped = desk.result("load", target=str(adapters[0]))
    desk.result("load", target=str(adapters[1]))
    assert swapped["seconds"] < loaded["seconds"] / 2, "an adapter must not load the base again"

    problem = desk.answered(desk.ask("load", target="no such thing")).problem
    assert problem is not None and problem.title == "There is no model 'no such thing'"
    refused = desk.answered(desk.ask("generate", messages=say("x" * 100_000))).problem
    assert refused is not None and "leaves no room in a context of 8192" in refused.cause

    # With a task the last text is put into the prompt that training uses.
    text = "Ada lives in Paris."
    with_task = desk.result("generate", messages=say(text), task="triples", max_new_tokens=1)
    as_trained = desk.result("generate", messages=triples.messages(text), max_new_tokens=1)
    assert with_task["prompt_tokens"] == as_trained["prompt_tokens"]


def test_an_idle_worker_frees_its_memory_and_stays(desk: Desk) -> None:
    desk.result("load", target="smollm2-135m-instruct", dtype="float32")
    desk.result("generate", messages=say("Hi"), max_new_tokens=2)
    process = psutil.Process(desk.process.pid)
    before = process.memory_info().rss
    desk.until(lambda message: isinstance(message, Status) and message.detail == "unloaded after 4 s idle")
    assert before - process.memory_info().rss > 300e6, "537 MB of float32 weights were held"
    assert desk.result("generate", messages=say("Hi"), max_new_tokens=2)["tokens"] == 2
    desk.result("unload")
    assert any(isinstance(m, Status) and m.detail == "no model loaded" for _, m in desk.said[-3:])
