"""New rows from an OpenAI-compatible service. One row a task; its module has

    PROMPTS                   language (`en`, `zh`) -> what the service is asked, with {seed} and {count}
    fits(seed) -> bool        can this seed row be shown for the task?
    shown(seed) -> Any        what the prompt shows of it, as JSON
    made(item, seed) -> row   a row in the format of the seeds from one item of an answer; raises ValueError with the reason
    key(row, form) -> str     the text by which two rows are duplicates

A service answers with a JSON list of items; an item that is a whole row, in the seeds' format or in another known one, will do too.
`rows` takes seeds of any format. When no task is named, it is the first, in this order, that most seeds fit.
"""

TASKS = {
    "thought_graph": "engine.prep.expand.thought_graph",
    "triples": "engine.prep.expand.triples",
    "rows": "engine.prep.expand.rows",
}
