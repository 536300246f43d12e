"""A conversation in the terminal: each line is a message, except commands, which begin with a slash."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cockpit.language.translate import tr
from cockpit.state.acting import as_asked, read_settings
from cockpit.state.chat_tree import ChatReply, ChatTree, dump_tree, parse_tree
from cockpit.state.token_scores import describe_scores, format_probability
from cockpit.verbs.chat_client import Chat
from cockpit.verbs.output import say, show_problem
from engine.protocol.home import Home, make_private, write_private
from engine.protocol.messages import Problem, ProblemError

LEAVE = ("exit", "quit", "q", "/exit", "/quit", "/q")
CLEAR = ("clear", "/clear")
HISTORY = 1000
"""Lines kept in the history of the input."""
SURPRISES = 8
"""Tokens that `/tokens` and `/perplexity` list."""
FACTS = ("tokens", "tokens_per_second", "first_token_seconds", "finish")
NUMBERS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram", "seed")
SETTINGS = (*NUMBERS, "stop", "preset", "task", "constrained")


class ChatRepl:
    """The conversation and its commands. Saved conversations have the same format as the app's."""

    def __init__(self, chat: Chat, home: Home, target: str, system: str) -> None:
        self._chat, self._home, self._target = chat, home, target
        self._tree = ChatTree(system=system)
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/system": (tr("TEXT: set the system prompt; without a text, remove it"), self._system),
            "/set": (
                tr(
                    "K=V …: set sampling, e.g. temperature=0.8 or preset=chat; K= unsets K; without arguments, list all"
                ),
                self._set,
            ),
            "/regenerate": (tr("get another reply to the last question"), self._regenerate),
            "/tokens": (tr("show the tokens of the last reply that surprise the model"), self._tokens),
            "/perplexity": (
                tr("TEXT: how well the model expects a text, and which tokens surprise it"),
                self._perplexity,
            ),
            "/save": (tr("NAME: save the conversation, under a path or a name in the home"), self._save),
            "/load": (tr("NAME: continue a saved conversation"), self._load),
            "/help": (tr("show this list"), self._help),
        }

    def run(self, label: str) -> int:
        """Read lines until end of file or one of `LEAVE`. ctrl+c stops the current reply, else the conversation."""
        say(tr("{label}. /help lists the commands; exit or ctrl+d leaves; ctrl+c stops a reply.", label=label), "dim")
        while True:
            try:
                text = input("you> ").strip()
            except EOFError:
                print()
                return 0
            if text in LEAVE:
                return 0
            try:
                self._handle(text)
            except (ValueError, OSError) as error:
                say(str(error), "yellow")
            except ProblemError as error:
                show_problem(error.problem)

    def _handle(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if text in CLEAR:
            self._tree = ChatTree(system=self._tree.system)
        elif word in self._commands:
            self._commands[word][1](rest.strip())
        elif word.startswith("/") and word[1:].isalpha():
            raise ValueError(
                tr(
                    "there is no command {word}; the commands are {commands}",
                    word=word,
                    commands=", ".join((*self._commands, "/clear", "/exit")),
                )
            )
        elif text:
            before = self._tree
            self._tree = before.add_question(text)
            if not self._answer():
                self._tree = before

    def _answer(self) -> bool:
        """Get a reply to the last question. Returns False, without a reply, after ctrl+c or a problem."""
        question = next(turn for turn in reversed(self._tree.path) if not turn.is_answer)
        try:
            answer = self._chat.reply(self._tree.messages(question.id))
        except KeyboardInterrupt:
            say(tr("\n(stopped)"), "dim")
            return False
        except ProblemError as error:
            show_problem(error.problem)
            return False
        print()
        facts = {name: answer[name] for name in FACTS if answer.get(name)}
        facts |= {"settings": self._saved_settings(), "system": self._tree.system}
        reply = ChatReply(self._target, answer["reply"], facts, thinking=answer.get("thinking", ""))
        self._tree = self._tree.add_answer(question.id, [reply])
        if "parsed" in answer and answer["parsed"] is None:
            say(tr("the task cannot parse this reply"), "yellow")
        cut = tr(", truncated: /set max_new_tokens=N allows more") if answer["finish"] == "length" else ""
        say(
            tr(
                "{tokens} tokens, {tokens_per_second:.0f} tok/s{cut}",
                tokens=answer["tokens"],
                tokens_per_second=answer["tokens_per_second"],
                cut=cut,
            ),
            "dim",
        )
        return True

    # ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _system(self, text: str) -> None:
        self._tree = replace(self._tree, system=text)

    def _set(self, text: str) -> None:
        settings = self._chat.settings
        for part in shlex.split(text):
            name, equals, value = part.partition("=")
            name = name.replace("-", "_")
            if not equals or name not in SETTINGS:
                raise ValueError(
                    tr("{part}: write K=V, with K one of {SETTINGS}", part=part, SETTINGS=", ".join(SETTINGS))
                )
            settings.pop(name, None)
            if value:
                settings[name] = _parse_value(name, value)
        listed = ", ".join(f"{name}={value}" for name, value in settings.items() if name != "schema")
        say(listed or tr("greedy, at most 256 tokens"), "dim")

    def _regenerate(self, text: str) -> None:
        if not self._tree.turns:
            raise ValueError(tr("there is no question yet"))
        if not self._chat.settings.get("temperature") and self._chat.settings.get("preset", "greedy") == "greedy":
            say(tr("sampling is greedy, so the reply will be the same; /set preset=chat changes that"), "dim")
        self._answer()

    def _tokens(self, text: str) -> None:
        answer = next((turn for turn in reversed(self._tree.path) if turn.is_answer), None)
        if answer is None:
            raise ValueError(tr("there is no reply yet"))
        reply = answer.replies[0]
        messages, task = as_asked(self._tree, reply).messages(answer.parent), read_settings(reply).get("task")
        asked = {"messages": messages, "reply": reply.text, "thinking": reply.thinking}
        self._show_scores(asked | ({"task": task} if task else {}))

    def _perplexity(self, text: str) -> None:
        if not text:
            raise ValueError(tr("give a text: /perplexity TEXT"))
        self._show_scores({"text": text})

    def _show_scores(self, arguments: dict[str, Any]) -> None:
        try:
            scores = self._chat.score(arguments)
        except KeyboardInterrupt:
            say(tr("(stopped)"), "dim")
            return
        say(describe_scores(scores))
        for token in scores.most_surprising(SURPRISES):
            better = ", ".join(f"{text!r} {format_probability(math.exp(value))}" for text, value in token.likeliest[:3])
            say(
                tr(
                    "  {text!r} {probability}, where it expected {better}",
                    text=token.text,
                    probability=format_probability(token.probability),
                    better=better,
                ),
                "dim",
            )

    def _save(self, text: str) -> None:
        path = self._path(text, "/save NAME")
        make_private(path.parent)
        document = dump_tree(self._tree, targets=[self._target], settings=self._saved_settings())
        write_private(path, document.encode())
        say(str(path), "dim")

    def _saved_settings(self) -> dict[str, Any]:
        return {name: value for name, value in self._chat.settings.items() if name != "schema"}

    def _load(self, text: str) -> None:
        path = self._path(text, "/load NAME")
        if not path.is_file():
            raise ValueError(tr("there is no file {path}", path=path))
        self._tree, extra = parse_tree(path.read_text(encoding="utf-8"))
        self._chat.settings.update(
            {name: value for name, value in extra.get("settings", {}).items() if name in SETTINGS}
        )
        for turn in self._tree.path:
            if turn.is_answer:
                print(turn.replies[0].text)
            else:
                say(tr("you> {text}", text=turn.text), "bold")

    def _help(self, _: str) -> None:
        lines = {name: text for name, (text, _) in self._commands.items()}
        for name, text in (lines | {"/clear": tr("start a new conversation"), "/exit": "leave"}).items():
            say(f"{name:12} {text}")

    def _path(self, name: str, usage: str) -> Path:
        if not name:
            raise ValueError(tr("give a name: {usage}", usage=usage))
        if "/" in name or name.endswith(".json"):
            return Path(name).expanduser()
        return self._home.chats / f"{name}.json"


def _parse_value(name: str, text: str) -> Any:
    """A setting's value from its text. The worker checks its range."""
    if name in NUMBERS:
        try:
            return float(text) if name in ("temperature", "top_p", "min_p", "repetition_penalty") else int(text)
        except ValueError:
            raise ValueError(tr("{name}: {text!r} is not a number", name=name, text=text)) from None
    if name == "constrained":
        if text not in ("true", "false"):
            raise ValueError(tr("constrained must be true or false"))
        return text == "true"
    return [text] if name == "stop" else text


def load_history(home: Home) -> Callable[[], None]:
    """Give `input` line editing, lines that are pasted together as one text, and the history of earlier conversations.
    Returns the function that saves the history."""
    try:
        import readline
    except ImportError:  # a Python built without it
        return lambda: None
    if "libedit" not in (readline.__doc__ or ""):  # editline has no such setting
        readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off
    path = home.root / "chat_history"
    try:
        readline.read_history_file(path)
    except OSError:
        pass  # there is none yet
    readline.set_history_length(HISTORY)

    def save() -> None:
        try:
            path.touch(mode=0o600)
            readline.write_history_file(path)
        except OSError as error:
            show_problem(
                Problem(code="file.unwritable", title=tr("The input history cannot be saved"), cause=str(error))
            )

    return save
