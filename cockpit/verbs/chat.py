"""`cockpit chat`: one answer, or a conversation, from a chat worker or from a run that is training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cockpit.language.translate import tr
from cockpit.verbs.chat_client import Chat, Message, open_chat
from cockpit.verbs.output import emit, say
from cockpit.verbs.sampling_options import sampling_settings
from cockpit.verbs.slurm_options import read_slurm_options
from engine.protocol.home import Home


def chat(options: argparse.Namespace) -> int:
    settings = sampling_settings(options)
    if options.prompt is None and options.json:
        raise ValueError(tr("--json needs --prompt: a conversation is for people"))
    home = Home.locate(options.home)
    from cockpit.verbs.hot_chat import COST, open_hot_chat

    ask_slurm = read_slurm_options(options)
    with open_hot_chat(home, options.target, settings) if options.hot else open_chat(home, settings, ask_slurm) as chat:
        loaded = chat.load(options.target, dtype=options.dtype, quantization=options.quantization)
        if not loaded.get("tokenizer", True):
            say(tr("The model is loaded, but its folder has no tokenizer: it cannot chat."), "yellow")
        elif not loaded["template"]:
            say(tr("This model has no chat template: it continues your text."), "yellow")
        if loaded.get("note"):
            say(loaded["note"], "dim")
        if options.prompt is not None:
            system = [{"role": "system", "content": options.system}] if options.system else []
            further = COST if options.hot else ()
            return _answer_once(chat, [*system, {"role": "user", "content": options.prompt}], options.json, further)
        from cockpit.verbs.chat_repl import ChatRepl, load_history

        save_history = load_history(home)
        try:
            return ChatRepl(chat, home, options.target, options.system or "").run(loaded["label"])
        finally:
            save_history()


def _answer_once(chat: Chat, messages: list[Message], as_json: bool, further: Sequence[str] = ()) -> int:
    """Print one answer.

    As JSON it has `reply tokens seconds first_token_seconds`, the keys named in `further`, `thinking` when there is
    any, and `parsed` with a task.
    """
    if not as_json:
        answer = chat.reply(messages)
        print()
        if "parsed" in answer and answer["parsed"] is None:
            say(tr("The task {task} cannot parse this reply.", task=chat.settings["task"]), "yellow")
        return 0
    answer = chat.reply(messages, lambda *_: None)
    document = {key: answer[key] for key in ("reply", "tokens", "seconds", "first_token_seconds", *further)}
    if answer.get("thinking"):
        document["thinking"] = answer["thinking"]
    if "parsed" in answer:
        document["parsed"] = answer["parsed"]
    emit(document)
    return 0
