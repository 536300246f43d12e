"""Metrics, of replies and of rows. One row per metric: name -> its module, which defines `METRIC`.

`metric.py` says what a metric is made of; `registry.py` answers what is asked about all of them. The order is that of
display. The metrics of tasks are in `engine.tasks`.
"""

METRICS = {
    "tokens": "engine.metrics.tokens",
    "preferences": "engine.metrics.preferences",
    "rewards": "engine.metrics.rewards",
    "rollouts": "engine.metrics.rollouts",
    "judge": "engine.metrics.judge_scores",
    "exact_match": "engine.metrics.exact_match",
    "rouge": "engine.metrics.rouge",
    "bleu": "engine.metrics.bleu",
    "length": "engine.metrics.length",
    "repetition": "engine.metrics.repetition",
    "stopping": "engine.metrics.stopping",
    "latency": "engine.metrics.latency",
    "drift": "engine.metrics.drift",
}
