"""What README and the documentation say about the command line is true."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import VERBS, build_parser

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join(
    (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for name in ("data", "evaluation", "serve", "export", "pipeline", "remote")
)
FENCED = "".join(re.findall(r"```sh\n(.*?)```", PAGES, re.DOTALL))
COMMANDS = re.findall(r"^cockpit\b[^#>\n]*", FENCED, re.MULTILINE)


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_a_block_parses(line: str) -> None:
    build_parser().parse_args(shlex.split(line)[1:])


def test_every_verb_is_in_the_table() -> None:
    table = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    missing = [verb.name for verb in VERBS if not re.search(rf"`{verb.name}\b", table)]
    assert not missing


def named_verbs() -> Iterator[tuple[str, Any]]:
    """Every verb with its full name, such as `data split`."""
    for verb in VERBS:
        yield from ((f"{verb.name} {each.name}", each) for each in verb.verbs) if verb.verbs else [(verb.name, verb)]


NAMED_VERBS = dict(named_verbs())


@pytest.mark.parametrize("name", NAMED_VERBS)
def test_the_reference_has_every_verb_with_every_option(name: str) -> None:
    """An option stands in the verb's own section or row, or in the tables of options that several verbs share."""
    parts = re.split(r"^#{2,3} ", REFERENCE, flags=re.MULTILINE)
    own = [part for part in parts if part.startswith(f"`cockpit {name}")]
    own += [line for line in REFERENCE.splitlines() if re.match(rf"\| `{name}\b", line)]
    assert own, f"docs/reference.md does not mention `{name}`"
    shared = [part for part in parts if part.startswith(("Sampling options", "Data options"))]
    text = "\n".join([*own, *shared])
    flags = [flag for each in NAMED_VERBS[name].options for flag in each.flags if flag.startswith("--")]
    assert not [flag for flag in flags if not re.search(rf"{flag}\b(?!-)", text)]
