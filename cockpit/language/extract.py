"""Finds the messages in the sources: what the cockpit passes to `tr`, its tables of texts, and what the engine says.

A table is a module-level value that is shown by `tr(TABLE[key])` and the like: keys with their names, help texts, verbs
and their options. Of the engine, the arguments are taken that make a problem, a warning or a refusal.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

from cockpit.language.loaded_catalogue import ENGINE
from cockpit.language.translate import count_forms
from cockpit.language.words import WORDS

ROOT = Path(__file__).parents[2]
WORD = re.compile(r"[A-Za-z]{2,}")
STYLE = re.compile(r"(?:(?:bold|dim|italic|underline|not|none|on|\$[\w-]+|\d+%|#\w+|red|green|yellow|cyan)(?:\s+|$))+")
CSS = re.compile(r"\{\s*[\w-]+\s*:", re.DOTALL)
TABLE_CALLS = {"Binding": (2,), "Verb": (1,), "Column": (0, 1, 2), "SystemCommand": (0, 1)}
"""Calls that make rows of tables -> the positions of their texts."""
TEXT_KEYWORDS = {"title", "hint", "cause", "message", "reason", "help", "description", "problem"}
ENGINE_CALLS = {
    *("Check", "DamagedFile", "ErrorTexts", "Finding", "Pause", "Refusal", "Remark", "RequestError", "Unsupported"),
    *(
        "Issue",
        "_Share",
        "_Unsuitable",
        "_problem",
        "_refusal",
        "_refuse",
        "_reject",
        "_unusable",
        "_warn",
        "move",
        "progress",
    ),
    *("problems_for_mistakes", "set_phase", "unreachable_error", "unshardable", "unusable_file", "warn"),
}
"""Functions of the engine whose arguments are said to the user."""
SILENT = {"AssertionError", "TypeError", "NotImplementedError", "KeyError", "StopIteration", "SystemExit"}
"""Exceptions that tell of a bug, not of the user's files and settings."""


class Text(ast.Constant):
    """A literal that is a text; only for the type checker."""

    value: str


class Message(NamedTuple):
    """A text to be translated. `context` is empty, or says that the engine makes it."""

    text: str
    context: str
    place: tuple[str, int]


def find_messages(root: Path = ROOT) -> list[Message]:
    """Every message of the cockpit and of the engine once, in the order of files and lines."""
    found: dict[tuple[str, str], Message] = {}
    for package, context, find in (("cockpit", "", find_own), ("engine", ENGINE, find_engine)):
        for path in sorted((root / package).rglob("*.py")):
            place = path.relative_to(root).as_posix()
            for line, text in find(ast.parse(path.read_text(encoding="utf-8")), path.stem):
                found.setdefault((context, text), Message(text, context, (place, line)))
    for word in WORDS:
        found.setdefault(("", word), Message(word, "", ("cockpit/language/words.py", 1)))
    return list(found.values())


def find_own(tree: ast.Module, module: str = "") -> Iterator[tuple[int, str]]:
    """The messages of a module of the cockpit: line and text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            if name == "tr":
                yield from ((each.lineno, each.value) for each in node.args[:1] if is_text(each))
            elif name == "counted" and len(node.args) > 1 and is_text(node.args[1]):
                yield from ((node.lineno, text) for text in count_forms(node.args[1].value))
            for at in TABLE_CALLS.get(name, ()):
                yield from ((each.lineno, each.value) for each in node.args[at : at + 1] if is_text(each))
            if name == "option":
                helps = [each.value for each in node.keywords if each.arg == "help"]
                yield from ((each.lineno, each.value) for each in helps if is_text(each))
    for statement in tree.body:
        values = [statement, *statement.body] if isinstance(statement, ast.ClassDef) else [statement]
        for each in values:
            if isinstance(each, (ast.Assign, ast.AnnAssign)) and each.value is not None:
                yield from find_in_table(each.value)


def find_in_table(value: ast.expr) -> Iterator[tuple[int, str]]:
    """The texts of a module's or a class's table: what has words and is neither a style, a style sheet nor a name."""
    pending: list[ast.AST] = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Call) and name_of(node.func) in {*TABLE_CALLS, "option", "compile", "tr"}:
            if name_of(node.func) == "Verb":
                pending += node.args[3:] + [each.value for each in node.keywords]
            continue
        if is_text(node):
            if is_shown(node.value):
                yield node.lineno, node.value
            continue
        if isinstance(node, ast.Dict):
            pending += [each for each in (*node.keys, *node.values) if each is not None]
            continue
        pending += ast.iter_child_nodes(node)


def is_shown(text: str) -> bool:
    """Whether a text of a table has words beside its markup, and is neither a style nor a style sheet."""
    words = WORD.search(re.sub(r"\[/?[^\]]*\]", " ", text))
    return " " in text.strip() and bool(words) and not STYLE.fullmatch(text.strip()) and not CSS.search(text)


CHECKING = {"checks", "complaints", "first_rows", "issues", "text"}
"""Modules of the engine that yield or return what is wrong with a profile: (setting, message), or a part of it."""


def find_engine(tree: ast.Module, module: str = "") -> Iterator[tuple[int, str]]:
    """The messages that a module of the engine makes: line and text, with {0}, {1}, … for what an f-string fills in."""
    for node in ast.walk(tree):
        arguments: list[ast.expr] = []
        if isinstance(node, ast.Call):
            if name_of(node.func) in ENGINE_CALLS:
                arguments += node.args
            arguments += [each.value for each in node.keywords if each.arg in TEXT_KEYWORDS]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and name_of(node.exc.func) not in SILENT:
            arguments += node.exc.args
        elif isinstance(node, (ast.Yield, ast.Return)) and module in CHECKING and node.value is not None:
            arguments += node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for argument in arguments:
            for text_node in texts_in(argument):
                text = template(text_node)
                if " " in text.strip() and WORD.search(re.sub(r"\{\d+\}", " ", text)):
                    yield text_node.lineno, text


def texts_in(argument: ast.expr) -> Iterable[ast.Constant | ast.JoinedStr]:
    """The texts of which an argument is one: itself, or either side of a condition."""
    if isinstance(argument, ast.IfExp):
        return [*texts_in(argument.body), *texts_in(argument.orelse)]
    if isinstance(argument, ast.BoolOp):
        return [each for value in argument.values for each in texts_in(value)]
    if isinstance(argument, ast.JoinedStr) or is_text(argument):
        return [argument]
    return []


def template(node: ast.Constant | ast.JoinedStr) -> str:
    """The text of a literal, with numbered fields."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    parts, number = [], 0
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(str(value.value))
        else:
            parts.append(f"{{{number}}}")
            number += 1
    return "".join(parts)


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_text(node: ast.AST) -> TypeGuard[Text]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
