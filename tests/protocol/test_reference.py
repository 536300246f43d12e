"""The reference pages are those that the definitions give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from engine.protocol import journal, messages, states
from engine.protocol.messages import OPERATIONS
from engine.protocol.reference import list_structs, read_fields, write_journals, write_protocol
from engine.protocol.reference_text import EXAMPLES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "write", "argument"), [("protocol.md", write_protocol, ""), ("journals.md", write_journals, " journals")]
)
def test_the_page_is_up_to_date(page: str, write, argument: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == write(), (
        f"run: python -m engine.protocol.reference{argument} > docs/{page}"
    )


def test_every_message_is_on_the_page_with_all_its_fields() -> None:
    page = write_protocol()
    structs = list_structs()
    assert len(structs) > 50
    for struct in structs:
        heading = re.search(rf"\n### {struct.__name__}(?=\n| \()", page)
        assert heading, struct
        rows = page[heading.end() :].partition("\n### ")[0]
        for field in msgspec.structs.fields(struct):
            assert f"\n| `{field.name}` | " in rows, (struct, field.name)
    assert all(f"\n| `{name}` | " in page for name in OPERATIONS)


def test_every_kind_of_entry_has_an_example_that_is_read_as_itself() -> None:
    kinds = {kind.__struct_config__.tag for kind in get_args(journal.EventEntry | journal.LifecycleEntry)}
    assert set(EXAMPLES) == kinds
    for tag, example in EXAMPLES.items():
        assert journal.decode(journal.encode(example)) == example
        assert example.__struct_config__.tag == tag


def test_meanings_come_from_the_strings_below_the_fields() -> None:
    types, meanings = read_fields(messages.Stop)
    assert types == {"run": "`str`", "now": "`bool`"}
    assert meanings["run"].startswith("An id") and meanings["now"] == ""


def test_every_event_of_the_table_of_states_is_described() -> None:
    assert set(states.EVENTS) == {event for _, event in states.TRANSITIONS}
