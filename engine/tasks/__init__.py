"""Tasks whose replies are checked and scored. `TASKS` has a row for each task: name -> its module, which has

messages(text)                  the conversation that asks for it; training data, chat, probes and evaluation send these bytes
concerns(columns) -> bool       is a row with these other columns one of the task, and not one of another beside it?
parse(reply)                    the value of a reply, None where it does not fit
tally(reply, reference)         what one reply adds to the task's scores; raises ValueError for a reference that is no answer
metrics(sums)                   the scores, by name, of sums of tallies
score(replies, references)      both in one
SCHEMA                          the JSON schema of a reply
"""

TASKS = {
    "triples": "engine.tasks.triples",
    "thought_graph": "engine.tasks.thought_graph",
}

PARTS = {
    "triples": "engine.tasks.predicates",
}
