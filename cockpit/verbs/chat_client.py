"""A chat worker of one's own, as the verbs use it: load a target, get replies, close it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cockpit.connection.submission import shell_environment
from cockpit.language.translate import tr
from cockpit.state.token_scores import ScoredText, read_scores
from cockpit.verbs.output import console, format_progress, say
from engine.protocol.client import Client
from engine.protocol.console import text
from engine.protocol.home import Home
from engine.protocol.messages import Ask, Cancel, OpenService, ServiceEvent, ServiceRef

Message = dict[str, str]


class Chat:
    """An open chat worker with a loaded target. `settings` are the sampling options of every question."""

    def __init__(self, client: Client, service: str, settings: dict[str, Any]) -> None:
        self._client, self._service, self.settings = client, service, settings

    def load(self, target: str, **options: str | None) -> dict[str, Any]:
        """Load `target`; a model that is not on this machine is downloaded first. A terminal shows the progress.

        `options` are `dtype` and `quantization`. Returns what the worker reports of the loaded target: `target label
        template tokenizer context note seconds`. Raises ProblemError.
        """
        with console().status(text(tr("loading {target}", target=target))) as status:

            def on_event(event: ServiceEvent) -> None:
                status.update(text(f"{target}: {format_progress(event)}"))

            arguments = {"target": target, "directory": str(Path.cwd()), **options}
            loaded: dict[str, Any] = self._ask("load", arguments, on_event)
        return loaded

    def reply(self, messages: list[Message], write: Callable[[str, str], None] | None = None) -> dict[str, Any]:
        """Get one reply. `write` is called with each piece of text and of thinking. ctrl+c tells the worker to stop."""
        write = write or Writer()
        written: list[str] = []

        def on_event(event: ServiceEvent) -> None:
            if event.kind == "tokens":
                written.append(event.data["text"])
                write(event.data["text"], event.data.get("thinking", ""))

        answer: dict[str, Any] = self._ask("generate", {"messages": messages} | self.settings, on_event)
        # After a gap in the stream (the engine was replaced) the answer still has the whole reply.
        if answer["reply"].startswith("".join(written)):
            write(answer["reply"][len("".join(written)) :], "")
        return answer

    def score(self, arguments: dict[str, Any]) -> ScoredText:
        """The probabilities of the tokens of a `text`, or of a `reply` to `messages`. Raises ProblemError."""
        return read_scores(self._ask("score", arguments, lambda event: None))

    def _ask(self, question: str, arguments: dict[str, Any], on_event: Callable[[ServiceEvent], None]) -> Any:
        ask = Ask(service=self._service, request=uuid.uuid4().hex, question=question, arguments=arguments)
        try:
            return self._client.ask(ask, on_event)
        except KeyboardInterrupt:
            self._client.request("service_cancel", Cancel(service=self._service, request=ask.request))
            raise


@contextmanager
def open_chat(
    home: Home, settings: dict[str, Any], ask_slurm: Callable[[Client], dict[str, Any]] | None = None
) -> Iterator[Chat]:
    """A chat worker that ends with the block. With `ask_slurm` it is a Slurm job, which asks for what this returns."""
    with Client(home) as client:
        launch = None if ask_slurm is None else ask_slurm(client)
        opening = OpenService(kind="chat", environment=shell_environment(), launch=launch)
        service = client.request("service_open", opening).id
        try:
            yield Chat(client, service, settings)
        finally:
            client.request("service_close", ServiceRef(service=service))


class Writer:
    """Writes a reply to stdout as it arrives. The model's thinking is not part of the reply: it goes to stderr, dim."""

    def __init__(self) -> None:
        self._thinking = False

    def __call__(self, reply: str, thinking: str) -> None:
        if thinking:
            self._thinking = True
            console().print(text(thinking, "dim"), end="", soft_wrap=True)
        if reply:
            if self._thinking:
                self._thinking = False
                say("")
            sys.stdout.write(reply)
            sys.stdout.flush()
