"""What a text is counted in: words, and single characters where a script has no blanks between words."""

from __future__ import annotations

import re

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3040-\u30ff\u31f0-\u31ff"

_WORD = re.compile(rf"[{HAN}{KANA}]|(?:(?![{HAN}{KANA}_])\w)+")
_HAN, _KANA = re.compile(f"[{HAN}]"), re.compile(f"[{KANA}]")


def words(text: str) -> list[str]:
    """In lower case, without punctuation; Chinese and Japanese characters one by one. Of English the words that `rouge_score` has."""
    return _WORD.findall(text.lower())


def script(text: str) -> str:
    """`ja` where there are kana, `zh` where there are Chinese characters alone, else nothing."""
    return "ja" if _KANA.search(text) else "zh" if _HAN.search(text) else ""
