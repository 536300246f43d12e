"""Rows with images, sound or video: they are refused, because only text is trained here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from engine.prep.formats.canonical import Canonical, all_text

COLUMNS = frozenset({"image", "images", "video", "videos", "audio", "audios"})
_PLACE = re.compile(r"<\|?(?:image|video|audio)(?:_pad|_start)?\|?>|\[IMG\]", re.IGNORECASE)
_STORED = ("bytes", "path", "url", "array")
"""Keys of a file in a cell, as `datasets` writes it."""


def check_row(row: Mapping[str, Any], found: Iterable[Canonical]) -> None:
    """Raises ValueError, naming the column, if the row's text has a place for an image (or sound, or video) and a
    column holds it, or if a column holds the file itself or a list. A column that only names a file beside text that
    stands alone is one more column that is not used."""
    for name in sorted(row.keys() & COLUMNS):
        value = row[name]
        if value in (None, "", [], {}):
            continue
        stored = isinstance(value, list) or (isinstance(value, dict) and any(value.get(key) for key in _STORED))
        if stored or any(_PLACE.search(all_text(each)) for each in found):
            raise ValueError(f"the row has {name}: images, sound and video are not trained here")
