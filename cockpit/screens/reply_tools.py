"""What can be done with a reply besides reading it, for the chat screen: look at its tokens, at what was sent for it,
keep it as a case; and the system prompt and pasted texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual import on, work
from textual.widgets import Input, Select

from cockpit.connection.chat_target import ChatTarget
from cockpit.connection.service_client import ServiceClient
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.files import list_profiles, write_profile
from cockpit.screens.base import opens_dialog
from cockpit.screens.save import SaveScreen
from cockpit.state.acting import as_asked, describe_acting, read_settings, sent_messages
from cockpit.state.chat_tree import ChatReply, ChatTree, Message, Turn
from cockpit.state.token_scores import read_scores
from cockpit.widgets import row_view
from cockpit.widgets.chat_input import ChatInput
from cockpit.widgets.chat_turns import Answer
from cockpit.widgets.confirm import Confirm
from cockpit.widgets.prompt import Prompt
from cockpit.widgets.sampling import Sampling
from cockpit.widgets.text_dialog import TextDialog
from cockpit.widgets.token_dialog import TokenDialog
from cockpit.widgets.write_dialog import WriteDialog
from engine.config.tasks import task_schema
from engine.protocol.messages import ProblemError

EVALUATION_SET = "chat.evaluation_set"
"""The setting that remembers the file to which cases are added."""
PROBES = "evaluation.probes"


class ReplyToolsScreen(SaveScreen):
    """Adds what is done with a reply, and the settings that act on the next one."""

    # ── the settings that act ─────────────────────────────────────────────────────────────────────────────────────

    @on(Input.Changed)
    @on(Select.Changed)
    def show_acting(self) -> None:
        """Say below the input which settings act on the next question, wherever the panel is hidden too."""
        self.query_one(ChatInput).border_subtitle = Content(
            describe_acting(self._quiet_settings(), self.query_one(Sampling).system)
        )

    async def _show(self, tree: ChatTree, extra: dict[str, Any]) -> None:
        await super()._show(tree, extra)
        self.show_acting()

    @opens_dialog
    @work(exclusive=True, group="write")
    async def action_system(self) -> None:
        """Edit the system prompt."""
        panel = self.query_one(Sampling)
        text = tr("What every model is told before the conversation, from the next question on. Empty: nothing.")
        if panel.chosen_task:
            text += tr(
                " The task {task} has a prompt of its own, which is sent instead.",
                task=panel.chosen_task.replace("_", " "),
            )
        written = await self.app.push_screen_wait(WriteDialog(tr("System prompt"), text, panel.system))
        if written is not None:
            panel.system = written.strip()
            self.chat = replace(self.chat, system=panel.system)
            self.show_acting()

    @opens_dialog
    @work(exclusive=True, group="write")
    async def action_sent(self) -> None:
        """Show what the model gets: for the selected turn what it got, else for what stands in the input."""
        turn, column = self._selected()
        if turn is not None and turn.is_answer:
            reply = turn.replies[column]
            tree, settings, question = as_asked(self.chat, reply), read_settings(reply), turn.parent
            row = self.conversation.selected
            name = tr("the model") if isinstance(row, Answer) and row.hidden else reply.target
        else:
            found = self._settings()
            if found is None:
                return
            settings, tree = found, replace(self.chat, system=self.query_one(Sampling).system)
            name = self.targets[min(column, len(self.targets) - 1)].label if self.targets else tr("the model")
            if turn is None:
                tree = tree.add_question(self.query_one(ChatInput).text or "…")
                question = tree.turns[-1].id
            else:
                question = turn.id
        try:
            shown = describe_sent(sent_messages(tree, question, column, settings), settings)
        except ValueError as error:  # a file's task that this version does not know
            self.notify(str(error), severity="error")
            return
        await self.app.push_screen_wait(TextDialog(tr("What {name} gets", name=name), shown))

    def _selected(self) -> tuple[Turn | None, int]:
        """The selected turn, unless the user is writing, and the column of its reply."""
        conversation = self.conversation
        column = conversation.reply.column if conversation.reply else 0
        if self.focused is self.query_one(ChatInput) or conversation.selected is None:
            return None, conversation.column
        return conversation.selected.turn, column

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(exclusive=True, group="score")
    async def show_tokens(self, turn: Turn, column: int) -> None:
        """Show the tokens of a reply with the probabilities that the model gives them."""
        reply = turn.replies[column]
        target = self._target_of(reply, column)
        settings, messages = read_settings(reply), as_asked(self.chat, reply).messages(turn.parent, column)
        asked = {"messages": messages, "reply": reply.text, "thinking": reply.thinking}
        await self._score(target, asked | {key: settings[key] for key in ("task",) if key in settings}, tr("the reply"))

    @opens_dialog
    @work(exclusive=True, group="score")
    async def action_perplexity(self) -> None:
        """Measure a pasted text by the selected model."""
        if self.refuse_while_busy():
            return
        if not self.targets:
            self.notify(tr("ctrl+t picks the model that reads it"), severity="warning")
            return
        target = self.targets[min(self.conversation.column, len(self.targets) - 1)]
        text = tr(
            "Paste or write a text: {label} says how well it expects each token behind those before.",
            label=target.label,
        )
        written = await self.app.push_screen_wait(WriteDialog(tr("Perplexity of a text"), text, verb=tr("measures it")))
        if written and written.strip():
            await self._score(target, {"text": written}, tr("the text"))

    def _target_of(self, reply: ChatReply, column: int) -> ChatTarget | None:
        """The target that wrote the reply, else the one in its column."""
        same = [target for target in self.targets if target.label == reply.target]
        return same[0] if same else self.targets[min(column, len(self.targets) - 1)] if self.targets else None

    async def _score(self, target: ChatTarget | None, arguments: dict[str, Any], what: str) -> None:
        if target is None:
            self.notify(tr("ctrl+t picks the model that reads it"), severity="warning")
            return
        if self.refuse_while_busy():
            return
        if target.loaded is None and not await self.load_columns([self.targets.index(target)]):
            return
        self.show_status(target.label, tr("reading … Esc stops"))
        self.refresh_bindings()
        try:
            scores = read_scores(await target.score(arguments))
        except ProblemError as error:
            if error.problem.code != "request.cancelled":
                self.app.notify_problem(error.problem)
            return
        finally:
            self.show_loaded()
            self.refresh_bindings()
        await self.app.push_screen_wait(
            TokenDialog(tr("The tokens of {what} · {label}", what=what, label=target.label), scores)
        )

    # ── cases ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(exclusive=True, group="case")
    async def keep_case(self, turn: Turn, column: int) -> None:
        """Make the question a probe of the run's profile, or add question and reply to a set for evaluations."""
        reply, question = turn.replies[column], self.chat.turns[turn.parent]
        run = reply.target.rpartition("@")[0]
        kept = self.app.settings.get(EVALUATION_SET, "")
        choices = {"p": tr("a probe: every evaluation of the profile answers the question")}
        choices["e"] = (
            tr("a row of {kept}", kept=kept)
            if kept
            else tr("a row of an evaluation set, with the reply as its reference")
        )
        if kept:
            choices["o"] = tr("a row of another file")
        text = tr("“{question}” becomes", question=_shorten(question.text))
        chosen = await self.app.push_screen_wait(Confirm(tr("Keep as a case"), text, choices))
        if chosen == "p":
            await self._keep_probe(question.text, run)
        elif chosen in ("e", "o"):
            await self._keep_row(turn, column, run, kept if chosen == "e" else "")

    async def _keep_probe(self, question: str, run: str) -> None:
        """Add the question to the probes of the user's own profile of that name, else show the setting."""
        from cockpit.profiles.yaml_edit import add_item, read_yaml

        known = self.app.state.runs.get(run)
        local = known is not None and self.app.engine.link is None
        files = await asyncio.to_thread(list_profiles, self.app.home, Path.cwd()) if local else []
        own = [file for file in files if known is not None and file.name == known.name and not file.builtin]
        if not own:
            line = f"{PROBES}: {json.dumps([question], ensure_ascii=False)}"
            self.app.copy_to_clipboard(line)
            why = tr("This setting of a profile makes it a probe; it is copied:\n\n")
            await self.app.push_screen_wait(TextDialog(tr("A probe"), Content.assemble(why, (line, "bold"))))
            return
        path = own[0].path
        try:
            text = path.read_text(encoding="utf-8")
            probes = list((read_yaml(text).get("evaluation") or {}).get("probes") or [])
            if question in probes:
                self.notify(tr("{path} has this probe already", path=path))
                return
            await asyncio.to_thread(write_profile, path, add_item(text, PROBES, question), self.app.home)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.notify(f"{path}: {error}", title=tr("Not kept"), severity="error")
            return
        self.notify(
            tr("{path}: runs that are launched from now on answer it at every evaluation", path=path),
            title=tr("A probe is kept"),
        )

    async def _keep_row(self, turn: Turn, column: int, run: str, path: str) -> None:
        """Append the conversation up to the reply, as the user corrects it, to a JSONL file."""
        reply = turn.replies[column]
        text = tr("The answer that evaluations compare with. Correct it where the model is wrong.")
        reference = await self.app.push_screen_wait(WriteDialog(tr("The reference"), text, reply.text))
        if reference is None or not reference.strip():
            return
        if not path:
            text = tr(
                "A JSONL file, which is made if it is not there; name it in data.validation or data.test of a profile"
            )
            before = self.app.settings.get(EVALUATION_SET, "")
            answer = await self.app.push_screen_wait(Prompt(tr("Add to which file"), text, before, paths=True))
            if not answer:
                return
            path = answer if Path(answer).suffix else f"{answer}.jsonl"
        try:
            sent = sent_messages(as_asked(self.chat, reply), turn.parent, column, read_settings(reply))
        except ValueError as error:
            self.notify(str(error), title=tr("Not kept"), severity="error")
            return
        messages: list[Message] = [*sent, {"role": "assistant", "content": reference.strip()}]
        asked = {"path": path, "directory": self.app.engine.directory, "messages": messages}
        rows = ServiceClient(self.app, "data")
        try:
            kept = await rows.ask("keep_row", asked | {"run": run if run in self.app.state.runs else ""})
        except ProblemError as error:
            self.app.notify_problem(error.problem)
            return
        finally:
            await rows.close()
        self.app.settings.set(EVALUATION_SET, kept["path"])
        said = tr("{path}, as {row_format}", path=kept["path"], row_format=kept["format"])
        self.notify(said, title=tr("A case is added") if kept["added"] else tr("The case is there already"))


def describe_sent(messages: list[Message], settings: Mapping[str, Any]) -> Content:
    """The messages, the sampling, and the schema of a task."""
    blocks = [row_view.conversation({"messages": messages})]
    sampling = {name: value for name, value in settings.items() if name not in ("task", "constrained")}
    if sampling:
        facts = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in sampling.items())
        blocks.append(Content.assemble((tr("── sampling ──"), "bold $warning"), "\n", facts))
    if task := settings.get("task"):
        forced = (
            tr("the reply is kept to it")
            if settings.get("constrained")
            else tr("the reply is free; it is checked by it")
        )
        schema = json.dumps(task_schema(str(task)), ensure_ascii=False, indent=1)
        heading = tr("── schema of {task}: {forced} ──", task=str(task).replace("_", " "), forced=forced)
        blocks.append(Content.assemble((heading, "bold $warning"), "\n", (schema, "dim")))
    return Content("\n\n").join(blocks)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
