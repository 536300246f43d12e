"""Renders chat templates without transformers' tokenizer classes, byte for byte as `apply_chat_template` does.

Importing those classes loads torch, which takes two seconds and a quarter of a gigabyte in each process that tokenises.
Rendering and encoding need only the tokenizer.json, the template and the special tokens; `ChatTokenizer` holds these.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.models.glm.encoder import FILE as GLM_FILE
from engine.models.glm.encoder import Encoder
from engine.protocol.home import write_private

_FILE = "tokenizer.json"

_PLAIN = {"role", "content"}
"""Keys of a message that the template gets unchanged. transformers has special rules for others, and then renders the
message."""


class ChatTokenizer:
    """What rendering and encoding need of a fast tokenizer. `chat_template` is text, a dictionary of named templates,
    or None; `backend_tokenizer` is the Rust tokenizer."""

    is_fast = True

    def __init__(
        self, backend: Any, template: str | dict[str, str] | None, special_tokens: dict[str, Any], eos_token: str | None
    ) -> None:
        self.backend_tokenizer = backend
        self.chat_template = template
        self.special_tokens_map, self.eos_token = special_tokens, eos_token
        self.added_tokens_decoder: dict[int, Any] = backend.get_added_tokens_decoder()

    @functools.cached_property
    def added(self) -> AddedTokens:
        """What the tokenizer adds to a text itself."""
        return AddedTokens.of(self.backend_tokenizer, self.added_tokens_decoder)

    def with_template(self, template: Any) -> ChatTokenizer:
        """The same tokenizer with another chat template."""
        return ChatTokenizer(self.backend_tokenizer, template, self.special_tokens_map, self.eos_token)

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTokenizer:
        """From a transformers tokenizer. Shares its Rust tokenizer, or what takes its place (see
        `engine.models.glm.encoder`). Raises ValueError for a tokenizer that is pure Python."""
        if isinstance(tokenizer, ChatTokenizer):
            return tokenizer
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: its folder needs a tokenizer.json")
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return cls(tokenizer.backend_tokenizer, tokenizer.chat_template, special, tokenizer.eos_token)

    def save(self, folder: Path) -> Path:
        """Write it into a subfolder of `folder` that is named by a hash of the content; returns the subfolder."""
        encoder = self.backend_tokenizer
        content, name = (
            (encoder.to_bytes(), GLM_FILE) if isinstance(encoder, Encoder) else (encoder.to_str().encode(), _FILE)
        )
        chat = json.dumps([self.chat_template, self.special_tokens_map, self.eos_token], sort_keys=True).encode()
        place = folder / f"tokenizer-{hashlib.sha256(content + chat).hexdigest()[:16]}"
        if not (place / "chat.json").is_file():
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
            write_private(place / "chat.json", chat)  # written last: if it exists, everything does
        return place

    @classmethod
    def load(cls, place: Path) -> ChatTokenizer:
        """Load what `save` wrote."""
        from tokenizers import Tokenizer

        own = place / GLM_FILE
        encoder = Encoder(own.read_bytes()) if own.is_file() else Tokenizer.from_file(str(place / _FILE))
        return cls(encoder, *json.loads((place / "chat.json").read_text("utf-8")))

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **more: Any,
    ) -> Any:
        """The text of a conversation, or the texts of a list of them. `more` are variables of the template. Raises
        what the template raises, ValueError without a template."""
        assert not tokenize, "ids come from the encoder"
        if not conversation:
            raise ValueError("Cannot apply chat template to an empty conversation. Provide at least one message.")
        if isinstance(conversation[0], dict):
            return self._render(conversation, tools, add_generation_prompt, more)
        return [self._render(each, tools, add_generation_prompt, more) for each in conversation]

    def render_marked(
        self, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the characters [start, end) that the template marks as generated. Raises
        what the template raises."""
        from transformers.utils import chat_template_utils

        known = [{key: value for key, value in each.items() if value is not None} for each in messages]
        texts, marked = chat_template_utils.render_jinja_template(
            conversations=[known],
            tools=tools,
            chat_template=self._template(tools),
            return_assistant_tokens_mask=True,
            **self.special_tokens_map,
        )
        return str(texts[0]), [(start, end) for start, end in marked[0] if start < end]

    def _render(
        self, messages: Any, tools: list[dict[str, Any]] | None, generation_prompt: bool, more: dict[str, Any]
    ) -> str:
        from transformers.utils import chat_template_utils

        template = self._template(tools)
        if tools is None and all(type(each["content"]) is str and each.keys() == _PLAIN for each in messages):
            compiled = chat_template_utils._compile_jinja_template(template)
            text: str = compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **{**self.special_tokens_map, **more},
            )
            return text
        known = [{key: value for key, value in each.items() if value is not None} for each in messages]
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[known],
            tools=tools,
            chat_template=template,
            add_generation_prompt=generation_prompt,
            **{**self.special_tokens_map, **more},
        )
        return str(rendered[0])

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        """The template that transformers would choose: `tool_use`, if it exists and there are tools, else `default`."""
        templates = self.chat_template
        if isinstance(templates, dict):
            template = templates.get("tool_use") if tools is not None else None
            template = template or templates.get("default")
        else:
            template = templates
        if not template:
            raise ValueError("the tokenizer has no chat template")
        return template


class AddedTokens(NamedTuple):
    """The special tokens that a tokenizer adds before and behind a text, as text."""

    begin: str
    end: str

    @classmethod
    def of(cls, backend: Any, decoder: dict[int, Any]) -> AddedTokens:
        try:
            framed = backend.encode("a", add_special_tokens=True)
            mask = list(framed.special_tokens_mask)
        except (AttributeError, TypeError, ValueError):
            return cls("", "")
        names = {id_: str(token.content) for id_, token in decoder.items()}
        if 0 not in mask:
            return cls("", "")
        first, last = mask.index(0), len(mask) - mask[::-1].index(0)
        begin, end = ("".join(names.get(id_, "") for id_ in part) for part in (framed.ids[:first], framed.ids[last:]))
        return cls(begin, end)

    def ends(self, token: str | None) -> bool:
        """Whether the tokenizer itself puts `token` at the end."""
        return bool(token) and self.end.endswith(str(token))


def unwrap_tokenizer(tokenizer: Any) -> Any:
    """The Rust tokenizer inside, set to neither truncate nor pad. Raises ValueError for a tokenizer that is pure
    Python."""
    encoder = ChatTokenizer.of(tokenizer).backend_tokenizer
    encoder.no_truncation()
    encoder.no_padding()
    # transformers leaves this as the last call that used `split_special_tokens` set it.
    encoder.encode_special_tokens = False
    return encoder
