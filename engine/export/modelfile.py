"""A Modelfile for Ollama beside a GGUF file, whose Go template renders what the model's own chat template renders.

Ollama gives its template (Go's text/template) the list of messages, `.Messages`, each with a `.Role` and `.Content`,
and has no functions that change texts. So the template is not translated. It is asked for a few conversations of marked
texts, from which the texts that it writes around them are read off: before the first message, between two messages of
two roles, and after the last. A Go template of these texts is written if it renders all these conversations, and the
run's golden ones, to the same bytes; otherwise the line of the chat template that says more is named.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.models import chat_template, files, template_lock, tokenizers
from engine.models.targets import Target
from engine.models.template_metadata import choose_template, takes_tools
from engine.protocol.text import first_line

FILE = "Modelfile"
Message = dict[str, Any]

_ROLES = ("u", "su", "uau", "suau", "uauau", "suauau")
"""The conversations that are asked for: the first letters of system, user and assistant. All end with a question."""
_NAMES = {"s": "system", "u": "user", "a": "assistant"}
_PLAIN = "qz{}xv"
"""A text that no template writes itself."""
_CONTEXT = 4096
"""Tokens of prompt and reply that Ollama has room for at least, if the model has: more takes memory."""
_SOME_DAY = datetime(1999, 12, 28)


class UnsayableError(Exception):
    """A chat template does something that a template of Ollama cannot do: what, and in which line."""


@dataclass
class Pieces:
    """What a chat template writes around the contents of messages."""

    between: dict[tuple[str, str], str]
    """By the roles before and after; the role before the first message is empty."""
    end: str
    """After the last message, before the reply."""
    notes: list[str] = field(default_factory=list)
    """What the chat template does beyond that, with other conversations."""

    def render(self, messages: Sequence[Message]) -> str:
        """What the Go template renders. Raises KeyError for roles in an unknown order."""
        text, before = "", ""
        for message in messages:
            text += self.between[before, message["role"]] + message["content"]
            before = message["role"]
        return text + self.end

    def write_go(self) -> str:
        """The template for Ollama."""
        branches = []
        for role in dict.fromkeys(role for _, role in self.between):
            ways = {before: text for (before, after), text in self.between.items() if after == role}
            tests = " else ".join(f'if eq $before "{before}" }}}}{_quote(text)}{{{{' for before, text in ways.items())
            own = _quote(ways.popitem()[1]) if len({*ways.values()}) == 1 else f"{{{{ {tests} end }}}}"
            branches.append(f'if eq .Role "{role}" }}}}{own}{{{{ .Content }}}}{{{{ $before = .Role }}}}')
        chosen = "{{- " + "{{- else ".join(f"{branch}\n" for branch in branches) + "{{- end }}\n"
        # A role that the chat template does not take is left out, as if its message were not there.
        return '{{- $before := "" }}\n{{- range .Messages }}\n' + chosen + "{{- end }}" + _quote(self.end)


def _quote(text: str) -> str:
    """An action of a Go template that writes this text; nothing for an empty one."""
    if not text:
        return ""
    # JSON's escapes below U+0080 are Go's as well, and leave no three quotes, which would end the text in a Modelfile.
    return "{{ " + "".join(map(_escape, json.dumps(text, ensure_ascii=False))) + " }}"


def _escape(character: str) -> str:
    """A character of a Go string. Ollama drops those that are not printable from a Modelfile."""
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def read_pieces(tokenizer: Any, opening: str = "") -> Pieces:
    """The pieces of the tokenizer's chat template, without `opening`, the text of a token that the program which reads
    the GGUF file writes before them. Raises UnsayableError."""
    between: dict[tuple[str, str], str] = {}
    ends: dict[str, None] = {}
    asked: list[tuple[list[Message], str]] = []
    for roles in _ROLES:
        messages = [{"role": _NAMES[role], "content": _PLAIN.format(at)} for at, role in enumerate(roles)]
        try:
            text = _render(tokenizer, messages, opening)
        except UnsayableError:
            raise
        except Exception as error:  # noqa: BLE001 - a template is a program, and raises anything
            if "s" in roles:  # it takes no system prompt; an Ollama user's is refused nowhere
                continue
            raise UnsayableError(f"it refuses a plain conversation: {error}") from None
        asked.append((messages, text))
        before, at = "", 0
        for message in messages:
            place = text.find(message["content"], at)
            if place < 0:
                raise UnsayableError(_explain(tokenizer, messages, "leaves out or moves a message", message["content"]))
            between.setdefault((before, message["role"]), text[at:place])
            before, at = message["role"], place + len(message["content"])
        ends.setdefault(text[at:])
    pieces = Pieces(between, next(iter(ends)))
    for messages, text in asked:
        if (told := pieces.render(messages)) != text:
            raise UnsayableError(_explain_difference(tokenizer, messages, told, text, opening))
    _check_date(tokenizer, *asked[0])
    pieces.notes = _find_notes(tokenizer, pieces, opening)
    return pieces


def _check_date(tokenizer: Any, messages: list[Message], text: str) -> None:
    """Raises UnsayableError for a template that writes the date: the Go template would write the same one for ever."""
    other = chat_template.render(tokenizer, messages, reply_follows=True, date=_SOME_DAY)
    if not other.endswith(text):
        at = next((at for at, (one, two) in enumerate(zip(other, text, strict=False)) if one != two), 0)
        raise UnsayableError(f"it writes the date of the day{find_line(tokenizer, messages, at)}")


def _render(tokenizer: Any, messages: Sequence[Message], opening: str) -> str:
    text = chat_template.render(tokenizer, messages, reply_follows=True)
    if not text.startswith(opening):
        raise UnsayableError(
            f"a program that reads the GGUF file begins each prompt with {opening!r}, and the template does not"
        )
    return text.removeprefix(opening)


def _find_notes(tokenizer: Any, pieces: Pieces, opening: str) -> list[str]:
    """What is lost in Ollama in conversations of other kinds."""
    notes = []
    if not any(role == "system" for _, role in pieces.between):
        notes.append("the chat template takes no system prompt: Ollama would leave it out")
    spaced = [{"role": "user", "content": " qz1xv\n"}]
    if _try(tokenizer, spaced, opening) != pieces.render(spaced):
        notes.append("the chat template trims messages: Ollama sends the white space at their ends")
    thought = f"{chat_template.OPEN}\nqz1xv\n{chat_template.CLOSE}\n\nqz2xv"
    turns = [
        {"role": "user", "content": "qz0xv"},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": "qz3xv"},
    ]
    if _try(tokenizer, turns, opening) != pieces.render(turns):
        notes.append("the chat template takes thinking out of earlier replies: Ollama sends it if a client does")
    if takes_tools(tokenizer.chat_template):
        notes.append("tools are left out: for Ollama, the model takes none")
    return notes


def _try(tokenizer: Any, messages: list[Message], opening: str) -> str | None:
    try:
        return _render(tokenizer, messages, opening)
    except Exception:  # noqa: BLE001 - a template is a program, and raises anything
        return None


def _explain(tokenizer: Any, messages: Sequence[Message], what: str, text: str) -> str:
    turns = ", ".join(message["role"] for message in messages)
    source = choose_template(tokenizer.chat_template)
    lines = [(at, line.strip()) for at, line in enumerate(source.splitlines(), 1) if "content" in line]
    index = next(at for at, message in enumerate(messages) if message["content"] == text)
    own = [each for each in lines if messages[index]["role"] in each[1] or "system" in each[1]] or lines
    return f"it {what} in a conversation of {turns}{_name_line(*own[0]) if own else ''}"


def _explain_difference(tokenizer: Any, messages: Sequence[Message], told: str, text: str, opening: str) -> str:
    at = next((at for at, (one, other) in enumerate(zip(told, text, strict=False)) if one != other), len(told))
    turns = ", ".join(message["role"] for message in messages)
    line = find_line(tokenizer, messages, at + len(opening))
    return f"what it writes around a message depends on more than the roles beside it ({turns}){line}"


def find_line(tokenizer: Any, messages: Sequence[Message], at: int) -> str:
    """The line of the chat template that writes the character `at` of a conversation; empty where it is unknown."""
    from transformers.utils import chat_template_utils

    source = choose_template(tokenizer.chat_template)
    try:
        template = chat_template_utils._compile_jinja_template(source)
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        context = template.new_context(
            {"messages": list(messages), "add_generation_prompt": True, "tools": None, "documents": None, **special}
        )
        written, parts = 0, template.root_render_func(context)
        for part in parts:
            written += len(part)
            if written > at:
                number = template.get_corresponding_lineno(parts.gi_frame.f_lineno)
                return _name_line(number, source.splitlines()[number - 1].strip())
    except Exception:  # noqa: BLE001 - the line is a help only
        return ""
    return ""


def _name_line(number: int, line: str) -> str:
    return f", line {number}: {line if len(line) <= 100 else line[:99] + '…'}"


# ── the file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def read_opening(file: Path, tokenizer: Any) -> str:
    """The text of the token that llama.cpp and Ollama put before each prompt of this GGUF file; empty without one."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields

    def read(name: str) -> Any:
        found = fields.get(f"tokenizer.ggml.{name}")
        return found.contents() if found else None

    adds = read("add_bos_token")
    if adds is None:
        adds = read("model") == "llama" or read("pre") in ("llama3", "llama-v3", "llama-bpe")
    token = read("bos_token_id")
    return str(tokenizer.convert_ids_to_tokens(token)) if adds and token is not None else ""


