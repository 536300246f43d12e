"""A tiny model trained for real on the sample thought graphs, evaluated while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.protocol.home import Home, RunDirectory

CHANGES = (
    "data.train=[{source: samples/thought_graph.jsonl}]",
    "data.validation=[{source: samples/thought_graph.jsonl, max_rows: 4}]",
    "data.max_length=256",
    "training.max_steps=4",
    "checkpoint.every_steps=2",
    "evaluation.every_steps=2",
    "evaluation.task=thought_graph",
    "evaluation.samples=3",
    "evaluation.probes=['What is a question?']",
    "evaluation.thresholds=['loss < 100', 'json_validity >= 0']",
    "generation.max_new_tokens=8",
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, RunDirectory]]:
    """Its home and the finished run; one for all tests that look at it."""
    from engine.config.profile import parse
    from engine.prep.prepare import prepare
    from tests.training.harness import PROFILE, Supervised, make_model

    tiny = make_model(tmp_path_factory.mktemp("tiny"))
    home = Home(tmp_path_factory.mktemp("trained") / "home").create()
    profile = parse(PROFILE.format(base=tiny), "test", Path("/"), CHANGES, home)
    prepared = prepare(profile, home, lambda *_: None)
    run = Supervised.create(home, "graphs-1", prepared, *CHANGES)
    try:
        run.train()
        yield home, run.run
    finally:
        run.close()
