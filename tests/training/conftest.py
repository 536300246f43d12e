from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from tests.training import preferences
from tests.training.harness import Supervised, make_model, prepare

REPLY = json.dumps([dict.fromkeys(("subject", "subject_type", "predicate", "object", "object_type"), "w7")])
"""A reply of the task `triples`, in words of the tiny model."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def prepared(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """27 rows: with a global batch of 4, six full ones and one of three rows."""
    return prepare(tmp_path_factory.mktemp("prepared"), tiny)


@pytest.fixture(scope="session")
def asked(prepared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The prepared set with held-out conversations to generate replies for."""
    path = tmp_path_factory.mktemp("asked") / "validation.jsonl"
    chat = {"messages": [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": REPLY}]}
    path.write_text((json.dumps(chat) + "\n") * 3)
    return prepared | {"validation_rows": str(path)}


@pytest.fixture
def start_run(bare_home: Home, prepared: dict[str, Any]) -> Iterator[Callable[..., Supervised]]:
    """Makes runs of the tiny model: `start_run(name, "a.b=c", …)`."""
    made: list[Supervised] = []

    def make(name: str, *changes: str, prepared: dict[str, Any] = prepared, **how: Any) -> Supervised:
        made.append(Supervised.create(bare_home, name, prepared, *changes, **how))
        return made[-1]

    yield make
    for run in made:
        run.close()


@pytest.fixture(scope="session")
def sets(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Method -> prepared.json."""
    scorer = preferences.make_scorer(tiny, tmp_path_factory.mktemp("scorer"))
    return {
        method: preferences.prepare(tmp_path_factory.mktemp(method), scorer if method == "reward" else tiny, kind)
        for method, kind in preferences.KINDS.items()
    }
