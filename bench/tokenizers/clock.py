"""Wall and CPU time of a piece of work, its processes included."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


@contextmanager
def clock() -> Iterator[dict[str, float]]:
    """`seconds` and `cpu_seconds` of the block are in the dictionary when it ends. Processes count once they have been
    waited for."""
    told: dict[str, float] = {}
    wall, cpu = time.perf_counter(), _cpu()
    yield told
    told["seconds"], told["cpu_seconds"] = time.perf_counter() - wall, _cpu() - cpu
