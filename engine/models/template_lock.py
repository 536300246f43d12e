"""The template lock: training and chat must render the same bytes and stop at the same tokens.

A checkpoint's `lock.json` records the template's hash, the stop tokens, and a few conversations with their token ids as
they were trained on. It is checked wherever the checkpoint is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.models import chat_template, files, folders, tokenizers
from engine.models.chat_template import encode, find_reply_ends
from engine.models.targets import Target
from engine.models.template_metadata import read_metadata
from engine.protocol.messages import Problem, ProblemError


def hash_template(tokenizer: Any) -> str:
    """SHA-256 of the chat template, or of the empty text when there is none."""
    template = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def render(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    tools: Any = None,
    *,
    reply_follows: bool,
    date: datetime | None = None,
) -> list[int]:
    """Token ids of a conversation. With `reply_follows` it ends where the assistant's reply begins. `date` is what a
    template that writes the date takes for today."""
    return encode(tokenizer, messages, tools, reply_follows=reply_follows, date=date)


def find_stop_ids(lock: Mapping[str, Any] | None, model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a reply: those in the lock, else those of the generation config, the tokenizer and the
    template."""
    if lock and lock.get("eos_token_ids"):
        return frozenset(lock["eos_token_ids"])
    configured = model.generation_config.eos_token_id
    found = set(configured) if isinstance(configured, list) else {configured}
    return frozenset(found | (find_turn_ends(tokenizer) if tokenizer else set())) - {None}


def find_turn_ends(tokenizer: Any) -> set[int]:
    """Tokens that end a reply according to the tokenizer and template: the end token, what the template writes after a
    reply and after a tool call, and the tokens that start another's turn where nothing else ends a reply."""
    others = read_metadata(tokenizer.chat_template).get("ends", "").split()
    if tokenizer.chat_template and not others:
        special = _list_special(tokenizer)
        reply = find_reply_ends(tokenizer, special)
        call = find_reply_ends(tokenizer, special, calls=True)
        last = next((each for each in special if call.closing.endswith(each)), "")
        others = [each for each in (reply.opening, call.opening, last) if each]
    found = {tokenizer.eos_token_id, find_end_of_turn(tokenizer), *map(tokenizer.convert_tokens_to_ids, others)}
    return found - {None}


def _list_special(tokenizer: Any) -> list[str]:
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(
        names | ({tokenizer.eos_token} if tokenizer.eos_token else set()), key=lambda each: (-len(each), each)
    )


def find_end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template writes after an assistant's reply, or None."""
    if not tokenizer.chat_template:
        return None
    reply = "a reply"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": reply}]
    text = chat_template.render(tokenizer, turns, reply_follows=False)
    after = tokenizer(text.rpartition(reply)[2], add_special_tokens=False).input_ids
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in after if token in special), None)


def check(lock: Mapping[str, Any], tokenizer: Any, folder: Path) -> None:
    """Raises ProblemError when the checkpoint in `folder` and the tokenizer that was loaded for it differ; it names the
    differences."""
    differences = []
    if lock.get("template_sha256", hash_template(tokenizer)) != hash_template(tokenizer):
        differences.append("the chat template is not the one it was trained with")
    date = datetime.fromisoformat(lock["date"]) if lock.get("date") else None
    size = len(tokenizer)
    differences += [
        f"its stop token {token} is beyond the vocabulary of {size}"
        for token in lock.get("eos_token_ids", ())
        if token >= size
    ]
    for index, golden in enumerate(lock.get("golden", ()) if tokenizer.chat_template else ()):
        expected = golden["ids"]
        ids = render(tokenizer, golden["messages"], reply_follows=False, date=date)
        ids = ids[: len(expected)]  # training may have cut the conversation
        if ids != expected:
            place = next((i for i, pair in enumerate(zip(ids, expected, strict=False)) if len({*pair}) > 1), len(ids))
            differences.append(
                f"conversation {index} is tokenised differently: at {place} {ids[place : place + 1]}, "
                f"trained {expected[place : place + 1]}"
            )
            break
    further = _read_configured_stops(folder) - set(lock.get("eos_token_ids", ()))
    if further and lock.get("eos_token_ids"):
        differences.append(
            f"its generation_config.json stops at {sorted(further)}, which no reply of its training ended with"
        )
    if differences:
        raise ProblemError(
            Problem(
                code="template.changed",
                title=f"{folder} no longer matches its tokenizer",
                cause="; ".join(differences),
                hint=(
                    "restore the tokenizer files, chat_template.jinja and generation_config.json that "
                    "the checkpoint was saved with"
                ),
            )
        )


def check_target(target: Target) -> None:
    """`check` for uses of a target that do not load it for chat. Without a lock or a tokenizer it passes. Raises
    ProblemError."""
    source = find_tokenizer_folder(target)
    if target.lock and source:
        check(files.read_json(target.lock), tokenizers.load(source), target.lock.parent)


def find_tokenizer_folder(target: Target) -> Path | None:
    """The folder of the target's tokenizer: the adapter's, else the base's; None where neither has one, or on the
    hub."""
    places = (target.adapter, None if target.on_hub else Path(target.base))
    return next((place for place in places if place and folders.has_tokenizer(place)), None)


def _read_configured_stops(folder: Path) -> set[int]:
    """Stop tokens in the folder's generation_config.json."""
    path = folder / "generation_config.json"
    named = files.read_json(path).get("eos_token_id") if path.is_file() else None
    return set(named if isinstance(named, list) else [named]) - {None}