def write(folder: Path, file: Path, target: Target) -> dict[str, Any]:
    """Write the Modelfile of the GGUF `file` of the exported `folder` into it. Returns `modelfile` and its `notes`, or
    `no_modelfile`, the reason why there is none. Sampling is that of the profile of `target`'s run, else greedy. Raises
    nothing: the export is complete without it."""
    try:
        return _write(folder, file, target)
    except UnsayableError as error:
        return {"no_modelfile": f"no template of Ollama says what the model's own does: {error}"}
    except Exception as error:  # noqa: BLE001 - templates and the files of a model may hold anything
        return {"no_modelfile": f"{type(error).__name__}: {first_line(error)}"}


def _write(folder: Path, file: Path, target: Target) -> dict[str, Any]:
    if not file.name.isprintable():
        return {"no_modelfile": "the name of the GGUF file cannot be written in a Modelfile"}
    tokenizer = tokenizers.load(folder)
    if not choose_template(tokenizer.chat_template):
        return {"no_modelfile": "the model has no chat template"}
    lock = files.read_json_object(folder / "lock.json") if (folder / "lock.json").is_file() else {}
    opening = read_opening(file, tokenizer)
    pieces = read_pieces(tokenizer, opening)
    _compare(tokenizer, pieces, [each["messages"] for each in lock.get("golden", ())], opening)
    profile = _read_profile(target)
    generation, longest = profile.get("generation") or {}, (profile.get("data") or {}).get("max_length") or 0
    most = int(files.read_json_object(folder / "config.json").get("max_position_embeddings") or _CONTEXT)
    context = min(most, max(_CONTEXT, longest + generation.get("max_new_tokens", 256)))
    settings, lost = list_parameters(generation, _list_stops(folder, lock, tokenizer), context)
    notes = [*pieces.notes, *lost]
    lines = [
        f"# ollama create {file.stem} -f {FILE}",
        *(f"# Note: {note}." for note in notes),
        f"FROM ./{file.name}",
        f'TEMPLATE """{pieces.write_go()}"""',
        *(f"PARAMETER {name} {value}" for name, value in settings),
    ]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"modelfile": FILE, "notes": notes}


