"""Formats of rows. One row a format; its module has

    matches(row) -> bool              does a row look like it
    convert(row) -> Canonical         or a list of them, for a format that expands; raises ValueError, with the reason, for a bad row
    revert(canonical) -> row          the way back; raises ValueError naming what the format cannot hold
    QUESTIONS                         where there is one: the columns, by preference, that the user's turn is made of

`canonical.py` says what a canonical row is. Detection takes the format that most rows match, of several the first in this order: the
more a format asks for, the earlier it stands.
"""

FORMATS = {
    "thought_graph": "engine.prep.formats.thought_graph",
    "preference": "engine.prep.formats.preference",
    "kto": "engine.prep.formats.kto",
    "messages": "engine.prep.formats.messages",
    "sharegpt": "engine.prep.formats.sharegpt",
    "alpaca": "engine.prep.formats.alpaca",
    "prompt_completion": "engine.prep.formats.prompt_completion",
    "context_target": "engine.prep.formats.context_target",
    "content_summary": "engine.prep.formats.content_summary",
    "text": "engine.prep.formats.text",
}
