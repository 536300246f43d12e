"""Shapes of rows. One row a shape: its module has `matches(row) -> bool` and `convert(row)`.

`convert` gives the canonical form, `{"messages": [{"role", "content"}, …]}` or `{"text": …}`, and raises ValueError, with the
reason, for a row that does not hold. Detection takes the first shape, in this order, that the rows match.
"""

FORMATS = {
    "messages": "engine.prep.formats.messages",
    "sharegpt": "engine.prep.formats.sharegpt",
    "alpaca": "engine.prep.formats.alpaca",
    "prompt_completion": "engine.prep.formats.prompt_completion",
    "context_target": "engine.prep.formats.context_target",
    "text": "engine.prep.formats.text",
}
