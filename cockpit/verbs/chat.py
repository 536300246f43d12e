"""Talking to a model: one answer, or a conversation. The model lives in a chat worker of its own."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape
from rich.text import Text

from cockpit.submit import environment
from cockpit.verbs.output import console, emit, say
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Ask, Cancel, OpenService, ServiceEvent, ServiceRef

Message = dict[str, str]

SAMPLING = (
    "task", "preset", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram", "seed", "stop",
)  # fmt: skip
"""Options that go to the worker under their own names, when they are given."""


class Chat:
    """An open chat worker with a loaded target. `settings` are the sampling options of every question."""

    def __init__(self, client: Client, service: str, settings: dict[str, Any]) -> None:
        self._client, self._service, self.settings = client, service, settings

    def load(self, target: str, **how: str | None) -> dict[str, Any]:
        """What the worker says of the loaded target: `target label template tokenizer context note seconds`. `how` are `dtype` and
        `quantization`. Raises ProblemError.

        A terminal shows what the wait is for; a model that is not here yet is fetched first.
        """
        with console().status(f"loading {escape(target)}") as status:

            def said(event: ServiceEvent) -> None:
                done, total = event.data.get("done", 0), event.data.get("total", 0)
                share = f" {done / total:.0%}" if total else ""
                status.update(f"{escape(target)}: {escape(str(event.data.get('stage', event.kind)))}{share}")

            loaded: dict[str, Any] = self._ask("load", {"target": target, "directory": str(Path.cwd()), **how}, said)
        return loaded

    def reply(self, messages: list[Message], write: Callable[[str, str], None] | None = None) -> dict[str, Any]:
        """One reply, written piece by piece: `write` gets text and thinking. On ctrl+c the worker is told to stop."""
        write = write or Writer()
        written: list[str] = []

        def said(event: ServiceEvent) -> None:
            if event.kind == "tokens":
                written.append(event.data["text"])
                write(event.data["text"], event.data.get("thinking", ""))

        answer: dict[str, Any] = self._ask("generate", {"messages": messages} | self.settings, said)
        # After a gap in the stream (the engine was replaced) the answer still has the whole reply.
        if answer["reply"].startswith("".join(written)):
            write(answer["reply"][len("".join(written)) :], "")
        return answer

    def _ask(self, question: str, arguments: dict[str, Any], said: Callable[[ServiceEvent], None]) -> Any:
        ask = Ask(service=self._service, request=uuid.uuid4().hex, question=question, arguments=arguments)
        try:
            return self._client.ask(ask, said)
        except KeyboardInterrupt:
            self._client.request("service_cancel", Cancel(service=self._service, request=ask.request))
            raise


@contextmanager
def opened(home: Home, settings: dict[str, Any]) -> Iterator[Chat]:
    """A chat worker that ends with the block."""
    with Client(home) as client:
        service = client.request("service_open", OpenService(kind="chat", environment=environment())).id
        try:
            yield Chat(client, service, settings)
        finally:
            client.request("service_close", ServiceRef(service=service))


class Writer:
    """Writes a reply to stdout as it comes. What the model thinks before it goes to stderr, dim: it is no part of the reply."""

    def __init__(self) -> None:
        self._thinking = False

    def __call__(self, text: str, thinking: str) -> None:
        if thinking:
            self._thinking = True
            console().print(Text(thinking, style="dim"), end="", soft_wrap=True)
        if text:
            if self._thinking:
                self._thinking = False
                say("")
            sys.stdout.write(text)
            sys.stdout.flush()


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that are given, by the worker's names. Raises ValueError for a schema that cannot be read."""
    settings = {name: value for name in SAMPLING if (value := getattr(options, name)) not in (None, [])}
    if options.json_schema == "task":
        if not options.task:
            raise ValueError("--json-schema task needs --task: it is the task's schema that replies fit")
        return settings | {"constrained": True}
    if options.json_schema:
        path = Path(options.json_schema).expanduser()
        try:
            settings["schema"] = msgspec.json.decode(path.read_bytes())
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    return settings


def chat(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    if options.prompt is None and options.json:
        raise ValueError("--json needs --prompt: a conversation is for people")
    home = Home.locate(options.home)
    from cockpit.verbs.hot import COST, hot

    with hot(home, options.target, settings) if options.hot else opened(home, settings) as chat:
        loaded = chat.load(options.target, dtype=options.dtype, quantization=options.quantization)
        if not loaded.get("tokenizer", True):
            say("The model is loaded, but its folder has no tokenizer: it cannot chat.", "yellow")
        elif not loaded["template"]:
            say("This model has no chat template: it continues your text.", "yellow")
        if loaded.get("note"):
            say(loaded["note"], "dim")
        if options.prompt is not None:
            system = [{"role": "system", "content": options.system}] if options.system else []
            told = COST if options.hot else ()
            return _answer_once(chat, [*system, {"role": "user", "content": options.prompt}], options.json, told)
        from cockpit.verbs.conversation import Conversation, remembered

        keep = remembered(home)
        try:
            return Conversation(chat, home, options.target, options.system or "").run(loaded["label"])
        finally:
            keep()


def _answer_once(chat: Chat, messages: list[Message], as_json: bool, told: Sequence[str] = ()) -> int:
    """`reply` is what is said; `thinking` and, with a task, `parsed` stand beside it when there is any; `told` names what else does."""
    if not as_json:
        answer = chat.reply(messages)
        print()
        if "parsed" in answer and answer["parsed"] is None:
            say(f"The task {chat.settings['task']} cannot read this reply.", "yellow")
        return 0
    answer = chat.reply(messages, lambda *_: None)
    found = {key: answer[key] for key in ("reply", "tokens", "seconds", "first_token_seconds", *told)}
    if answer.get("thinking"):
        found["thinking"] = answer["thinking"]
    if "parsed" in answer:
        found["parsed"] = answer["parsed"]
    emit(found)
    return 0
