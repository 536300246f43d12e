"""The chat screen: talk to one target, or to up to four side by side."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widgets import Static, TextArea

from cockpit.connection.chat_target import ChatTarget
from cockpit.connection.drafts import PROMPT
from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.screens.chat_targets import READY
from cockpit.screens.reply_tools import ReplyToolsScreen
from cockpit.state.chat_tree import ChatReply, ChatTree, Turn
from cockpit.widgets.chat_input import ChatInput
from cockpit.widgets.chat_turns import LETTERS, SIDES, Answer
from cockpit.widgets.conversation import Conversation
from cockpit.widgets.reply import Reply
from cockpit.widgets.sampling import Sampling
from engine.protocol.messages import Problem, ProblemError, Run, RunChanged, ServiceChanged, ServiceEvent
from engine.protocol.states import ENDED

if TYPE_CHECKING:
    from cockpit.state.app_state import AppState

EMPTY = (
    "[bold $text]Nothing loaded yet.[/]\n\n"
    "[$accent]ctrl+t[/] picks a run's checkpoint or a model, [$accent]ctrl+b[/] adds another beside it.\n"
    "No run yet? Press Esc, then [$accent]3[/] for Profile; [$accent]ctrl+l[/] there launches one."
)


class ChatScreen(ReplyToolsScreen):
    HELP_TEXT = """
    Talk to a run's checkpoint, to a run while it trains, or to a model. ctrl+b puts up to four side by side.
    Enter sends, ctrl+j starts a new line. Esc stops a reply, then leaves the input. After that, keys act on
    the selected turn: ↑ ↓ select a turn, ← → a reply.
    Editing a question (e) and regenerating a reply (r) make branches: [ ] switches between them, and nothing is lost.
    b hides the names of two targets until you vote: < left, > right, = both good, - both bad. s rates one reply.
    Votes and ratings are stored with the run; t shows their totals.
    d marks the words that differ, v shows the reply's raw text, Enter goes into its thinking or a tree.
    p shows a reply's tokens with their probabilities, P those of a pasted text. a keeps a reply as a case: a probe, or
    a row of your evaluation set. w shows what was sent: prompt, sampling, schema.
    """
    DEFAULT_CSS = """
    ChatScreen #body { height: 1fr; }
    ChatScreen #talk { width: 1fr; }
    ChatScreen #meter { height: 1; padding: 0 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    ChatScreen.-narrow Answer.-several > Reply { display: none; padding: 0; }
    ChatScreen.-narrow Answer.-several > Reply.-front { display: block; }
    ChatScreen.-several Sampling { display: none; }
    ChatScreen.-several.-settings Sampling { display: block; }
    ChatScreen.-narrow Sampling { display: none; }
    ChatScreen.-narrow.-settings Sampling { display: block; width: 1fr; border-left: none; }
    ChatScreen.-narrow.-settings #talk { display: none; }
    """
    BINDINGS = [
        Binding("ctrl+x", "stop", "Stop"),
        Binding("ctrl+t", "pick", "Target"),
        Binding("ctrl+b", "beside", "Beside"),
        Binding("ctrl+g", "settings", "Settings"),
        Binding("ctrl+n", "clear", "New"),
        Binding("ctrl+s", "save", "Save"),
        Binding("ctrl+o", "open", "Open"),
        Binding("S", "system", "System"),
        Binding("w", "sent", "Sent"),
        Binding("P", "perplexity", "Perplexity"),
        Binding("b", "blind", "Blind"),
        Binding("x", "remove", "Remove"),
        Binding("t", "tally", "Tally"),
        Binding("i", "write", "Write"),
        Binding("escape", "leave", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.editing: int | None = None
        """The question that is being rephrased."""
        self.answer: Answer | None = None
        """The answer that is being written."""

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="body"):
            with Vertical(id="talk"):
                yield Conversation()
                yield Static(id="meter")
                yield ChatInput()
            yield Sampling()

    async def on_mount(self) -> None:
        self.show_status(tr("no model"), tr("ctrl+t picks one"))
        await self.conversation.clear(Content.from_markup(tr(EMPTY)))
        self.query_one(ChatInput).focus()
        self.show_acting()
        await self.restore_draft()
        for left in await asyncio.to_thread(self.app.drafts.take_over, PROMPT, 1):
            box = self.query_one(ChatInput)
            box.load_text(str(left["text"]))
            box.move_cursor(box.document.end)

    @on(TextArea.Changed)
    def _prompt_changed(self) -> None:
        if text := self.query_one(ChatInput).text:
            self.app.drafts.keep(PROMPT, "", text=text)
        else:
            self.app.drafts.drop(PROMPT, "")

    async def on_unmount(self) -> None:
        await asyncio.gather(*(target.close() for target in self.targets))

    # ── questions and replies ──────────────────────────────────────────────────────────────────────────────────────

    @on(ChatInput.Sent)
    def _message_sent(self, event: ChatInput.Sent) -> None:
        if not self.targets:
            self.action_pick()
        elif not self.refuse_while_busy() and event.text.strip():
            self.query_one(ChatInput).clear()
            self.send(event.text.strip())

    @work(exclusive=True, group="question")
    async def send(self, text: str) -> None:
        """Ask `text` and get the answer. It replaces the question being edited, or a last question that has no
        answer."""
        settings = self._settings()
        if settings is None:
            self.query_one(ChatInput).load_text(text)
            return
        path = self.chat.path
        instead = self.editing if self.editing is not None else path[-1].id if path and not path[-1].is_answer else None
        self._edit(None)
        tree = replace(self.chat, system=self.query_one(Sampling).system)
        self.chat = tree.add_question(text) if instead is None else tree.rephrase(instead, text)
        await self._answer(self.chat.turns[-1], settings)

    @work(exclusive=True, group="question")
    async def regenerate(self, question: Turn) -> None:
        """Get one more answer to a question, as a branch beside the first."""
        settings = self._settings()
        if settings is not None:
            await self._answer(question, settings)

    def _settings(self) -> dict[str, Any] | None:
        """The sampling settings, with one seed for targets side by side. None after showing which field is invalid."""
        try:
            settings = self.query_one(Sampling).settings()
        except ValueError as error:
            self.notify(str(error), title=tr("Sampling"), severity="error")
            return None
        if len(self.targets) > 1 and settings.get("temperature"):
            settings.setdefault("seed", random.randrange(1 << 31))
        return settings

    async def _answer(self, question: Turn, settings: dict[str, Any]) -> None:
        await self.conversation.show(self.chat, until=question.id)
        missing = [at for at, target in enumerate(self.targets) if target.loaded is None]
        if missing and not await self.load_columns(missing):
            return
        targets = list(self.targets)
        order = list(range(len(targets)))
        if self.blind:
            random.shuffle(order)
        names = [target.label for target in targets]
        self.answer = answer = await self.conversation.begin(names, order, self.blind)
        self.show_status(self._names(names), tr("writing … Esc stops"))
        self.refresh_bindings()
        replies = await asyncio.gather(
            *(self._reply(target, answer.reply_of(at), question, settings) for at, target in enumerate(targets))
        )
        self.answer = None
        if problems := [each for each in replies if isinstance(each, Problem)]:
            await answer.remove()
            await self.conversation.show(self.chat)
            await self.conversation.show_problem(problems[0])
            self.show_loaded()
            return
        await self._add_answer(question, [each for each in replies if isinstance(each, ChatReply)], order, answer)

    async def _reply(
        self, target: ChatTarget, reply: Reply, question: Turn, settings: dict[str, Any]
    ) -> ChatReply | Problem:
        """One target's reply. A single target's failure is returned as a Problem; of several targets, a failing one
        becomes a reply that shows the problem, and the others are kept."""
        messages, system = self.chat.messages(question.id, reply.column), self.chat.system
        try:
            result = await target.ask(messages, settings)
        except ProblemError as error:
            if len(self.targets) == 1:
                return error.problem
            content = ChatReply(target.label, reply.text, {"problem": error.problem.title})
        else:
            facts = {name: value for name, value in result.items() if name not in ("reply", "thinking", "parsed")}
            facts |= {"settings": settings, "system": system}
            content = ChatReply(target.label, result["reply"], facts, thinking=result.get("thinking", ""))
        await reply.finish(content)
        return content

    async def _add_answer(self, question: Turn, replies: list[ChatReply], order: list[int], answer: Answer) -> None:
        """Add a complete answer to the tree. A blind one then waits for a vote."""
        blind = order if answer.blind and all("problem" not in each.facts for each in replies) else []
        answer.blind = bool(blind)
        self.chat = self.chat.add_answer(question.id, replies, blind)
        turn = self.chat.turns[-1]
        await answer.set_turn(turn, self.chat.position(turn.id))
        self.refresh_bindings()
        if answer.hidden:
            self.conversation.focus()
            self.show_status(tr("Which is better?"), tr("< left · > right · = tie · - both bad"))
        elif len(replies) == 1:
            self.show_status(self.targets[0].label, *_format_speed(replies[0]))
        else:
            speeds = [f"{LETTERS[at]} {_format_speed(each)[0]}" for at, each in enumerate(replies)]
            self.show_status("  ".join(speeds))

    def _names(self, names: Sequence[str]) -> str:
        if self.blind:
            return " and ".join(SIDES)
        return names[0] if len(names) == 1 else "  ".join(f"{LETTERS[at]} {name}" for at, name in enumerate(names))

    def receive(self, state: AppState, body: object) -> None:
        if isinstance(body, ServiceEvent):
            for at, target in enumerate(self.targets):
                if target.request and body.request == target.request:
                    self._show_event(at, body)
        elif isinstance(body, RunChanged):
            self._run_changed(body.run)
        elif isinstance(body, ServiceChanged) and body.service.state == "ended":
            for target in self.targets:
                if target.worker.id == body.service.id and not target.run:
                    target.loaded = None
                    problem = body.service.problem or Problem(
                        code="service.ended", title=tr("The chat worker has ended")
                    )
                    self.show_status(target.target, tr_engine(problem.title), tr("the next message starts it again"))

    def _run_changed(self, run: Run) -> None:
        """Say that a run that answers from its own process has ended, and who answers in its place."""
        for target in self.targets:
            if target.run == run.id and run.state in ENDED and target.loaded is not None:
                target.loaded = None
                self.show_status(
                    target.target,
                    tr("the run is {state}", state=tr(run.state)),
                    tr("ctrl+t picks its last checkpoint: {id}", id=run.id),
                )

    def _show_event(self, column: int, event: ServiceEvent) -> None:
        if event.kind == "tokens" and self.answer is not None:
            data = event.data
            self.answer.reply_of(column).write(data["text"], data["count"], data.get("thinking", ""))
        elif event.kind == "progress":
            done, total = event.data.get("done", 0), event.data.get("total", 0)
            share = f"{done / total:.0%}" if total else ""
            self.show_status(self.targets[column].target, str(event.data.get("stage", "")), share)

    # ── turns ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(Conversation.Moved)
    def _selection_moved(self) -> None:
        self.refresh_bindings()

    @on(Conversation.Act)
    async def _act(self, event: Conversation.Act) -> None:
        turn = event.turn
        if event.what == "rate":
            self.rate(turn, event.column)
        elif event.what == "case":
            self.keep_case(turn, event.column)
        elif event.what == "vote":
            self.vote(turn, event.word)
        elif self.refuse_while_busy():
            return
        elif event.what == "branch":
            self.chat = self.chat.switch_branch(turn.id, event.by)
            await self.conversation.show(self.chat, at=self.chat.chosen[turn.parent])
        elif event.what == "edit":
            self._edit(turn)
        elif event.what == "tokens":
            self.show_tokens(turn, event.column)
        elif event.what == "again" and self.targets:
            self.regenerate(self.chat.turns[turn.parent] if turn.is_answer else turn)
        elif event.what == "again":
            self.action_pick()

    def _edit(self, turn: Turn | None) -> None:
        """Start rephrasing a question; None stops."""
        self.editing = turn.id if turn else None
        box = self.query_one(ChatInput)
        box.border_title = tr("editing: Enter asks it as a new branch · Esc cancels") if turn else ""
        if turn is not None:
            box.load_text(turn.text)
            box.move_cursor(box.document.end)
            box.focus()

    # ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "stop":
                return self.busy
            case "blind":
                return len(self.targets) == 2 and not self.app.readonly  # it ends in a vote
            case "remove":
                return len(self.targets) > 1
        return True

    async def action_stop(self) -> None:
        """Stop at once: what the worker still writes until it has heard of it is not shown."""
        if self.answer is not None:
            for reply in self.answer.replies:
                reply.stopped = True
            self.show_status(self._names([target.label for target in self.targets]), tr("stopped"))
        await asyncio.gather(*(target.cancel() for target in self.targets if target.request))

    def interrupt(self) -> bool:
        if self.busy:
            self.run_worker(self.action_stop(), group="stop")
        return self.busy

    async def action_leave(self) -> None:
        """Esc: stop a reply, else close the settings, cancel an edit, leave the input, or go back."""
        box = self.query_one(ChatInput)
        if self.busy:
            await self.action_stop()
        elif self.has_class("-settings"):
            self.action_settings()
        elif self.editing is not None:
            self._edit(None)
            box.clear()
        elif self.focused is not None and self.focused is not self.conversation:
            self.conversation.focus()
        else:
            await self.app.action_back()

    async def action_clear(self) -> None:
        """Start a new conversation, and keep the old one; the models stay loaded."""
        if self.refuse_while_busy():
            return
        if not await self.keep_old():
            return
        self._chat_name = ""
        self.chat = ChatTree()
        self._edit(None)
        await self.conversation.clear(Content.from_markup(tr(READY if self.targets else EMPTY)))
        self.action_write()

    def action_settings(self) -> None:
        """Go to the sampling settings and back. On a narrow screen they replace the conversation."""
        visible = self.toggle_class("-settings").has_class("-settings")
        self.query_one("#preset" if visible else ChatInput).focus()

    def action_write(self) -> None:
        self.query_one(ChatInput).focus()


def _format_speed(reply: ChatReply) -> list[str]:
    facts = reply.facts
    if "tokens" not in facts:
        return ["interrupted"]
    speed = tr(
        "{tokens} tokens · {tokens_per_second:.1f} tok/s",
        tokens=facts["tokens"],
        tokens_per_second=facts.get("tokens_per_second", 0),
    )
    return [
        speed,
        tr("first after {first_token_seconds:.2f} s", first_token_seconds=facts.get("first_token_seconds", 0)),
    ]
