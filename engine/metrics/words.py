"""Words of a text, by Unicode; in scripts without blanks between words, single characters with their marks."""

from __future__ import annotations

import re
import unicodedata

import regex  # type: ignore[import-untyped]

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3040-\u30ff\u31f0-\u31ff"

_UNSPACED = rf"{HAN}{KANA}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}\p{{Javanese}}\p{{Tai_Tham}}"
"""Scripts in which the ends of words are not written: UAX #29 leaves words to dictionaries, and parts clusters."""
_WORD = regex.compile(rf"[{_UNSPACED}&&\w]\p{{M}}*|(?:[\w\u200c\u200d--[{_UNSPACED}_]]\p{{M}}*)+", regex.VERSION1)
_HAN, _KANA = re.compile(f"[{HAN}]"), re.compile(f"[{KANA}]")


def words(text: str) -> list[str]:
    """In lower case and normal form C, without punctuation; Chinese, Japanese and Thai characters one by one, each with
    its marks. English words are those of `rouge_score`."""
    return [str(word) for word in _WORD.findall(normalize(text.lower()))]


def normalize(text: str) -> str:
    """Normal form C, in which each letter with its accents is written in one way."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def script(text: str) -> str:
    """`ja` for a text with kana, `zh` for one with Chinese characters and no kana, empty for any other."""
    return "ja" if _KANA.search(text) else "zh" if _HAN.search(text) else ""
