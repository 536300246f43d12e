"""A conversation in the terminal: what is typed is said, and a word behind a slash is a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cockpit.state import chat_tree
from cockpit.state.chat_tree import Answered, Tree
from cockpit.verbs.chat_client import Chat
from cockpit.verbs.output import say, show_problem
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

LEAVE = ("exit", "quit", "q", "/exit", "/quit", "/q")
CLEAR = ("clear", "/clear")
HISTORY = 1000
"""Lines that are remembered from one conversation to the next."""
FACTS = ("tokens", "tokens_per_second", "first_token_seconds", "finish")
NUMBERS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram", "seed")
SETTINGS = (*NUMBERS, "stop", "preset", "task", "constrained")


class ChatRepl:
    """What was said, and the commands. It is saved as the app saves its own: each opens the other's."""

    def __init__(self, chat: Chat, home: Home, target: str, system: str) -> None:
        self._chat, self._home, self._target = chat, home, target
        self._tree = Tree(system=system)
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/system": ("TEXT: what the model is told before all else; without a text, nothing", self._system),
            "/set": (
                "K=V …: sampling, e.g. temperature=0.8 or preset=chat; K= takes it back; alone, what is set",
                self._set,
            ),
            "/regenerate": ("another reply to the last question", self._regenerate),
            "/save": ("NAME: keep the conversation; a path, or a name in the home", self._save),
            "/load": ("NAME: go on with a kept one", self._load),
            "/help": ("this list", self._help),
        }

    def run(self, label: str) -> int:
        """Until end of file or a word of `LEAVE`. ctrl+c stops the reply that is being written, else the conversation."""
        say(f"{label}. /help lists the commands; exit, or ctrl+d, leaves; ctrl+c stops a reply.", "dim")
        while True:
            try:
                text = input("you> ").strip()
            except EOFError:
                print()
                return 0
            if text in LEAVE:
                return 0
            try:
                self._take(text)
            except (ValueError, OSError) as error:
                say(str(error), "yellow")
            except ProblemError as error:
                show_problem(error.problem)

    def _take(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if text in CLEAR:
            self._tree = Tree(system=self._tree.system)
        elif word in self._commands:
            self._commands[word][1](rest.strip())
        elif word.startswith("/") and word[1:].isalpha():
            raise ValueError(f"there is no command {word}: {', '.join((*self._commands, '/clear', '/exit'))}")
        elif text:
            before = self._tree
            self._tree = before.ask(text)
            if not self._answer():
                self._tree = before

    def _answer(self) -> bool:
        """A reply to the last question. False after ctrl+c, and then nothing was said. Raises ProblemError."""
        question = next(turn for turn in reversed(self._tree.way) if not turn.answer)
        try:
            answer = self._chat.reply(self._tree.messages(question.id))
        except KeyboardInterrupt:
            say("\n(stopped)", "dim")
            return False
        except ProblemError as error:
            show_problem(error.problem)
            return False
        print()
        facts = {name: answer[name] for name in FACTS if answer.get(name)}
        reply = Answered(self._target, answer["reply"], facts, thinking=answer.get("thinking", ""))
        self._tree = self._tree.answered(question.id, [reply])
        if "parsed" in answer and answer["parsed"] is None:
            say("the task cannot read this reply", "yellow")
        cut = ", cut off: /set max_new_tokens=N allows more" if answer["finish"] == "length" else ""
        say(f"{answer['tokens']} tokens, {answer['tokens_per_second']:.0f} tok/s{cut}", "dim")
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
                raise ValueError(f"{part}: write K=V, with K one of {', '.join(SETTINGS)}")
            settings.pop(name, None)
            if value:
                settings[name] = _value(name, value)
        told = ", ".join(f"{name}={value}" for name, value in settings.items() if name != "schema")
        say(told or "greedy, at most 256 tokens", "dim")

    def _regenerate(self, text: str) -> None:
        if not self._tree.turns:
            raise ValueError("nothing was asked yet")
        if not self._chat.settings.get("temperature") and self._chat.settings.get("preset", "greedy") == "greedy":
            say("greedy: the reply will be the same; /set preset=chat samples", "dim")
        self._answer()

    def _save(self, text: str) -> None:
        path = self._place(text, "/save NAME")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = {name: value for name, value in self._chat.settings.items() if name != "schema"}
        path.write_text(chat_tree.written(self._tree, targets=[self._target], settings=settings), encoding="utf-8")
        say(str(path), "dim")

    def _load(self, text: str) -> None:
        path = self._place(text, "/load NAME")
        if not path.is_file():
            raise ValueError(f"there is no {path}")
        self._tree, beside = chat_tree.read(path.read_text(encoding="utf-8"))
        self._chat.settings.update(
            {name: value for name, value in beside.get("settings", {}).items() if name in SETTINGS}
        )
        for turn in self._tree.way:
            if turn.answer:
                print(turn.replies[0].text)
            else:
                say(f"you> {turn.said}", "bold")

    def _help(self, text: str) -> None:
        lines = {name: told for name, (told, _) in self._commands.items()}
        for name, told in (lines | {"/clear": "forget what was said", "/exit": "leave"}).items():
            say(f"{name:12} {told}")

    def _place(self, name: str, usage: str) -> Path:
        if not name:
            raise ValueError(f"name it: {usage}")
        if "/" in name or name.endswith(".json"):
            return Path(name).expanduser()
        return self._home.chats / f"{name}.json"


def _value(name: str, text: str) -> Any:
    """What a setting's text means. The worker checks what it may be."""
    if name in NUMBERS:
        try:
            return float(text) if name in ("temperature", "top_p", "min_p", "repetition_penalty") else int(text)
        except ValueError:
            raise ValueError(f"{name}: {text!r} is not a number") from None
    if name == "constrained":
        if text not in ("true", "false"):
            raise ValueError("constrained is true or false")
        return text == "true"
    return [text] if name == "stop" else text


def load_history(home: Home) -> Callable[[], None]:
    """Give `input` its line editing, and the history of earlier conversations; what is returned keeps it."""
    try:
        import readline
    except ImportError:  # a Python that was built without it
        return lambda: None
    path = home.root / "chat_history"
    try:
        readline.read_history_file(path)
    except OSError:
        pass  # there is none yet
    readline.set_history_length(HISTORY)

    def keep() -> None:
        try:
            path.touch(mode=0o600)
            readline.write_history_file(path)
        except OSError as error:
            show_problem(Problem(title="The history cannot be kept", cause=str(error)))

    return keep
