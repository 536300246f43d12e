from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.protocol.home import Home
from tests.training.harness import Supervised


@pytest.fixture
def start_run(bare_home: Home) -> Iterator[Callable[..., Supervised]]:
    """Makes runs on what was prepared: `start_run(name, prepared, "a.b=c", …)`."""
    made: list[Supervised] = []

    def make(name: str, prepared: dict[str, Any], *changes: str) -> Supervised:
        made.append(Supervised.create(bare_home, name, prepared, *changes))
        return made[-1]

    yield make
    for run in made:
        run.close()
