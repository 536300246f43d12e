"""Metrics of replies. One row per metric: name -> its module."""

METRICS = {
    "exact_match": "engine.evaluation.metrics.exact_match",
    "rouge": "engine.evaluation.metrics.rouge",
    "bleu": "engine.evaluation.metrics.bleu",
    "length": "engine.evaluation.metrics.length",
    "repetition": "engine.evaluation.metrics.repetition",
    "stopping": "engine.evaluation.metrics.stopping",
    "latency": "engine.evaluation.metrics.latency",
}
