"""Writes the reference pages of the protocol and of the journals from the definitions of the messages and entries.

python -m engine.protocol.reference > docs/protocol.md
python -m engine.protocol.reference journals > docs/journals.md
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import msgspec

from engine.protocol import journal, messages, states
from engine.protocol.envelope import Event, Reply, Request
from engine.protocol.messages import OPERATIONS, PROTOCOL, Body, FromWorker, Problem, ToWorker
from engine.protocol.reference_text import COMMANDS, EXAMPLES, JOURNALS, PROTOCOL_TEXT

WIDTH = 100


def write_protocol() -> str:
    """The page `docs/protocol.md`."""
    requests = dict.fromkeys(each for row in OPERATIONS.values() for each in (row.request, row.reply))
    shown = {Request, Reply, Event, *requests, *get_args(Body), *get_args(FromWorker), *get_args(ToWorker)}
    nested = [each for each in list_structs() if each not in shown]
    parts = [
        *paragraphs(PROTOCOL_TEXT["introduction"].format(version=PROTOCOL)),
        *describe_all((Request, Reply, Event), "## Envelopes", PROTOCOL_TEXT["envelopes"]),
        *paragraphs("## Operations", PROTOCOL_TEXT["operations"]),
        table(
            ("operation", "request", "reply", "meaning", "refused when"),
            (
                (f"`{name}`", link(row.request), link(row.reply), row.meaning, "; ".join(row.problems))
                for name, row in OPERATIONS.items()
            ),
        ),
        *describe_all(requests, "## Requests and replies", PROTOCOL_TEXT["requests"]),
        *describe_all(get_args(Body), "## Events", PROTOCOL_TEXT["events"]),
        *describe_all(get_args(FromWorker), "## From a worker to the supervisor", PROTOCOL_TEXT["from_worker"]),
        *describe_all(get_args(ToWorker), "## From the supervisor to a worker", PROTOCOL_TEXT["to_worker"]),
        table(("command", "meaning", "arguments"), COMMANDS),
        *describe_all(nested, "## Parts of messages", PROTOCOL_TEXT["parts"]),
    ]
    return "\n\n".join(parts) + "\n"


def write_journals() -> str:
    """The page `docs/journals.md`."""
    parts = [
        *paragraphs(JOURNALS["introduction"]),
        *paragraphs("## `events.jsonl`", JOURNALS["events"]),
        *describe_entries(get_args(journal.EventEntry)),
        *paragraphs("## `lifecycle.jsonl`", JOURNALS["lifecycle"]),
        *describe_entries(each for each in get_args(journal.LifecycleEntry) if each is not journal.Warn),
        *paragraphs("## Parts of entries", JOURNALS["parts"]),
        *describe(journal.BadRow, "### BadRow"),
        *describe(Problem, "### Problem"),
        *paragraphs("## States of a run", JOURNALS["states"]),
        table(("event", "meaning"), ((f"`{event}`", meaning) for event, meaning in states.EVENTS.items())),
        table(("from", "event", "to"), list_transitions()),
    ]
    return "\n\n".join(parts) + "\n"


def list_transitions() -> Iterator[tuple[str, str, str]]:
    """(from, event, to) of the table of states, with the states that one event moves to the same state in one row."""
    sources: dict[tuple[str, str], list[str | None]] = {}
    for (before, event), after in states.TRANSITIONS.items():
        sources.setdefault((event, after), []).append(before)
    for (event, after), found in sources.items():
        known = [state for state in states.STATES if state in found]
        yield ", ".join(known) or "–", f"`{event}`", after


def describe_all(structs: Iterable[type], heading: str, text: str) -> Iterator[str]:
    """A section of the page, with each struct under a heading of its own."""
    yield from paragraphs(heading, text)
    for struct in structs:
        tag = struct.__struct_config__.tag  # type: ignore[attr-defined]
        requests = ", ".join(f"`{name}`" for name, row in OPERATIONS.items() if row.request is struct)
        replies = ", ".join(f"`{name}`" for name, row in OPERATIONS.items() if row.reply is struct)
        use = " ".join([f"Request of {requests}."] * bool(requests) + [f"Reply to {replies}."] * bool(replies))
        yield from describe(struct, f"### {struct.__name__}" + (f" (`type: {tag}`)" if tag else ""), use)


def describe_entries(entries: Iterable[type]) -> Iterator[str]:
    """Journal entries, each with an example line."""
    for entry in entries:
        tag = entry.__struct_config__.tag  # type: ignore[attr-defined]
        yield from describe(entry, f"### `{tag}`", skipped=("time", "attempt"))
        yield f"```json\n{journal.encode(EXAMPLES[tag]).decode()}\n```"


def describe(struct: type, heading: str, use: str = "", skipped: tuple[str, ...] = ()) -> Iterator[str]:
    """A struct: heading, docstring, what it is used for, and a table of its fields."""
    yield heading
    yield from paragraphs(f"{inspect.cleandoc(struct.__doc__ or '')} {use}")
    fields = [each for each in msgspec.structs.fields(struct) if each.name not in skipped]
    if fields:
        types, meanings = read_fields(struct)
        rows = ((f"`{each.name}`", types[each.name], default(each), meanings[each.name]) for each in fields)
        yield table(("field", "type", "default", "meaning"), rows)


def read_fields(struct: type) -> tuple[dict[str, str], dict[str, str]]:
    """Types and meanings of the fields by name, inherited ones included, from the source: the meaning is the string
    below a field."""
    types: dict[str, str] = {}
    meanings: dict[str, str] = {}
    for owner in reversed(struct.__mro__):
        if not owner.__module__.startswith("engine."):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        waiting: list[str] = []  # fields without a meaning so far; a string may describe several that stand together
        for statement in body.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                types[name], meanings[name] = f"`{ast.unparse(statement.annotation)}`", ""
                waiting = [name]
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and waiting:
                meanings[waiting[0]] = " ".join(inspect.cleandoc(str(statement.value.value)).split())
    return types, meanings


def default(field: Any) -> str:
    """A field's default as JSON; empty for a required field."""
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        return "now" if field.name == "time" else f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    if isinstance(field.default, msgspec.Raw):
        return "`{}`"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table. A bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def link(struct: type) -> str:
    return f"[{struct.__name__}](#{struct.__name__.lower()})" if msgspec.structs.fields(struct) else "–"


def paragraphs(*texts: str) -> Iterator[str]:
    """The paragraphs and lists of texts, wrapped. Headings and code are left as they are."""
    for text in texts:
        for each in text.strip().split("\n\n"):
            if each.startswith("- "):
                yield "\n".join(wrap(item, "  ") for item in re.split(r"\n(?=- )", each))
            else:
                yield each if each.startswith(("#", "    ", "```")) else wrap(each)


def wrap(text: str, indent: str = "") -> str:
    """Text wrapped at `WIDTH` columns, with no line break inside `code`."""
    joined = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.fill(joined, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def list_structs() -> list[type]:
    """The messages and their parts, in the order of `messages.__all__`."""
    exported = (getattr(messages, name) for name in messages.__all__)
    return [
        each
        for each in exported
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each is not messages.Message
    ]


def main() -> None:
    pages = {"protocol": write_protocol, "journals": write_journals}
    sys.stdout.write(pages[sys.argv[1] if len(sys.argv) > 1 else "protocol"]())


if __name__ == "__main__":
    main()
