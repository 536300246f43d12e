"""New rows from an OpenAI-compatible service. A task names the module that makes its rows (`Task.expansion`), which has

    PROMPTS                   language (`en`, `zh`) -> what the service is asked, with {seed} and {count}
    fits(seed) -> bool        can this seed row be shown for the task?
    shown(seed) -> Any        what the prompt shows of it, as JSON
    made(item, seed) -> row   a row in the shape of the seeds from one item of an answer; raises ValueError with the reason
    key(row, form) -> str     the text by which two rows are duplicates

A service answers with a JSON list of items; an item that is a whole row, in the seeds' shape or in another known one, will do too.
The module `rows` takes seeds of any shape. When no task is named, it is the first that most seeds fit, else `rows`.
"""