def _compare(tokenizer: Any, pieces: Pieces, conversations: Sequence[list[Message]], opening: str) -> None:
    """Compare both templates on conversations of the training data, up to their last question. What `pieces.notes` tell
    is a difference that is known. Raises UnsayableError."""
    for messages in conversations:
        asked = max((at + 1 for at, each in enumerate(messages) if each["role"] == "user"), default=0)
        turns = messages[:asked]
        if pieces.notes or not all(isinstance(each.get("content"), str) for each in turns):
            continue
        if _follows(pieces, turns) and (told := pieces.render(turns)) != (text := _render(tokenizer, turns, opening)):
            raise UnsayableError(_explain_difference(tokenizer, turns, told, text, opening))


def _read_profile(target: Target) -> dict[str, Any]:
    from ruamel.yaml import YAML

    path = target.folder.parent.parent / "profile.yaml"
    if not target.run or not path.is_file():
        return {}
    found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _list_stops(folder: Path, lock: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """The texts of the tokens that end a reply."""
    ids = lock.get("eos_token_ids")
    if not ids:
        path = folder / "generation_config.json"
        named = files.read_json_object(path).get("eos_token_id") if path.is_file() else None
        ids = {*(named if isinstance(named, list) else [named]), *template_lock.find_turn_ends(tokenizer)} - {None}
    return [text for each in sorted(ids) if (text := str(tokenizer.decode([each])))]


def _follows(pieces: Pieces, messages: Sequence[Message]) -> bool:
    """Whether the roles follow each other as in the conversations that were asked for. Ollama joins neighbouring
    messages of one role before its template sees them."""
    roles = ["", *(message["role"] for message in messages)]
    return roles[-1] == "user" and all(pair in pieces.between for pair in itertools.pairwise(roles))


def list_parameters(
    wanted: Mapping[str, Any], stops: Sequence[str], context: int
) -> tuple[list[tuple[str, str]], list[str]]:
    """The parameters, all of which are written, because Ollama's own defaults differ; and what it cannot do."""
    settings = [
        ("temperature", f"{wanted.get('temperature', 0.0):g}"),
        ("top_k", str(wanted.get("top_k") or 0)),
        ("top_p", f"{wanted.get('top_p') or 1.0:g}"),
        ("min_p", f"{wanted.get('min_p') or 0.0:g}"),
        ("repeat_penalty", f"{wanted.get('repetition_penalty', 1.0):g}"),
        ("repeat_last_n", "-1"),
        ("num_ctx", str(context)),
        ("num_predict", str(wanted.get("max_new_tokens", 256))),
    ]
    if wanted.get("seed") is not None:
        settings.append(("seed", str(wanted["seed"])))
    every = list(dict.fromkeys([*stops, *wanted.get("stop", ())]))
    notes = []
    for stop in every:
        if '"""' in stop or not all(each.isprintable() or each in "\t\r\n" for each in stop):
            notes.append(f"a stop text cannot be written in a Modelfile: {stop!r}")
        else:
            settings.append(("stop", f'"""{stop}"""' if {*stop} & {*'"\r\n'} else f'"{stop}"'))
    if wanted.get("no_repeat_ngram"):
        notes.append(f"no_repeat_ngram {wanted['no_repeat_ngram']} is left out: Ollama has no such setting")
    return settings, notes
