"""Tasks whose replies are checked and scored. One row per task: name -> its module, which defines `TASK`.

`task.py` says what a task is made of, and loads one by name.
"""

TASKS = {
    "triples": "engine.tasks.triples",
    "thought_graph": "engine.tasks.thought_graph",
}
