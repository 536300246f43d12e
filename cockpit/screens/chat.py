"""The chat screen: pick a target or up to four, and talk to them while they load once and stream side by side."""

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
from textual.content import Content
from textual.widgets import Static

from cockpit.connection.chat_target import Talker
from cockpit.screens.save import MOST, KeepingScreen
from cockpit.screens.target_choices import choices, on_this_machine
from cockpit.state.chat_tree import Answered, Tree, Turn
from cockpit.widgets.chat_input import ChatInput
from cockpit.widgets.conversation import LETTERS, SIDES, Answer, Conversation
from cockpit.widgets.picker import Picker
from cockpit.widgets.reply import Reply
from cockpit.widgets.sampling import Sampling
from engine.protocol.messages import (
    Problem,
    ProblemError,
    RunRef,
    ServiceChanged,
    ServiceEvent,
)

if TYPE_CHECKING:
    from cockpit.state.app_state import State

RECENT = 12
"""Runs whose checkpoints are offered."""
CATALOGUE = "smollm2-135m-instruct"
"""What a new user can talk to before anything is trained."""
EMPTY = Content.from_markup(
    "[bold $text]Nothing loaded yet.[/]\n\n[$accent]ctrl+t[/] picks a run's checkpoint or a model, [$accent]ctrl+b[/] one beside it.\n"
    "No run yet? Esc, then [$accent]3[/] opens Profile; [$accent]ctrl+l[/] there launches one."
)
READY = Content.from_markup(
    "[bold $text]Ready.[/] Write below, Enter sends. Esc leaves the input, then [$accent]1–6[/] change the screen."
)


