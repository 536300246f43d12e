"""With `training.rehearsal: auto` the longest batch is not tried where it certainly fits; everything else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.models import accelerator
from engine.options.training import TrainingOptions
from engine.protocol.journal import Checkpoint, Memory, Warn
from engine.training import certain_fit, compiling, memory_report, preflight
from engine.training.log_lines import format_line
from engine.training.loop import TrainingLoop
from tests.training.here import Here

GB = 10**9
AUTO = ("training.rehearsal=auto", "training.max_steps=4", "checkpoint.every_steps=2", "evaluation.every_steps=2")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the rehearsal has done."""
    done: list[str] = []

    def noting(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def note(*arguments: Any, **more: Any) -> None:
            done.append(name)
            real(*arguments, **more)

        return note

    for name in ("_step", "_evaluate", "_save"):
        monkeypatch.setattr(preflight, name, noting(name, getattr(preflight, name)))
    return done


def test_a_small_run_tries_evaluation_and_checkpoint_alone(tmp_path: Path, prepared: Any, tried: list[str]) -> None:
    run = Here(tmp_path, "small", prepared, *AUTO)
    run.train()
    assert tried == ["_evaluate", "_save"]
    told = {entry.source: entry for entry in run.entries(Memory)}
    assert list(told) == [certain_fit.SOURCE, memory_report.ACTUAL]
    estimated = told[certain_fit.SOURCE]
    assert estimated.code == certain_fit.CODE
    assert told[memory_report.ACTUAL].host_bytes <= estimated.host_bytes <= estimated.room_bytes / 3
    assert "so the longest batch is not tried first" in format_line(estimated)
    assert not [entry for entry in run.entries(Warn) if entry.code.startswith("memory.")]

    tried.clear()
    rehearsed = Here(tmp_path, "rehearsed", prepared, *AUTO, "training.rehearsal=true")
    rehearsed.train()
    assert tried == ["_step", "_evaluate", "_save"]
    for name in ("train/loss", "train/grad_norm"):
        assert run.series(name) == rehearsed.series(name)

    tried.clear()
    run.train("training.max_steps=5", "training.rehearsal=auto")
    assert tried == [] and run.entries(Checkpoint)[-1].step == 5


def test_a_run_that_takes_more_of_the_memory_tries_it(
    tmp_path: Path, prepared: Any, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certain_fit, "_read_room", lambda: 2 * (memory_report.read_resident() or 0))
    run = Here(tmp_path, "large", prepared, *AUTO)
    run.train()
    assert tried == ["_step", "_evaluate", "_save"]
    assert [entry.source for entry in run.entries(Memory)] == [memory_report.REHEARSED, memory_report.ACTUAL]


class Model:
    """A hundred tokens, and no layers."""

    def __init__(self, **config: Any) -> None:
        self.embeddings = torch.nn.Embedding(100, 8)
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
        found = SimpleNamespace(**(sizes | {"vocab_size": 100} | config))
        self.config = SimpleNamespace(get_text_config=lambda: found)

    def get_input_embeddings(self) -> Any:
        return self.embeddings

    def parameters(self) -> Iterator[Any]:
        yield from self.embeddings.parameters()


def make_loop(kind: str = "cpu", forecast: dict[str, Any] | None = None, **config: Any) -> Any:
    training = TrainingOptions()
    job = SimpleNamespace(
        device=SimpleNamespace(kind=kind),
        submitted=SimpleNamespace(training=training),
        memory={memory_report.FORECAST: forecast} if forecast else {},
        grows=False,
        has_tried_paths=False,
        attempt=1,
        reporter=SimpleNamespace(write=lambda entry: None),
    )
    return SimpleNamespace(
        job=job,
        profile=SimpleNamespace(training=training, method=SimpleNamespace(rows="tokens")),
        method=SimpleNamespace(units=lambda batch: 3.0),
        model=Model(**config),
        ranks=SimpleNamespace(world=1),
        batches=SimpleNamespace(lengths=[4]),
        max_steps=10,
    )


def is_certain(loop: TrainingLoop, ids: list[int]) -> bool:
    return certain_fit.is_certain(loop, {"input_ids": torch.tensor([ids])})


IDS = [5, 99, 0]


def test_a_pass_that_may_fail_for_another_reason_is_tried() -> None:
    assert is_certain(make_loop(), IDS)
    assert not is_certain(make_loop(), [*IDS, 100]), "a token that the model lacks"
    assert not is_certain(make_loop(), [])
    for part, name, value in (
        ("job", "grows", True),
        ("job", "has_tried_paths", True),
        ("ranks", "world", 2),
        ("method", "units", lambda batch: 0.0),
    ):
        loop = make_loop()
        setattr(getattr(loop, part), name, value)
        assert not is_certain(loop, IDS), name
    loop = make_loop()
    loop.job.submitted.training = TrainingOptions(micro_batch=loop.profile.training.rows * 2)
    assert not is_certain(loop, IDS), "it ran out of memory before"
    loop = make_loop()
    loop.profile.training = loop.job.submitted.training = TrainingOptions(compile=True)
    assert not is_certain(loop, IDS)
    loop.profile.training = loop.job.submitted.training = TrainingOptions(rehearsal=True)
    assert not is_certain(loop, IDS)


@pytest.mark.parametrize(
    "config", [{"num_experts": 8}, {"layer_types": ["full_attention", "mamba"]}, {"intermediate_size": None}]
)
def test_a_model_that_the_bound_does_not_know_is_tried(config: dict[str, Any]) -> None:
    assert not is_certain(make_loop(**config), IDS)


@pytest.mark.parametrize(
    ("kind", "forecast", "certain"),
    [
        ("cuda", {"device_bytes": 20 * GB, "error_percent": 10.0, "rows_measured": True}, True),
        ("cuda", {"device_bytes": 25 * GB, "error_percent": 10.0, "rows_measured": True}, False),
        ("cuda", {"device_bytes": 20 * GB, "rows_measured": True}, False),
        ("cuda", {"device_bytes": 1 * GB, "error_percent": 10.0, "rows_measured": False}, False),
        ("cuda", None, False),
        ("cpu", {"host_bytes": 20 * GB, "error_percent": 10.0, "rows_measured": True}, True),
        ("cpu", {"host_bytes": 25 * GB, "error_percent": 10.0, "rows_measured": True}, False),
    ],
)
def test_a_forecast_decides_with_its_error(
    kind: str, forecast: dict[str, Any] | None, certain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "read_room", lambda: 75 * GB)
    monkeypatch.setattr(certain_fit, "_read_room", lambda: 75 * GB)
    monkeypatch.setattr(compiling, "is_enabled", lambda *_: False)
    assert is_certain(make_loop(kind, forecast), IDS) == certain
