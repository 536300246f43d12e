"""The targets of the chat screen: picking, loading and removing up to four of them."""

from __future__ import annotations

from collections.abc import Sequence

from textual import work
from textual.widgets import Static

from cockpit.connection.chat_target import ChatTarget
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.screens.target_choices import find_local_models, target_choices
from cockpit.state.chat_tree import ChatTree
from cockpit.widgets.chat_turns import LETTERS
from cockpit.widgets.conversation import Conversation
from cockpit.widgets.picker import Picker
from cockpit.widgets.sampling import Sampling
from engine.protocol.messages import ProblemError, RunRef

MAX_TARGETS = 4
"""Targets side by side."""
RECENT = 12
"""Runs whose checkpoints are offered."""
CATALOGUE = "smollm2-135m-instruct"
"""A model for users who have not trained anything yet."""
READY = "[bold $text]Ready.[/] Write below, Enter sends. Esc leaves the input; [$accent]1–6[/] then change the screen."


class ChatTargetsScreen(CockpitScreen):
    """A screen with a conversation, a line of status (`#meter`) and the sampling panel."""

    def __init__(self) -> None:
        super().__init__()
        self._chat = ChatTree()
        self.targets: list[ChatTarget] = []
        self.blind = False

    @property
    def chat(self) -> ChatTree:
        """The conversation with all its branches."""
        return self._chat

    @chat.setter
    def chat(self, tree: ChatTree) -> None:
        self._chat = tree
        self.chat_changed()

    def chat_changed(self) -> None:
        """Called when the conversation has changed, to keep a draft of it."""

    @property
    def conversation(self) -> Conversation:
        return self.query_one(Conversation)

    @property
    def busy(self) -> bool:
        return any(target.request for target in self.targets)

    def refuse_while_busy(self) -> bool:
        """True, after telling the user, while a reply is being written."""
        if self.busy:
            self.notify(tr("Esc stops the current reply first"), severity="warning")
        return self.busy

    def show_status(self, label: str, *facts: str) -> None:
        line = Content.assemble((label, "bold"), (f"  {' · '.join(filter(None, facts))}", "$foreground-muted"))
        self.query_one("#meter", Static).update(line, layout=False)

    # ── picking ────────────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(exclusive=True, group="pick")
    async def action_pick(self) -> None:
        """Offer the targets, and load the chosen one in the selected column."""
        if name := await self._pick(tr("Chat with")):
            self.load(name)

    @opens_dialog
    @work(exclusive=True, group="pick")
    async def action_beside(self) -> None:
        """Add a target that answers the same prompts with the same seed."""
        if len(self.targets) == MAX_TARGETS:
            self.notify(
                tr("{MAX_TARGETS} targets is the maximum: x removes one", MAX_TARGETS=MAX_TARGETS), severity="warning"
            )
        elif name := await self._pick(tr("Beside it") if self.targets else tr("Chat with")):
            self.load(name, beside=True)

    async def _pick(self, title: str) -> str | None:
        if self.refuse_while_busy():
            return None
        runs = [run for run in self.app.state.sorted_runs() if run.kind == "train" and run.step][:RECENT]
        details = [detail for run in runs if (detail := await self.app.ask("show", RunRef(run=run.id)))]
        models = await find_local_models(self.app.home, self.app.engine.link)
        choices = target_choices(details, models, CATALOGUE, hot=not self.app.readonly)
        placeholder = tr("run, run@step, folder, catalogue name or org/name")
        return await self.app.push_screen_wait(Picker(title, placeholder, choices))

    # ── loading ────────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="question")
    async def load(self, name: str, beside: bool = False) -> None:
        """Load the target `name` and keep the conversation, so that the next one can be asked the same."""
        if beside or not self.targets:
            self.targets.append(ChatTarget(self.app, name))
            column = len(self.targets) - 1
        else:
            column = min(self.conversation.column, len(self.targets) - 1)
            await self.targets[column].change(name)
        self.update_columns()
        if await self.load_columns([column]):
            if not self.chat.turns:
                await self.conversation.clear(Content.from_markup(tr(READY)))
            await self._select_task(self.targets[column].label)

    async def load_columns(self, columns: Sequence[int]) -> bool:
        """Load these targets. Returns False after showing why one cannot be loaded."""
        names = ", ".join(self.targets[column].target for column in columns)
        self.show_status(names, tr("loading …"))
        # One after another: loading two at once takes twice the memory, and each becomes slower.
        for column in columns:
            try:
                await self.targets[column].load()
            except ProblemError as error:
                await self.conversation.show_problem(error.problem)
                self.show_status(self.targets[column].target, tr("not loaded: ctrl+t picks another"))
                return False
        self.show_loaded()
        return True

    def show_loaded(self) -> None:
        """Describe the loaded targets in the status line."""
        if len(self.targets) != 1:
            names = "  ".join(f"{LETTERS[at]} {each.label}" for at, each in enumerate(self.targets))
            blind = tr("blind: from the next question on, names are hidden until you vote") if self.blind else ""
            self.show_status(names, blind)
            return
        loaded = self.targets[0].loaded or {}
        template = "" if loaded.get("template") else tr("no chat template: it continues your text")
        if not loaded.get("tokenizer", True):
            template = tr("no tokenizer in its folder: it cannot chat")
        context = tr("context {context:,}", context=loaded["context"]) if loaded.get("context") else ""
        if self.targets[0].run:
            self.show_status(loaded["label"], tr("the newest weights answer at the run's step boundaries"))
        else:
            seconds = tr("ready after {seconds:.1f} s", seconds=loaded["seconds"])
            self.show_status(loaded["label"], seconds, context, template, loaded.get("note") or "")

    async def _select_task(self, label: str) -> None:
        """Select the task that a run was trained for, unless one is chosen."""
        run = label.rpartition("@")[0]
        panel = self.query_one(Sampling)
        if run not in self.app.state.runs or panel.chosen_task:
            return
        from cockpit.profiles.yaml_edit import read_yaml

        detail = await self.app.ask("show", RunRef(run=run))
        task = (read_yaml(detail.profile_text).get("evaluation") or {}).get("task") if detail else None
        if task:
            panel.fill({"task": task})

    def update_columns(self) -> None:
        """Adapt the screen to the number of targets."""
        self.set_class(len(self.targets) > 1, "-several")
        self.blind = self.blind and len(self.targets) == 2
        self.refresh_bindings()

    # ── other keys ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def action_remove(self) -> None:
        """Remove the selected target. Its replies stay in the conversation."""
        if self.refuse_while_busy():
            return
        target = self.targets.pop(min(self.conversation.column, len(self.targets) - 1))
        await target.close()
        self.update_columns()
        self.show_loaded()
        self.notify(tr("{label} is removed", label=target.label))

    def action_blind(self) -> None:
        """From the next question on, hide which of two targets gave which reply."""
        self.blind = not self.blind
        self.show_loaded()
