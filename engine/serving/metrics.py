"""A server's metrics: for the app once a second, for Prometheus on request, for those who follow its requests."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.serving.jobs import Figures

PREFIX = "cockpit_serve"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
KEPT = 100
"""Recent requests that are kept."""


@dataclass(frozen=True)
class RequestRecord:
    """An answered request; `word` describes the outcome. Times are in seconds; `first` is until the first token, 0
    without one."""

    time: float
    path: str
    status: int
    word: str
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first: float = 0.0


class ServerMetrics:
    """Counts requests. `record` is for the event loop's thread, `snapshot` for one other."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self.requests: Counter[tuple[str, int]] = Counter()
        """(path, status) -> number of answers."""
        self.recent: deque[RequestRecord] = deque(maxlen=KEPT)
        self.total = 0
        self._before = (time.monotonic(), 0)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._first = self._histogram("first_token_seconds", "from a request to its first token")
        self._whole = self._histogram("request_seconds", "from a request to its end")

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, namespace=PREFIX, registry=self._registry, buckets=SECONDS)

    def record(self, request: RequestRecord) -> None:
        self.requests[request.path, request.status] += 1
        self.recent.append(request)
        self.total += 1
        if request.first:
            self._first.observe(request.first)
        if request.tokens:
            self._whole.observe(request.seconds)

    def snapshot(self) -> dict[str, Any]:
        """The figures for the app. `tokens_per_second` is over the time since the last call."""
        figures, moment = self._figures(), time.monotonic()
        answers = self.requests.copy()  # the loop's thread continues to count
        then, tokens = self._before
        self._before = (moment, figures.tokens)
        return {
            "running": figures.running,
            "queued": figures.waiting,
            "served": sum(count for (_, status), count in answers.items() if status < 400),
            "errors": sum(count for (_, status), count in answers.items() if status >= 400),
            "tokens": figures.tokens,
            "tokens_per_second": (figures.tokens - tokens) / max(moment - then, 1e-3),
        }

    def prometheus(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The metrics of Prometheus' registry, which calls this."""
        figures = self._figures()
        answers = CounterMetricFamily(f"{PREFIX}_requests", "answers by path and status", labels=("path", "status"))
        for (path, status), count in sorted(self.requests.items()):
            answers.add_metric((path, str(status)), count)
        replies = CounterMetricFamily(f"{PREFIX}_replies", "replies by how they ended", labels=("finish",))
        for finish, count in sorted(figures.ended.copy().items()):
            replies.add_metric((finish,), count)
        yield answers
        yield replies
        yield CounterMetricFamily(f"{PREFIX}_prompt_tokens", "tokens of prompts that were read", figures.prompt_tokens)
        yield CounterMetricFamily(f"{PREFIX}_generated_tokens", "tokens that were generated", figures.tokens)
        yield GaugeMetricFamily(f"{PREFIX}_running", "replies that are being made", figures.running)
        yield GaugeMetricFamily(f"{PREFIX}_waiting", "replies that wait for a place", figures.waiting)
        memory = psutil.Process().memory_info().rss
        yield GaugeMetricFamily(f"{PREFIX}_resident_bytes", "resident memory of the server", memory)
