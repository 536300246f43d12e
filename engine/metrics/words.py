"""Words of a text; in scripts without blanks between words, single characters."""

from __future__ import annotations

import re

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3040-\u30ff\u31f0-\u31ff"

_WORD = re.compile(rf"[{HAN}{KANA}]|(?:(?![{HAN}{KANA}_])\w)+")
_HAN, _KANA = re.compile(f"[{HAN}]"), re.compile(f"[{KANA}]")


def words(text: str) -> list[str]:
    """In lower case, without punctuation; Chinese and Japanese characters one by one. English words are those of
    `rouge_score`."""
    return _WORD.findall(text.lower())


def script(text: str) -> str:
    """`ja` for a text with kana, `zh` for one with Chinese characters and no kana, empty for any other."""
    return "ja" if _KANA.search(text) else "zh" if _HAN.search(text) else ""
