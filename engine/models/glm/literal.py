"""Special tokens in what people write stay text.

A template's text is cut at special tokens wherever they stand, in a message's content too. So the templates write a
content that names one with `BREAK` behind the name's first character: no special token is found there, and the
tokenizer takes the mark out again before it encodes. Both marks begin with U+FDD0, which is never a character (Unicode,
section 23.7); one that stands in a content all the same is written `KEPT`. Text that passes no template is not changed
by this, unless it has U+FDD0 before U+FDD1 or U+FDD2.
"""

from __future__ import annotations

MARK = "\ufdd0"
BREAK = "\ufdd0\ufdd2"
KEPT = "\ufdd0\ufdd1"
UNDONE = ((BREAK, ""), (KEPT, MARK))
"""What tokenizers replace, in this order, to get the content back."""
