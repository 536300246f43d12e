"""Measuring replies. One row a task: name -> its module, which holds prompt, schema and scores."""

TASKS = {
    "triples": "engine.evaluation.triples",
}
