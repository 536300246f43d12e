"""Data expansion: new rows from an OpenAI-compatible service. A task names the module that makes its rows
(`Task.expansion`), which has

    PROMPTS                          language (`en`, `zh`) -> the prompt, with the placeholders {seed} and {count}
    fits(seed) -> bool               whether the task can use this seed row
    show(seed) -> Any                what the prompt shows of the seed, a JSON value
    build_row(item, seed) -> row     a row in the seed's format from an item of an answer; raises ValueError
    duplicate_key(row, form) -> str  the text by which rows are compared for duplicates

A service answers with a JSON list of items. An item may also be a whole row, in the seeds' format or in another known
one. The module `rows` accepts seeds of any format. Unless a task is named, the first one that fits most seeds is taken,
else `rows`.
"""
