"""Text that must not reach a terminal, and what a terminal would make of it."""

from __future__ import annotations

import re

EVIL = (
    "\x1b]52;c;RVZJTA==\x07\x1b]0;title\x07\x1b[5n\x1b[31;7m\x9b5n\x85\x7f\x00\x08\u202e\u2066\u200e\u061c"
    "[/x][bold]KEY[/bold]"
)
"""Clipboard, title, a query, a style, C1, DEL, backspace, characters that reverse the text, and markup."""
SHOWN = "␛]52;c;RVZJTA==␇"
OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?(?:25|2004)[hl]|\x1b\[\d*[AK]|\r\n|\r")
"""What Rich itself sends: styles, the cursor, lines that are drawn again."""
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def find_controls(text: str) -> list[str]:
    """The control characters that are not the program's own."""
    return ["\x1b[31;7m"] * text.count("\x1b[31;7m") + CONTROLS.findall(OWN.sub("", text))