class ChatScreen(KeepingScreen):
    HELP_TEXT = """
    Talk to a run's checkpoint, to a run while it trains, or to a model; ctrl+b sets up to four side by side, with one prompt and seed.
    Enter sends, ctrl+j begins a line. Esc stops a reply, then leaves the input: keys then work on the turn that ↑ ↓ select, ← → between replies.
    An edited question (e) and a reply made again (r) are branches: [ ] go from one to the next, and nothing said is lost.
    b hides which of two is which, until < > = - say the better one; s rates a reply. Both are kept with the run, and t adds them up.
    d marks the words that differ, v shows a reply as it came, Enter goes into a tree or a thought.
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
        Binding("b", "blind", "Blind"),
        Binding("x", "apart", "Take away"),
        Binding("t", "tally", "Tally"),
        Binding("i", "write", "Write"),
        Binding("escape", "leave", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.blind = False
        self.editing: int | None = None
        """The question that is being put in other words."""
        self.answer: Answer | None = None
        """What is being written."""

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="body"):
            with Vertical(id="talk"):
                yield Conversation()
                yield Static(id="meter")
                yield ChatInput()
            yield Sampling()

    async def on_mount(self) -> None:
        self._meter("no model", "ctrl+t picks one")
        await self.conversation.clear(EMPTY)
        self.query_one(ChatInput).focus()

    async def on_unmount(self) -> None:
        await asyncio.gather(*(talker.close() for talker in self.talkers))

    # ── the targets ────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="pick")
    async def action_pick(self) -> None:
        """Offer what there is, and load what was taken in the selected column's place."""
        if target := await self._picked("Chat with"):
            self.load(target)

    @work(exclusive=True, group="pick")
    async def action_beside(self) -> None:
        """One more target, on the same prompts and seed."""
        if len(self.talkers) == MOST:
            self.notify(f"{MOST} targets stand side by side already: x takes one away", severity="warning")
        elif target := await self._picked("Beside it" if self.talkers else "Chat with"):
            self.load(target, beside=True)

    async def _picked(self, title: str) -> str | None:
        if self.busy:
            self.notify("Esc stops the present reply first", severity="warning")
            return None
        runs = [run for run in self.app.state.listed() if run.kind == "train" and run.step][:RECENT]
        details = [detail for run in runs if (detail := await self.app.ask("show", RunRef(run=run.id)))]
        found = await on_this_machine(self.app.home)
        listed = choices(details, found, CATALOGUE, hot=not self.app.readonly)
        placeholder = "run, run@step, folder, catalogue name or org/name"
        return await self.app.push_screen_wait(Picker(title, placeholder, listed))

    @work(exclusive=True, group="question")
    async def load(self, target: str, beside: bool = False) -> None:
        """Load `target` and keep the conversation: one may ask two checkpoints the same."""
        if beside or not self.talkers:
            self.talkers.append(Talker(self.app, target))
            column = len(self.talkers) - 1
        else:
            column = min(self.conversation.column, len(self.talkers) - 1)
            await self.talkers[column].turn_to(target)
        self._arranged()
        if await self._loaded([column]):
            if not self.said.turns:
                await self.conversation.clear(READY)
            await self._take_task(self.talkers[column].label)

    async def _loaded(self, columns: Sequence[int]) -> bool:
        """Have these targets ready. False after showing why one is not."""
        names = ", ".join(self.talkers[column].target for column in columns)
        self._meter(names, "loading …")
        # One after another: two that load at once need twice the memory of reading, and each is slower for it.
        for column in columns:
            try:
                await self.talkers[column].load()
            except ProblemError as error:
                await self.conversation.trouble(error.problem)
                self._meter(self.talkers[column].target, "not loaded: ctrl+t picks another")
                return False
        self._ready()
        return True

    def _ready(self) -> None:
        if len(self.talkers) != 1:
            self._meter("  ".join(f"{LETTERS[at]} {each.label}" for at, each in enumerate(self.talkers)), self._mode())
            return
        loaded = self.talkers[0].loaded or {}
        template = "" if loaded.get("template") else "no chat template: it continues your text"
        if not loaded.get("tokenizer", True):
            template = "no tokenizer in its folder: it cannot chat"
        context = f"context {loaded['context']:,}" if loaded.get("context") else ""
        if self.talkers[0].run:
            self._meter(loaded["label"], "the newest weights answer at the run's step boundaries")
        else:
            seconds = f"ready after {loaded['seconds']:.1f} s"
            self._meter(loaded["label"], seconds, context, template, loaded.get("note") or "")

    def _mode(self) -> str:
        return "blind: from the next question on names are hidden until you vote" if self.blind else ""

    async def _take_task(self, label: str) -> None:
        """Set the task that a run was trained for, unless one is chosen."""
        run = label.rpartition("@")[0]
        panel = self.query_one(Sampling)
        if run not in self.app.state.runs or panel.chosen_task:
            return
        from cockpit.profiles.yaml_edit import read

        detail = await self.app.ask("show", RunRef(run=run))
        task = (read(detail.profile_text).get("evaluation") or {}).get("task") if detail else None
        if task:
            panel.take({"task": task})

    def _arranged(self) -> None:
        """Another number of columns."""
        several = len(self.talkers) > 1
        self.set_class(several, "-several")
        self.blind = self.blind and len(self.talkers) == 2
        self.refresh_bindings()

    async def action_apart(self) -> None:
        """Take the selected target away; its replies stay in the conversation."""
        if self.busy:
            self.notify("Esc stops the present reply first", severity="warning")
            return
        talker = self.talkers.pop(min(self.conversation.column, len(self.talkers) - 1))
        await talker.close()
        self._arranged()
        self._ready()
        self.notify(f"{talker.label} is taken away")

    def action_blind(self) -> None:
        """From the next question on, hide which of two targets says what."""
        self.blind = not self.blind
        self._ready()

    # ── talking ────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(ChatInput.Sent)
    def _sent(self, event: ChatInput.Sent) -> None:
        if not self.talkers:
            self.action_pick()
        elif self.busy:
            self.notify("Esc stops the present reply first", severity="warning")
        elif event.text.strip():
            self.query_one(ChatInput).clear()
            self.send(event.text.strip())

    @work(exclusive=True, group="question")
    async def send(self, text: str) -> None:
        """One turn: what was asked, what is answered. After a question without an answer it is that question in other words."""
        settings = self._settings()
        if settings is None:
            self.query_one(ChatInput).load_text(text)
            return
        way = self.said.way
        instead = self.editing if self.editing is not None else way[-1].id if way and not way[-1].answer else None
        self._edit(None)
        tree = replace(self.said, system=self.query_one(Sampling).system)
        self.said = tree.ask(text) if instead is None else tree.again(instead, text)
        await self._answer(self.said.turns[-1], settings)

    @work(exclusive=True, group="question")
    async def again(self, question: Turn) -> None:
        """One more answer to a question, beside the first."""
        settings = self._settings()
        if settings is not None:
            await self._answer(question, settings)

    def _settings(self) -> dict[str, Any] | None:
        """How to sample; targets side by side get one seed. None after saying which field does not hold."""
        try:
            settings = self.query_one(Sampling).settings()
        except ValueError as error:
            self.notify(str(error), title="Sampling", severity="error", markup=False)
            return None
        if len(self.talkers) > 1 and settings.get("temperature"):
            settings.setdefault("seed", random.randrange(1 << 31))
        return settings

    async def _answer(self, question: Turn, settings: dict[str, Any]) -> None:
        await self.conversation.show(self.said, until=question.id)
        missing = [at for at, talker in enumerate(self.talkers) if talker.loaded is None]
        if missing and not await self._loaded(missing):
            return
        talkers = list(self.talkers)
        order = list(range(len(talkers)))
        if self.blind:
            random.shuffle(order)
        names = [talker.label for talker in talkers]
        self.answer = answer = await self.conversation.begin(names, order, self.blind)
        self._meter(self._names(names), "writing … Esc stops")
        self.refresh_bindings()
        replies = await asyncio.gather(
            *(self._reply(talker, answer.of(at), question, settings) for at, talker in enumerate(talkers))
        )
        self.answer = None
        if problems := [each for each in replies if isinstance(each, Problem)]:
            await answer.remove()
            await self.conversation.show(self.said)
            await self.conversation.trouble(problems[0])
            self._ready()
            return
        await self._take(question, [each for each in replies if isinstance(each, Answered)], order, answer)

    async def _reply(
        self, talker: Talker, reply: Reply, question: Turn, settings: dict[str, Any]
    ) -> Answered | Problem:
        """One target's reply, or why there is none. Of several targets one that fails costs the others nothing."""
        messages = self.said.messages(question.id, reply.column)
        try:
            told = await talker.ask(messages, settings)
        except ProblemError as error:
            if len(self.talkers) == 1:
                return error.problem
            answered = Answered(talker.label, reply.text, {"problem": error.problem.title})
        else:
            facts = {name: value for name, value in told.items() if name not in ("reply", "thinking", "parsed")}
            facts["settings"] = settings
            answered = Answered(talker.label, told["reply"], facts, thinking=told.get("thinking", ""))
        await reply.finish(answered)
        return answered

    async def _take(self, question: Turn, replies: list[Answered], order: list[int], answer: Answer) -> None:
        """The answer is whole: it goes into the tree, and blind ones wait for a vote."""
        blind = order if answer.blind and all("problem" not in each.facts for each in replies) else []
        answer.blind = bool(blind)
        self.said = self.said.answered(question.id, replies, blind)
        turn = self.said.turns[-1]
        await answer.settle(turn, self.said.place(turn.id))
        self.refresh_bindings()
        if answer.hidden:
            self.conversation.focus()
            self._meter("Which is better?", "< left · > right · = tie · - both bad")
        elif len(replies) == 1:
            self._meter(self.talkers[0].label, *_speed(replies[0]))
        else:
            self._meter("  ".join(f"{LETTERS[at]} {' '.join(_speed(each)[:1])}" for at, each in enumerate(replies)))

    def _names(self, names: Sequence[str]) -> str:
        if self.blind:
            return " and ".join(SIDES)
        return names[0] if len(names) == 1 else "  ".join(f"{LETTERS[at]} {name}" for at, name in enumerate(names))

    def receive(self, state: State, body: object) -> None:
        if isinstance(body, ServiceEvent):
            for at, talker in enumerate(self.talkers):
                if talker.request and body.request == talker.request:
                    self._heard(at, body)
        elif isinstance(body, ServiceChanged) and body.service.state == "ended":
            for talker in self.talkers:
                if talker.worker.id == body.service.id and not talker.run:
                    talker.loaded = None
                    problem = body.service.problem or Problem(title="The chat worker has ended")
                    self._meter(talker.target, problem.title, "the next message starts it again")

    def _heard(self, column: int, event: ServiceEvent) -> None:
        if event.kind == "tokens" and self.answer is not None:
            data = event.data
            self.answer.of(column).write(data["text"], data["count"], data.get("thinking", ""))
        elif event.kind == "progress":
            done, total = event.data.get("done", 0), event.data.get("total", 0)
            share = f"{done / total:.0%}" if total else ""
            self._meter(self.talkers[column].target, str(event.data.get("stage", "")), share)

    # ── turns ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(Conversation.Moved)
    def _moved(self) -> None:
        self.refresh_bindings()

    @on(Conversation.Act)
    async def _act(self, event: Conversation.Act) -> None:
        turn = event.turn
        if event.what == "rate":
            self._rate(turn, event.column)
        elif event.what == "vote":
            self._vote(turn, event.word)
        elif self.busy:
            self.notify("Esc stops the present reply first", severity="warning")
        elif event.what == "branch":
            self.said = self.said.moved(turn.id, event.by)
            parent = turn.parent
            await self.conversation.show(self.said, at=self.said.chosen[parent])
        elif event.what == "edit":
            self._edit(turn)
        elif event.what == "again" and self.talkers:
            self.again(self.said.turns[turn.parent] if turn.answer else turn)
        elif event.what == "again":
            self.action_pick()

    def _edit(self, turn: Turn | None) -> None:
        """Begin to put a question in other words, or leave that."""
        self.editing = turn.id if turn else None
        box = self.query_one(ChatInput)
        box.border_title = "in other words: Enter asks on a branch of its own · Esc leaves it" if turn else ""
        if turn is not None:
            box.load_text(turn.said)
            box.move_cursor(box.document.end)
            box.focus()

    # ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "stop":
                return self.busy
            case "blind":
                return len(self.talkers) == 2
            case "apart":
                return len(self.talkers) > 1
        return True

    async def action_stop(self) -> None:
        await asyncio.gather(*(talker.cancel() for talker in self.talkers if talker.request))

    async def action_leave(self) -> None:
        """Esc: stop a reply, else leave what one is in, else go back."""
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
        """A new conversation; the models stay loaded."""
        if self.busy:
            self.notify("Esc stops the present reply first", severity="warning")
            return
        self.said, self._saved = Tree(), ""
        self._edit(None)
        await self.conversation.clear(READY if self.talkers else EMPTY)
        self.action_write()

    def action_settings(self) -> None:
        """Go to the sampling settings and back; on a narrow screen they take the conversation's place."""
        shown = self.toggle_class("-settings").has_class("-settings")
        self.query_one("#preset" if shown else ChatInput).focus()

    def action_write(self) -> None:
        self.query_one(ChatInput).focus()


def _speed(reply: Answered) -> list[str]:
    facts = reply.facts
    if "tokens" not in facts:
        return ["broken off"]
    speed = f"{facts['tokens']} tokens · {facts.get('tokens_per_second', 0):.1f} tok/s"
    return [speed, f"first after {facts.get('first_token_seconds', 0):.2f} s"]
