"""The chat screen: pick a checkpoint or a model and talk to it while it loads once and streams."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from cockpit.screens.base import CockpitScreen
from cockpit.service import Worker
from cockpit.targets import choices
from cockpit.widgets.chat_input import ChatInput
from cockpit.widgets.conversation import Conversation, Reply, Said, Trouble
from cockpit.widgets.picker import Picker
from cockpit.widgets.sampling import Sampling
from engine.protocol.messages import Problem, ProblemError, RunRef, ServiceChanged, ServiceEvent

if TYPE_CHECKING:
    from cockpit.state import State

RECENT = 12
"""Runs whose checkpoints are offered."""
CATALOGUE = "smollm2-135m-instruct"
"""What a new user can talk to before anything is trained."""
EMPTY = Content.from_markup(
    "[bold $text]Nothing loaded yet.[/]\n\n[$accent]ctrl+t[/] picks a run's checkpoint or a model.\n"
    "No run yet? Esc, then [$accent]3[/] opens Profile; [$accent]ctrl+l[/] there launches one."
)
READY = Content.from_markup(
    "[bold $text]Ready.[/] Write below, Enter sends. Esc leaves the input, then [$accent]1–6[/] change the screen."
)


class ChatScreen(CockpitScreen):
    HELP_TEXT = """
    Talk to a run's checkpoint or to a model. Enter sends, ctrl+j begins a line; Esc stops a reply, then leaves the input.
    The model lives in a process of its own: it is loaded once, and checkpoints of one base are swapped on it.
    """
    DEFAULT_CSS = """
    ChatScreen #body { height: 1fr; }
    ChatScreen #talk { width: 1fr; }
    ChatScreen #meter { height: 1; padding: 0 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    ChatScreen.-narrow Sampling { display: none; }
    ChatScreen.-narrow.-settings Sampling { display: block; }
    ChatScreen.-narrow.-settings #talk { display: none; }
    ChatScreen.-narrow.-settings Sampling { width: 1fr; border-left: none; }
    """
    BINDINGS = [
        Binding("ctrl+t", "pick", "Target"),
        Binding("ctrl+x", "stop", "Stop"),
        Binding("ctrl+n", "clear", "Clear"),
        Binding("ctrl+g", "settings", "Settings"),
        Binding("escape", "leave", "Back", show=False),
        Binding("i", "write", "Write", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker(self.app, "chat")
        self.target = ""
        self.loaded: dict[str, Any] | None = None
        self.messages: list[dict[str, str]] = []
        self.request = ""
        """The question that is being answered; empty when none is."""
        self.reply: Reply | None = None

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="body"):
            with Vertical(id="talk"):
                yield Conversation()
                yield Static(id="meter")
                yield ChatInput()
            yield Sampling()

    @property
    def conversation(self) -> Conversation:
        return self.query_one(Conversation)

    async def on_mount(self) -> None:
        self._meter("no model", "ctrl+t picks one")
        await self.conversation.clear(EMPTY)
        self.query_one(ChatInput).focus()

    async def on_unmount(self) -> None:
        await self.worker.close()

    # ── the target ─────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="pick")
    async def action_pick(self) -> None:
        """Offer what there is, and load what was taken."""
        runs = [run for run in self.app.state.listed() if run.kind == "train" and run.step][:RECENT]
        details = [detail for run in runs if (detail := await self.app.ask("show", RunRef(run=run.id)))]
        picker = Picker(
            "Chat with",
            "run, run@step, folder, catalogue name or org/name",
            choices(details, self.app.home.models, CATALOGUE),
        )
        target = await self.app.push_screen_wait(picker)
        if target:
            self.load(target)

    @work(exclusive=True, group="question")
    async def load(self, target: str) -> None:
        """Load `target` and keep the conversation: one may ask two checkpoints the same."""
        self.target = target
        if await self._load() and not self.messages:
            await self.conversation.clear(READY)

    async def _load(self) -> bool:
        """Have the worker load the target. False after showing why it could not."""
        self.loaded = None
        self._meter(self.target, "loading …")
        loaded = await self._ask("load", {"target": self.target, "directory": str(Path.cwd())})
        if loaded is None:
            self._meter(self.target, "not loaded: ctrl+t picks another")
            return False
        self.loaded = loaded
        template = "" if loaded["template"] else "no chat template: it continues your text"
        if not loaded.get("tokenizer", True):
            template = "no tokenizer in its folder: it cannot chat"
        self._meter(loaded["label"], f"ready after {loaded['seconds']:.1f} s", f"context {loaded['context']}", template)
        return True

    # ── talking ────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(ChatInput.Sent)
    def _sent(self, event: ChatInput.Sent) -> None:
        if not self.target:
            self.action_pick()
        elif self.request:
            self.notify("Esc stops the present reply first", severity="warning")
        elif event.text.strip():
            self.query_one(ChatInput).clear()
            self.send(event.text.strip())

    @work(exclusive=True, group="question")
    async def send(self, text: str) -> None:
        """One turn: what was asked, what is answered."""
        try:
            settings = self.query_one(Sampling).settings()
        except ValueError as error:
            self.notify(str(error), title="Sampling", severity="error", markup=False)
            self.query_one(ChatInput).load_text(text)
            return
        await self.conversation.add(Said(text, markup=False))
        if self.loaded is None and not await self._load():
            return
        asked = [*self.messages, {"role": "user", "content": text}]
        self.reply = Reply()
        await self.conversation.add(self.reply)
        assert self.loaded is not None
        self._meter(self.loaded["label"], "writing … Esc stops")
        answer = await self._ask("generate", {"messages": asked} | settings)
        if answer is None:
            await self.reply.finish(self.reply.text, "broken off")
        else:
            ended = {"length": " · longest reply reached", "cancelled": " · stopped"}.get(answer["finish"], "")
            speed = f"{answer['tokens']} tokens · {answer['tokens_per_second']:.1f} tok/s"
            first = f"first after {answer['first_token_seconds']:.2f} s"
            await self.reply.finish(answer["reply"], f"{speed} · {first}{ended}")
            self.messages = [*asked, {"role": "assistant", "content": answer["reply"]}]
            self._meter(self.loaded["label"] if self.loaded else self.target, speed, first)
        self.reply = None

    async def _ask(self, question: str, arguments: dict[str, Any]) -> Any:
        """The worker's answer, or None after showing the problem in the conversation."""
        self.request = uuid.uuid4().hex
        try:
            return await self.worker.ask(question, arguments, self.request)
        except ProblemError as error:
            await self.conversation.add(Trouble(error.problem))
            return None
        finally:
            self.request = ""

    def receive(self, state: State, body: object) -> None:
        if isinstance(body, ServiceEvent) and body.request == self.request:
            if body.kind == "tokens" and self.reply is not None:
                self.reply.write(body.data["text"], body.data["count"])
            elif body.kind == "progress":
                done, total = body.data.get("done", 0), body.data.get("total", 0)
                share = f"{done / total:.0%}" if total else ""
                self._meter(self.target, str(body.data.get("stage", "")), share)
        elif isinstance(body, ServiceChanged) and body.service.id == self.worker.id and body.service.state == "ended":
            self.loaded = None
            problem = body.service.problem or Problem(title="The chat worker has ended")
            self._meter(self.target, problem.title, "the next message starts it again")

    # ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def action_stop(self) -> None:
        if self.request:
            await self.worker.cancel(self.request)

    async def action_leave(self) -> None:
        """Esc: stop a reply, else leave the input, else go back."""
        if self.request:
            await self.action_stop()
        elif self.has_class("-settings"):
            self.action_settings()
        elif self.focused is not None and self.focused is not self.conversation:
            self.conversation.focus()
        else:
            await self.app.action_back()

    async def action_clear(self) -> None:
        """Forget the conversation; the model stays loaded."""
        if self.request:
            self.notify("Esc stops the present reply first", severity="warning")
            return
        self.messages = []
        await self.conversation.clear(READY if self.loaded else EMPTY)
        self.action_write()

    def action_settings(self) -> None:
        """Go to the sampling settings and back; on a narrow screen they take the conversation's place."""
        shown = self.toggle_class("-settings").has_class("-settings")
        self.query_one("#temperature" if shown else ChatInput).focus()

    def action_write(self) -> None:
        self.query_one(ChatInput).focus()

    def _meter(self, label: str, *facts: str) -> None:
        line = Content.assemble((label, "bold"), (f"  {' · '.join(filter(None, facts))}", "$text-muted"))
        self.query_one("#meter", Static).update(line, layout=False)
