"""Second stage: repairs text and drops useless rows. Each rule counts the rows that it changed or dropped.

The rules apply to the texts in a row, so a row keeps its format. Tools, calls and their arguments stay as they are.
Blanks at the beginning stay where they can be indentation: in replies, what tools return, plain text, and any text of
indented lines; so do those of content parts, which are joined, and blank lines between fences. Broken Unicode is
repaired by ftfy (https://ftfy.readthedocs.io), restricted to mojibake: quotes, ligatures and full-width characters stay
as written.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.options.data import CleanOptions
from engine.prep import chunks
from engine.prep.chunks import Span
from engine.prep.formats.sharegpt import CALLS, ROLES
from engine.prep.stages import row_files, row_text
from engine.prep.stages.context import Context

WORK = "engine.prep.stages.clean:clean_span"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){3,}")
_FENCED = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_FIRST_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")
_INDENTED = re.compile(r"\n[ \t]+\S")

_UNTOUCHED = frozenset({"tools", "functions", "tool_calls", "function_call", "tool_call_id"})
"""Keys whose values are code: JSON that a program reads."""
_KEPT_AHEAD = frozenset(
    {"text", "output", "completion", "response", "answer", "target", "summary", "chosen", "rejected"}
)
"""Columns of replies and of plain text."""


def clean(rows: Path, out: Path, rejects: Path, options: CleanOptions, context: Context) -> dict[str, Any]:
    """Write the rows that are kept to `out`, the others to `rejects`.

    Returns `in` = `out` + `rejected`, `changed`, and `rules`: the number of kept rows that each rule changed, or of
    rows that it dropped.
    """
    settings = context.settings(options=options.model_dump())
    results = context.work_through([rows], WORK, settings, "cleaning")
    counts = chunks.gather(results, {"rows": out, "rejects": rejects})
    rules: Counter[str] = Counter()
    for each in counts:
        rules.update(each["rules"])
    total = {name: sum(each[name] for each in counts) for name in ("in", "out", "changed", "rejected")}
    assert total["in"] == total["out"] + total["rejected"], total
    return {**total, "rules": {name: rules[name] for name in rule_names(options)}}


def rule_names(options: CleanOptions) -> list[str]:
    """The enabled rules."""
    names = [name for name, value in options if value not in (False, None, [], "none")]
    return [name for name in (*_REPAIRS, "blanks", *_DROPS) if name in names]


class Ends(NamedTuple):
    """Whether blanks at the beginning and at the end of a text stay."""

    ahead: bool = False
    behind: bool = False


def clean_text(text: str, options: CleanOptions, keep: Ends = Ends()) -> tuple[str, list[str]]:  # noqa: B008
    """The repaired text, and the rules that changed it."""
    touched = []
    for name in (*_REPAIRS, "blanks"):
        value = getattr(options, name)
        if value not in (False, "none"):
            repaired = _trim_blanks(text, keep) if name == "blanks" else _REPAIRS[name](text, value)
            if repaired != text:
                touched.append(name)
                text = repaired
    return text, touched


def _repair_unicode(text: str, _: Any) -> str:
    import ftfy

    if text.isascii():
        return text
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
    )
    return str(ftfy.fix_text(text, config))


def _normalize_unicode(text: str, form: Any) -> str:
    return text if text.isascii() else unicodedata.normalize(form, text)


def _remove_control_characters(text: str, _: Any) -> str:
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _trim_blanks(text: str, keep: Ends) -> str:
    """Without blank lines beyond two outside fences, and without blanks at the ends. The indentation of the first line
    stays if a later one is indented too."""
    ready, at = [], 0
    for fence in _FENCED.finditer(text):
        ready += [_BLANK_LINES.sub("\n\n\n", text[at : fence.start()]), fence[0]]
        at = fence.end()
    text = "".join([*ready, _BLANK_LINES.sub("\n\n\n", text[at:])])
    if not keep.behind:
        text = text.rstrip()
    if keep.ahead:
        return text
    return _FIRST_LINES.sub("", text) if _INDENTED.search(text.lstrip()) else text.lstrip()


_REPAIRS: dict[str, Callable[[str, Any], str]] = {
    "unicode": _repair_unicode,
    "normalize": _normalize_unicode,
    "control_characters": _remove_control_characters,
}
"""Field of `CleanOptions` -> the repair, called with a text and the field's value. Applied in this order,
and `blanks` after them."""


# ── rules that drop a row: (canonical rows, the field's value) -> the reason, or "" ───────────────────────────────────


def _find_empty(rows: list[dict[str, Any]], _: Any) -> str:
    if any(not text.strip() for text in row_text.replies(rows)):
        return "the reply is empty"
    if any(not text.strip() for text in row_text.questions(rows)):
        return "the question is empty"
    return ""


def _find_short(rows: list[dict[str, Any]], least: Any) -> str:
    length = len(row_text.comparable_text(rows))
    return f"{length} characters, fewer than {least}" if length < least else ""


def _find_long(rows: list[dict[str, Any]], most: Any) -> str:
    length = len(row_text.comparable_text(rows))
    return f"{length} characters, more than {most}" if length > most else ""


def _find_boilerplate(rows: list[dict[str, Any]], patterns: Any) -> str:
    replies = row_text.replies(rows)
    found = (pattern for pattern in patterns if any(_compile(pattern).search(reply) for reply in replies))
    return next((f"boilerplate: the reply matches {pattern}" for pattern in found), "")


_DROPS: dict[str, Callable[[list[dict[str, Any]], Any], str]] = {
    "empty": _find_empty,
    "min_chars": _find_short,
    "max_chars": _find_long,
    "boilerplate": _find_boilerplate,
}
_compile = cache(re.compile)


# ── in the worker processes ────────────────────────────────────────────────────────────────────────────────────────


def clean_span(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    options = CleanOptions(**settings["options"])
    counts: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    with (folder / "rows").open("wb") as kept, (folder / "rejects").open("wb") as dropped:
        for row in row_files.read_span(span):
            counts["in"] += 1
            touched: set[str] = set()
            content = _clean_value(row.row(), options, touched)
            row_format = settings["formats"][row.file] if settings["formats"] else None
            rule, reason = _apply_drops(content, row_format, options)
            if reason:
                counts["rejected"] += 1
                rules.update([rule])
                dropped.write(
                    row_files.reject_line(settings["files"][row.file], row, reason, "clean", code="row.unwanted")
                )
                continue
            rules.update(touched)
            counts["out"] += 1
            counts["changed"] += bool(touched)
            kept.write(row.to_line(row_files.encode(content) if touched else None))
    return {**{name: counts[name] for name in ("in", "out", "changed", "rejected")}, "rules": rules}


def _apply_drops(row: dict[str, Any], row_format: str | None, options: CleanOptions) -> tuple[str, str]:
    """(rule, reason), both empty for a row that is kept. A row that cleaning has emptied is no longer valid in its
    format."""
    try:
        rows = row_text.to_canonical(row, row_format)
    except ValueError as error:
        return "empty", str(error)
    for rule in _DROPS:
        value = getattr(options, rule)
        reason = _DROPS[rule](rows, value) if value not in (False, None, []) else ""
        if reason:
            return rule, reason
    return "", ""


def _clean_value(value: Any, options: CleanOptions, touched: set[str], keep: Ends = Ends()) -> Any:  # noqa: B008
    """The value with every text in it cleaned. Adds the rules that changed a text to `touched`."""
    if isinstance(value, str):
        text, rules = clean_text(value, options, keep)
        touched.update(rules)
        return text
    if isinstance(value, list):
        keep = Ends(True, True) if value and all(map(_is_part, value)) else keep
        return [_clean_value(each, options, touched, keep) for each in value]
    if isinstance(value, dict):
        return {name: _clean_key(name, each, value, options, touched, keep) for name, each in value.items()}
    return value


def _clean_key(
    name: str, value: Any, whole: dict[str, Any], options: CleanOptions, touched: set[str], keep: Ends
) -> Any:
    if name in _UNTOUCHED or (_says(whole) in CALLS and name in ("value", "content")):
        return value
    ahead = name in _KEPT_AHEAD or (name in ("value", "content") and ROLES.get(_says(whole)) in ("assistant", "tool"))
    return _clean_value(value, options, touched, Ends(keep.ahead or ahead, keep.behind))


def _says(turn: dict[str, Any]) -> str:
    """Who says a turn, by either spelling; empty for a mapping that is no turn."""
    names = (turn.get(key) for key in ("from", "role"))
    return next((name for name in names if isinstance(name, str)), "")


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and "type" in value and ("text" in value or "value" in value)
