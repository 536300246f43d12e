"""Forecasts of a base that is on a hub alone: only small files are fetched. The hub is one on the loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from engine.config.profile import parse
from engine.models import catalogue, hub_shape
from engine.prep.prepare import find_prepared
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.training.forecast import estimate
from engine.training.forecast.hosts import Host
from tests.hub import COMMIT, Hub
from tests.training.harness import PROFILE

GB = 10**9
CARD = Host("cuda", "a card", 1, 24 * GB, None)


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    shutil.copytree(tiny, tmp_path / "on-hub")
    (tmp_path / "on-hub" / "modeling_own.py").write_text("raise SystemExit")
    server = Hub(tmp_path / "on-hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_shape, "_asked", {})
    yield server
    server.close()


def forecast(home: Home, base: Any, *changes: str) -> dict[str, Any]:
    profile = parse(PROFILE.format(base=base), "test", Path("/"), changes, home, forecast=True)
    with ExitStack() as stack:
        return estimate.estimate(profile, CARD, estimate.gather(profile, home, stack))


def test_a_model_on_a_hub_is_forecast_from_small_files_alone(bare_home: Home, tiny: Path, hub: Hub) -> None:
    found, here = (forecast(bare_home, base) for base in ("org/name", tiny))
    assert found["device_bytes"] == here["device_bytes"] > 0
    weights, small = ((tiny / name).stat().st_size for name in ("model.safetensors", "config.json"))
    assert found["host_bytes"] == pytest.approx(here["host_bytes"], abs=10_000)  # a file's header counts
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path}
    assert {"config.json", "tokenizer.json"} <= fetched
    assert not {"model.safetensors", "modeling_own.py"} & fetched and small < hub.sent < weights
    [folder] = (bare_home.root / "forecasts" / "models" / "org--name").iterdir()
    assert folder.name == COMMIT and json.loads((folder / hub_shape.SIZES).read_bytes()) == {
        "model.safetensors": weights
    }


def test_what_was_fetched_is_kept_for_when_the_hub_is_out_of_reach(
    bare_home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = bare_home.root / "models-of-forecasts"
    folder = hub_shape.fetch("org/name", place)
    asked = len(hub.asked)
    assert hub_shape.fetch("org/name", place) == folder and len(hub.asked) == asked  # it was asked a moment ago
    hub_shape._asked.clear()
    assert hub_shape.fetch("org/name", place) == folder and len(hub.asked) == asked + 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_shape._asked.clear()
    assert hub_shape.fetch("org/name", place) == folder
    assert hub_shape.fetch("org/name", place, code=True) is None  # which was not fetched
    with pytest.raises(ProblemError) as refused:
        forecast(bare_home, "org/name")
    assert refused.value.problem.code == "model.not_pulled"
    assert find_prepared(parse(PROFILE.format(base="org/name"), "test", Path("/"), (), bare_home), bare_home) is None
    assert "cockpit model pull org/name" in refused.value.problem.hint


def test_a_gated_model_and_one_that_does_not_go_with_the_profile_are_refused(bare_home: Home, hub: Hub) -> None:
    config = hub.folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ProblemError) as refused:
        forecast(bare_home, "org/name")
    assert refused.value.problem.code == "profile.invalid" and "GPTQ" in refused.value.problem.cause
    hub.gated = True
    hub_shape._asked.clear()
    with pytest.raises(ProblemError) as refused:
        forecast(bare_home, "org/name")
    assert refused.value.problem.code == "model.gated"


def test_a_catalogue_model_that_is_not_pulled_is_forecast_too(
    bare_home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, entry = next(iter(catalogue.CATALOGUE.items()))
    monkeypatch.setitem(catalogue.CATALOGUE, name, replace(entry, hub="org/name"))
    assert forecast(bare_home, name)["device_bytes"] > 0
    assert not (bare_home.models / name).exists()
