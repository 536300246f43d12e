"""Talking to a model: one answer, or a conversation. The model lives in a chat worker of its own."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape

from cockpit.submit import environment
from cockpit.verbs.output import console, emit, say
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Ask, Cancel, OpenService, ServiceEvent, ServiceRef

LEAVE = ("exit", "quit", "q", "/exit")

Message = dict[str, str]


class Chat:
    """An open chat worker with a loaded target. `settings` are the sampling options of every question."""

    def __init__(self, client: Client, service: str, settings: dict[str, Any]) -> None:
        self._client, self._service, self._settings = client, service, settings

    def load(self, target: str) -> dict[str, Any]:
        """What the worker says of the loaded target: `target label template tokenizer context seconds`. Raises ProblemError.

        A terminal shows what the wait is for; a model that is not here yet is fetched first.
        """
        with console().status(f"loading {escape(target)}") as status:

            def said(event: ServiceEvent) -> None:
                done, total = event.data.get("done", 0), event.data.get("total", 0)
                share = f" {done / total:.0%}" if total else ""
                status.update(f"{escape(target)}: {escape(str(event.data.get('stage', event.kind)))}{share}")

            loaded: dict[str, Any] = self._ask("load", {"target": target}, said)
        return loaded

    def reply(self, messages: list[Message], write: Callable[[str], None]) -> dict[str, Any]:
        """One reply, written piece by piece. On ctrl+c the worker is told to stop, and what it had said is returned."""
        written: list[str] = []

        def said(event: ServiceEvent) -> None:
            if event.kind == "tokens":
                written.append(event.data["text"])
                write(event.data["text"])

        answer: dict[str, Any] = self._ask("generate", {"messages": messages} | self._settings, said)
        # After a gap in the stream (the engine was replaced) the answer still has the whole reply.
        if answer["reply"].startswith("".join(written)):
            write(answer["reply"][len("".join(written)) :])
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


def chat(options: argparse.Namespace) -> int:
    names = ("task", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    system: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    if options.prompt is None and options.json:
        raise ValueError("--json needs --prompt: a conversation is for people")
    with opened(Home.locate(options.home), settings) as chat:
        loaded = chat.load(options.target)
        if not loaded.get("tokenizer", True):
            say("The model is loaded, but its folder has no tokenizer: it cannot chat.", "yellow")
        elif not loaded["template"]:
            say("This model has no chat template: it continues your text.", "yellow")
        if options.prompt is not None:
            return _answer_once(chat, [*system, {"role": "user", "content": options.prompt}], options.json)
        return _converse(chat, system, loaded["label"])


def _answer_once(chat: Chat, messages: list[Message], as_json: bool) -> int:
    if as_json:
        answer = chat.reply(messages, lambda _: None)
        emit({key: answer[key] for key in ("reply", "tokens", "seconds", "first_token_seconds")})
    else:
        chat.reply(messages, _write)
        print()
    return 0


def _converse(chat: Chat, system: list[Message], label: str) -> int:
    """Until end of file or a word of `LEAVE`. ctrl+c stops the reply that is being written, else the conversation."""
    import readline  # noqa: F401 - gives `input` its line editing and history

    say(f"{label}. /clear forgets what was said; exit, or ctrl+d, leaves; ctrl+c stops a reply.", "dim")
    said = list(system)
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            print()
            return 0
        if text in LEAVE:
            return 0
        if text == "/clear":
            said = list(system)
        elif text:
            said.append({"role": "user", "content": text})
            try:
                answer = chat.reply(said, _write)
            except KeyboardInterrupt:
                said.pop()
                say("\n(stopped)", "dim")
                continue
            print()
            said.append({"role": "assistant", "content": answer["reply"]})
            say(f"{answer['tokens']} tokens, {answer['tokens_per_second']:.0f} tok/s", "dim")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
