"""The verb in the foreground, and a task's replies kept to its schema."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.tasks import triples
from tests import warm_engine
from tests.serving.conftest import Kitchen

pytestmark = pytest.mark.slow


def test_in_the_foreground_requests_are_shown_and_ctrl_c_ends_it(kitchen: Kitchen) -> None:
    environment = os.environ | warm_engine.environment() | {"COCKPIT_HOME": str(kitchen.home.root)}
    command = [sys.executable, "-m", "cockpit.cli", "serve", str(kitchen.model), "--port", "0"]
    verb = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert verb.stdout is not None and verb.stderr is not None
    address = verb.stdout.readline().strip()
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        asked: Any = {"model": str(kitchen.model), "messages": [{"role": "user", "content": "w1"}], "temperature": 0}
        assert client.chat.completions.create(**asked, max_tokens=5).usage
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**asked, n=0)
    told = ""
    while "n times the number of prompts" not in told:
        told += verb.stderr.readline()
    assert "200  /v1/chat/completions  4 + 5 tokens in" in told and "400  /v1/chat/completions" in told
    listed = json.loads(kitchen.cockpit("serve", "--json").stdout)
    assert [(each["served"], each["errors"]) for each in listed if each["address"] == address] == [(1, 1)]
    verb.send_signal(signal.SIGINT)
    out, _ = verb.communicate(timeout=20)
    assert verb.returncode == 130 and out == ""
    assert address not in kitchen.cockpit("serve", "--json").stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_server_in_the_foreground(kitchen: Kitchen, number: signal.Signals) -> None:
    environment = os.environ | warm_engine.environment() | {"COCKPIT_HOME": str(kitchen.home.root)}
    # The tests themselves may run under nohup, whose SIG_IGN the verb would respect.
    reset = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    serve = [sys.executable, "-m", "cockpit.cli", "serve", str(kitchen.model), "--port", "0"]
    command = [sys.executable, "-c", reset, *serve]
    verb = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert verb.stdout is not None and verb.stderr is not None
    address = verb.stdout.readline().strip()
    assert address in kitchen.cockpit("serve", "--json").stdout
    if number == signal.SIGHUP:
        verb.stderr.close()  # as when the terminal is gone
    verb.send_signal(number)
    assert verb.wait(20) == 130
    assert address not in kitchen.cockpit("serve", "--json").stdout


def test_the_death_of_a_detached_server_is_told(kitchen: Kitchen) -> None:
    server = kitchen.serve()
    server.process.kill()
    deadline = time.monotonic() + 20
    while True:
        listed = {each["service"]: each for each in json.loads(kitchen.cockpit("serve", "--json").stdout)}
        if listed[server.told["service"]]["state"] == "ended":
            break
        assert time.monotonic() < deadline
    problem = listed[server.told["service"]]["problem"]
    assert problem["code"] == "worker.killed" and "cockpit serve" in problem["hint"]
    told = kitchen.cockpit("serve")
    assert "died" in told.stdout + told.stderr and "resume" not in told.stderr
    assert server.stop().returncode == 0
    assert server.told["service"] not in kitchen.cockpit("serve", "--json").stdout


def test_invalid_settings_are_errors_of_the_user(kitchen: Kitchen) -> None:
    before = kitchen.cockpit("serve", "--json").stdout
    for arguments, why in (
        (("no-such-model",), "There is no model 'no-such-model'"),
        (("tiny", "--task", "cooking"), "there is no task 'cooking'"),
        (("tiny", "--constrained"), "constrained needs a task"),
        (("tiny", "--preset", "wild"), "there is no preset 'wild'"),
        (("tiny", "--slots", "0"), "slots must be at least 1"),
        (("tiny", "--port", "70000"), "a port must be from"),
        (("tiny", "--backend", "vllm"), "vLLM is not installed here"),
        (("--stop", "soup"), "There is no server by the name soup"),
    ):
        named = [str(kitchen.model) if argument == "tiny" else argument for argument in arguments]
        done = kitchen.cockpit("serve", *named)
        assert done.returncode == 2 and why in done.stderr, (arguments, done.stderr)
    assert len(json.loads(kitchen.cockpit("serve", "--json").stdout)) == len(json.loads(before)), "what failed is gone"


def test_a_tasks_prompt_and_schema_and_a_call_that_is_required(kitchen: Kitchen, smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    smollm2 = shutil.copytree(smollm2, tmp_path / "with-tools", copy_function=lambda a, b: Path(b).symlink_to(a))
    template = (smollm2 / "chat_template.jinja").read_text()
    (smollm2 / "chat_template.jinja").unlink()
    (smollm2 / "chat_template.jinja").write_text(template + "{# tools <tool_call> #}")
    server = kitchen.serve("--task", "triples", "--constrained", target=str(smollm2))
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = "Ada lives in Paris."
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        name = client.models.list().data[0].id
        bare: Any = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model=name, messages=bare, max_tokens=40)
        again = client.chat.completions.create(model=name, messages=bare, max_tokens=40)
        wanted = tokenizer.apply_chat_template(triples.messages(text), add_generation_prompt=True, return_dict=False)
        assert answer.usage and answer.usage.prompt_tokens == len(wanted), "what training would send"
        reply = answer.choices[0].message.content or ""
        assert reply == again.choices[0].message.content, "with a task it is greedy"
        assert answer.choices[0].finish_reason == "length" or triples.parse(reply) is not None
        assert reply.lstrip().startswith("[")
        schema = {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        }
        stream = client.chat.completions.create(
            model=name,
            messages=[
                {"role": "system", "content": "You are terse."},
                {"role": "user", "content": "Where does Ada live?"},
            ],
            response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
            temperature=1.5,
            seed=3,
            stream=True,
        )
        assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in stream))["city"] in (
            "Paris",
            "Rome",
        )
        asked: Any = {
            "model": name,
            "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Call it."}],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": schema}}],
            "tool_choice": "required",
            "temperature": 0,
        }
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None and choice.message.tool_calls
        (call,) = choice.message.tool_calls
        assert call.function.name == "look" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
        chunks = client.chat.completions.create(**asked, stream=True)
        parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
        assert [(part.index, part.function.arguments) for part in parts] == [(0, call.function.arguments)]
    assert server.stop().returncode == 0
