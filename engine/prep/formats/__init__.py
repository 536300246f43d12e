"""Formats of rows. Each has an entry in `FORMATS`; its module has

    matches(row) -> bool        whether a row looks like this format
    convert(row) -> Canonical   or a list of them, for a format that expands; raises ValueError for a bad row
    revert(canonical) -> row    the inverse; raises ValueError naming what the format cannot represent
    COLUMNS                     the columns that have a meaning in this format

and optionally

    QUESTIONS                   the columns that may hold the user's turn, in order of preference
    ANSWERS, LABELS             likewise for the reply and for the judgement
    KIND                        what the rows are, if not conversations: `text`, `pairs` or `judged`
    EXPANDS                     True if a row becomes several, each with a question of the format's own

`canonical` defines canonical rows. Detection chooses the format that most rows match; among equals the first in this
order wins, so a format with more required columns comes earlier.
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
