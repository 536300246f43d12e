"""The catalogue has every message of the sources with the same fields, and is compiled."""

from __future__ import annotations

import ast
import re

import pytest

from cockpit.language.catalogue import compiled, find_faults, path_of, read_catalogue, update
from cockpit.language.extract import (
    ENGINE,
    ROOT,
    Message,
    find_engine,
    find_messages,
    find_own,
    is_shown,
    is_text,
    name_of,
)
from cockpit.language.translate import LANGUAGES

OTHERS = [language for language in LANGUAGES if language != "en"]
SHOWING = {"notify", "say", "Static", "Label", "Confirm", "Prompt", "Picker", "show_status"}
"""Functions whose first argument the user reads."""


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    return find_messages()


@pytest.mark.parametrize("language", OTHERS)
def test_every_message_is_translated(language: str, messages: list[Message]) -> None:
    assert list(find_faults(read_catalogue(language), messages)) == [], "python -m cockpit.language.catalogue"
    assert len(messages) > 2000


@pytest.mark.parametrize("language", OTHERS)
def test_the_compiled_catalogue_is_the_written_one(language: str) -> None:
    assert path_of(language, "mo").read_bytes() == compiled(read_catalogue(language))


@pytest.mark.parametrize("language", OTHERS)
def test_fields_of_the_engines_messages_are_all_there(language: str, messages: list[Message]) -> None:
    catalogue = read_catalogue(language)
    for message in messages:
        if message.context == ENGINE:
            translation = str(catalogue.get(message.text, ENGINE).string)  # type: ignore[union-attr]
            assert set(re.findall(r"\{\d+\}", translation)) == set(re.findall(r"\{\d+\}", message.text)), message


def test_a_new_a_changed_and_a_dropped_message_are_found() -> None:
    before = update(read_catalogue("none"), [Message("old", "", ("a.py", 1)), Message("{n} rows", "", ("a.py", 2))])
    before.get("old").string = "alt"  # type: ignore[union-attr]
    before.get("{n} rows").string = "{m} Zeilen"  # type: ignore[union-attr]
    now = [Message("{n} rows", "", ("a.py", 2)), Message("new", "engine", ("b.py", 1))]
    faults = list(find_faults(before, now))
    assert [fault.partition(":")[0] for fault in faults] == ["a.py", "b.py", "no source says this any more"]
    after = update(before, now)
    assert after.get("{n} rows").string == "{m} Zeilen" and after.get("old") is None  # type: ignore[union-attr]
    assert [fault.rpartition(":")[0] for fault in find_faults(after, now)][1] == "b.py: not translated"


def test_messages_are_found_in_the_sources() -> None:
    own = """
HELP = {"do": "Do it now.", "style": "bold $accent"}
class Screen:
    BINDINGS = [Binding("x", "stop", "Stop")]
    DEFAULT_CSS = "Screen { height: 1; width: 2; }"
    def show(self):
        '''A docstring is no message.'''
        self.notify(tr("{n} rows are left", n=1))
        return counted(2, "row")
"""
    found = {text for _, text in find_own(ast.parse(own))}
    assert found == {"Do it now.", "Stop", "{n} rows are left", "{count} row", "{count} rows"}
    engine = 'raise Refused(f"{a} has {b:,} rows" if a else "no rows at all")\nProblem(title=f"{x} cannot be read")'
    assert {text for _, text in find_engine(ast.parse(engine))} == {
        "{0} has {1} rows",
        "no rows at all",
        "{0} cannot be read",
    }


def test_nothing_is_shown_that_could_not_be_translated() -> None:
    """What is passed to the functions that show a text is passed through `tr`."""
    found = []
    for path in sorted((ROOT / "cockpit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name_of(node.func) in SHOWING and node.args:
                found += [f"{path.relative_to(ROOT)}:{node.lineno}" for each in node.args[:1] if _is_plain(each)]
    assert found == [], "pass these through tr()"


def _is_plain(node: ast.expr) -> bool:
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(each.value) for each in node.values if isinstance(each, ast.Constant))
        return is_shown(text) and bool(re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", text))
    return is_text(node) and is_shown(node.value)
