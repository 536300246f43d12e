"""Text from elsewhere on its way to a terminal: control characters are shown, never sent.

Rows, replies, logs, names of files and runs, and problems may hold escape sequences that write to the clipboard, set
the title, answer into the shell or reverse the order of what is read. `show_controls` makes them visible; `guard` puts
it between `print` and the terminal, and `engine.protocol.console` between Rich and the terminal.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_C1 = "\x7f-\x9f"
_SURROGATES = "\ud800-\udfff"
_CONTROLS = re.compile(f"[\x00-\x1f{_C1}{_BIDI}{_SURROGATES}]")
_BAR = re.compile(r"\r|(?:\x1b\[A)+(?!.)", re.DOTALL)
_UNESCAPED_IN_JSON = re.compile(f"[{_C1}{_BIDI}{_SURROGATES}]")


def show_controls(text: str, keep: str = "\n\t") -> str:
    """The text with each control character replaced by something visible, but those in `keep`.

    These are C0 (`␛`), DEL (`␡`), C1 (`\\x9b`), the characters that change the direction of writing (`⟨U+202E⟩`), and
    lone surrogates (`\\udc9b`), which cannot be encoded. A line may end with CR LF.
    """
    if _CONTROLS.search(text) is None:
        return text
    if "\n" in keep:
        text = text.replace("\r\n", "\n")
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _picture(found[0]), text)


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code < 0xA0:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else f"⟨U+{code:04X}⟩"


def escape_json(document: str) -> str:
    """JSON text whose control characters are all escaped. Encoders escape C0 and nothing else."""
    return _UNESCAPED_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def to_json(document: Any) -> str:
    """The document as one line of JSON without control characters."""
    import json  # most commands print none, and begin with this module

    return escape_json(json.dumps(document, ensure_ascii=False))


class GuardedStream:
    """A text stream that shows control characters. It has no `buffer`, which would lead past it.

    With `bars`, the progress bars of libraries work: tqdm begins a line again, and moves up by lines.
    """

    def __init__(self, stream: TextIO, bars: bool = False) -> None:
        self.stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        own = (_BAR.match(text) or [""])[0] if self._bars else ""
        self.stream.write(own + show_controls(text[len(own) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:
        return self.stream.encoding

    @property
    def errors(self) -> str | None:
        return self.stream.errors

    @property
    def closed(self) -> bool:
        return self.stream.closed


def guard() -> None:
    """From now on, everything that this process prints goes through `show_controls`."""
    if not isinstance(sys.stdout, GuardedStream):
        sys.stdout = GuardedStream(sys.stdout)  # type: ignore[assignment]
    if not isinstance(sys.stderr, GuardedStream):
        sys.stderr = GuardedStream(sys.stderr, bars=True)  # type: ignore[assignment]
