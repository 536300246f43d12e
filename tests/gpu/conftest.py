"""The device of the tests: a CUDA card, or, with `COCKPIT_GPU_TESTS=cpu`, a CPU for those that can run on one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.conftest import USER_HOME
from tests.training.conftest import prepared, tiny  # noqa: F401 - fixtures


@pytest.fixture
def device() -> str:
    """`cuda`, or `cpu` in a rehearsal. Every test that takes it runs in a rehearsal too."""
    import torch

    from engine.models.devices import find_accelerator

    rehearsing = os.environ.get("COCKPIT_GPU_TESTS") == "cpu"
    kind = find_accelerator()
    assert kind == ("cpu" if rehearsing else "cuda"), f"torch {torch.__version__} computes on {kind}"
    return kind


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls a function while runs of this process find no accelerator."""
    from engine.models import devices

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(devices, "find_accelerator", lambda: "cpu")
            return function(*arguments)

    return call


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded model's folder; where it cannot be had, as without a network, its tests are skipped."""
    from engine.models.catalogue import pull

    try:
        return pull("smollm2-135m-instruct", USER_HOME.create(), lambda *_: None)
    except (ProblemError, OSError) as error:
        pytest.skip(f"the embedded model is not here: {error}")


@pytest.fixture(scope="session")
def long_rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """128 rows of 200 tokens, so that the activations of a micro-batch are most of what a run holds."""
    import random

    from datasets import Dataset

    from tests.training.harness import WORDS, prepare

    folder = tmp_path_factory.mktemp("long")
    found = prepare(folder, tiny)
    numbers = random.Random(3)
    rows = [[numbers.randrange(4, 4 + WORDS) for _ in range(200)] for _ in range(128)]
    Dataset.from_list([{"input_ids": row, "labels": row} for row in rows]).save_to_disk(str(folder / "rows"))
    return found | {"train": str(folder / "rows"), "rows": len(rows), "validation": None}


def find_verdicts(home: Home) -> dict[str, dict[str, Any]]:
    """The verdicts of trials that are kept in this home, by name."""
    read = [json.loads(file.read_bytes()) for file in (home.root / "trials").glob("*/*.json")]
    return {each["name"]: each for each in read}
