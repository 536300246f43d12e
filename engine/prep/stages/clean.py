"""Second stage: repairs text and drops useless rows. Each rule counts the rows that it changed or dropped.

The rules apply to every text in a row, so a row keeps its format. Broken Unicode is repaired by ftfy
(https://ftfy.readthedocs.io), restricted to mojibake: quotes, ligatures and full-width characters stay as written.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from engine.options.data import CleanOptions
from engine.prep import chunks
from engine.prep.chunks import Span
from engine.prep.stages import row_files, row_text
from engine.prep.stages.context import Context

WORK = "engine.prep.stages.clean:clean_span"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){3,}")


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
    return [name for name in (*_REPAIRS, *_DROPS) if name in names]


def clean_text(text: str, options: CleanOptions) -> tuple[str, list[str]]:
    """The repaired text, and the rules that changed it."""
    touched = []
    for name in _REPAIRS:
        value = getattr(options, name)
        if value not in (False, "none"):
            repaired = _REPAIRS[name](text, value)
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


def _trim_blanks(text: str, _: Any) -> str:
    return _BLANK_LINES.sub("\n\n\n", text).strip()


_REPAIRS: dict[str, Callable[[str, Any], str]] = {
    "unicode": _repair_unicode,
    "normalize": _normalize_unicode,
    "control_characters": _remove_control_characters,
    "blanks": _trim_blanks,
}
"""Field of `CleanOptions` -> the repair, called with a text and the field's value. Applied in this order."""


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


def _clean_value(value: Any, options: CleanOptions, touched: set[str]) -> Any:
    """The value with every text in it cleaned. Adds the rules that changed a text to `touched`."""
    if isinstance(value, str):
        text, rules = clean_text(value, options)
        touched.update(rules)
        return text
    if isinstance(value, list):
        return [_clean_value(each, options, touched) for each in value]
    if isinstance(value, dict):
        return {name: _clean_value(each, options, touched) for name, each in value.items()}
    return value
