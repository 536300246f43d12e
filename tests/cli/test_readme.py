"""What README and the documentation say of the command line is true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cockpit.cli import VERBS, build_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join(
    (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for name in ("data", "evaluation", "serve", "export", "pipeline")
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
