"""The service behind the profile screen's forecast: it keeps what it has computed, and stops when nobody waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import forecasts
from engine.config.profile import load
from engine.protocol.messages import ProblemError
from engine.training.forecast import estimate
from engine.workers.fit import Fit
from engine.workers.service_loop import Cancelled
from tests.training.harness import PROFILE


@pytest.fixture
def arguments(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"w{n} w{n + 1}"}) + "\n" for n in range(20)))
    file = tmp_path / "own.yaml"
    file.write_text(PROFILE.format(base=tiny).replace("triples/train.jsonl", str(rows)))
    return {"profile": load(file).to_yaml(), "directory": str(tmp_path), "request": "1"}


def test_a_forecast_is_computed_once_and_given_up_when_cancelled(bare_home, arguments, monkeypatch):
    traced: list[Any] = []
    real = estimate.trace
    monkeypatch.setattr(estimate, "trace", lambda *given, **named: traced.append(1) or real(*given, **named))
    cancelled: set[str] = set()
    service = Fit(bare_home, cancelled)
    found = service.forecast(arguments)
    assert (
        found["verdict"] == "fits" and found["host_bytes"] > 0 and not found["rows_measured"] and "terms" not in found
    )
    assert forecasts.summarize(found).endswith("time unknown")
    assert len(traced) == 1 and service.forecast(arguments) == found and len(traced) == 1
    cancelled.add("2")
    other = arguments | {"request": "2", "profile": arguments["profile"].replace("seed: 42", "seed: 43")}
    assert other["profile"] != arguments["profile"]
    for question in (service.forecast, service.fit):
        with pytest.raises(Cancelled):
            question(other)
    assert len(traced) == 1
    with pytest.raises(ProblemError, match="not valid"):
        service.forecast(arguments | {"profile": "training: {micro_batch: none}"})


def test_the_ways_name_all_their_settings(bare_home, arguments):
    found = Fit(bare_home, set()).fit(arguments)
    assert found["cards"] == 1 and found["ways"][0]["settings"] == {} and found["ways"][0]["verdict"] == "fits"
