"""Keeps special tokens in a message's content as text.

The text of a template is split at special tokens wherever they occur, also in the content of a message. So the
templates write a content that has one with `BREAK` after the name's first character: no special token is found there,
and the tokenizer removes the mark before it encodes. Both marks start with U+FDD0, which is never a character (Unicode,
section 23.7); if a content has one all the same, it is written `KEPT`. Text that passes no template is not changed,
unless it has U+FDD0 before U+FDD1 or U+FDD2.
"""

from __future__ import annotations

MARK = "\ufdd0"
BREAK = "\ufdd0\ufdd2"
KEPT = "\ufdd0\ufdd1"
UNDONE = ((BREAK, ""), (KEPT, MARK))
"""Replacements by which tokenizers restore the content, in this order."""
