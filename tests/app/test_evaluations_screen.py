"""The evaluations of a run on the screen: a real engine, the real worker, a run that was really trained."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from cockpit.screens.evaluations import EvaluationsScreen
from cockpit.screens.measuring import ask_settings
from cockpit.state.evaluation_results import (
    best_values,
    common_prefix_length,
    compare_evaluations,
    metric_names,
    parse_settings,
)
from cockpit.widgets.prompt import Prompt
from engine.protocol.home import Home, RunDirectory
from tests.app.screen import HIGH, LOW, RealEngine, assert_fits, run_app, screen_text, until
from tests.app.services import FakeServices
from tests.conftest import end_processes_of
from tests.scripted.bench import Engine

Trained = tuple[Home, RunDirectory]


def evaluation(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "a",
        "directory": "/x",
        "origin": "training",
        "step": 25,
        "task": "triples",
        "data": "data.validation",
        "sha256": "1",
        "rows": 8,
        "replies": 8,
        "state": "done",
        "metrics": {"loss": 1.0, "triples_f1": 0.5, "reply_tokens": 9.0, "triples_f1.born_in": 0.5},
        "passed": None,
        "thresholds": [],
        "notes": [],
        "directions": {"loss": -1, "triples_f1": 1, "reply_tokens": 0, "triples_f1.born_in": 1},
    }
    return fields | changes


def test_the_best_is_of_those_on_the_same_rows() -> None:
    listed = [
        evaluation(),
        evaluation(metrics={"loss": 0.9, "triples_f1": 0.5, "reply_tokens": 1.0}),
        evaluation(metrics={"loss": 0.1, "triples_f1": 1.0, "reply_tokens": 1.0}, sha256="2"),
    ]
    assert metric_names(listed) == ["loss", "triples_f1", "reply_tokens"]
    assert best_values(listed) == {(1, "loss")}, (
        "alone on its rows, or equal, is no best; and length is a matter of taste"
    )


def test_a_comparison_says_what_is_noise() -> None:
    def each(low: float, high: float, better: int) -> dict[str, Any]:
        return {
            "first": 0.5,
            "second": 0.6,
            "difference": 0.1,
            "low": low,
            "high": high,
            "better": better,
            "beyond_noise": low > 0,
        }

    result = {
        "compared_rows": 32,
        "resamples": 1000,
        "differences": {"rouge_l": each(0.02, 0.2, 1), "bleu": each(-0.1, 0.3, 0), "reply_tokens": each(0.01, 0.2, 0)},
    }
    lines = compare_evaluations(result, "25 train", "50 train", 120).plain.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["better", "noise", "differs"]
    assert "+0.1" in lines[1] and "0.02 … 0.2" in lines[1]
    assert "32 rows" in lines[-1]


def test_what_is_measured_is_said_in_words() -> None:
    assert parse_settings('samples=4 data="my rows.jsonl" constrained') == {
        "samples": 4,
        "data": "my rows.jsonl",
        "constrained": True,
    }
    for text, words in (
        ("sample=4", "NAME=VALUE"),
        ("samples=few", "must be a number"),
        ('data="', "cannot parse this"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_settings(text)


def test_what_a_task_writes_around_each_question_is_left_out_of_a_list() -> None:
    assert common_prefix_length(["Extract the triples: Ada is.", "Extract the triples: Adam was."]) == len(
        "Extract the triples: "
    )
    assert (
        common_prefix_length(["one"])
        == common_prefix_length(["one", "two"])
        == common_prefix_length(["same", "same"])
        == 0
    )


@asynccontextmanager
async def on_screen(trained: Trained, size: tuple[int, int]) -> AsyncIterator[Pilot[None]]:
    home, run = trained
    async with run_app(RealEngine, size, home) as pilot:
        pilot.app.push_screen(EvaluationsScreen(run.id))
        await until(
            pilot, lambda: isinstance(pilot.app.screen, EvaluationsScreen) and pilot.app.screen.view == "list", 30
        )
        await pilot.pause(0.2)
        yield pilot


def assert_wide(pilot: Pilot[None]) -> None:
    """Every row has the screen's width, where a panel scrolls and its content may be longer than the screen."""
    strips = pilot.app.screen._compositor.render_strips()
    assert {sum(segment.cell_length for segment in strip) for strip in strips} == {pilot.app.size.width}


def assert_fills(pilot: Pilot[None]) -> None:
    """As `assert_wide`, with rows and reply side by side."""
    assert_wide(pilot)
    assert pilot.app.screen.query_one("#rows").region.right <= pilot.app.screen.query_one("#reply").region.x


@pytest.fixture
def engine_of(trained: Trained):
    engine = Engine(trained[0], "engine.workers", warm=True)
    yield trained
    engine.close()
    end_processes_of(trained[0])


@pytest.mark.slow
@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_steps_replies_and_a_comparison(engine_of: Trained, size: tuple[int, int]) -> None:
    async with on_screen(engine_of, size) as pilot:
        assert_wide(pilot)
        text = screen_text(pilot)
        listing = pilot.app.screen.query_one("#list", DataTable)
        assert listing.row_count >= 2 and "train" in text and "★" in text
        assert "✓ loss is" in text and "thought_graph" in text
        await pilot.press("enter")
        await until(pilot, lambda: "reference" in screen_text(pilot), 10)
        assert_fills(pilot)
        text = screen_text(pilot)
        assert "prompt" in text and "worst schema_validity first" in text and "reply" in text
        await pilot.press("t")
        await until(pilot, lambda: "worst required_keys first" in screen_text(pilot))
        await pilot.press("f")
        await until(pilot, lambda: "·  passed  ·" in screen_text(pilot))
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen.view == "list")
        # Other tests measure the same run on other rows; two evaluations of its own are on the same.
        first, second, *_ = (
            row for row, each in enumerate(pilot.app.screen.evaluations) if each["origin"] == "training"
        )
        listing.move_cursor(row=first)
        await pilot.press("o")
        assert "o on another one compares" in screen_text(pilot) or size == LOW
        listing.move_cursor(row=second)
        await pilot.press("o")
        await until(pilot, lambda: pilot.app.screen.view == "compared", 20)
        assert "95 % interval" in screen_text(pilot) and "json_validity" in screen_text(pilot)
        await pilot.press("escape", "escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, EvaluationsScreen))


@pytest.mark.slow
async def test_a_checkpoint_is_measured_from_the_screen(engine_of: Trained) -> None:
    _, run = engine_of
    async with on_screen(engine_of, HIGH) as pilot:
        before = pilot.app.screen.query_one("#list", DataTable).row_count
        await pilot.press("n")
        await until(pilot, lambda: "Measure which checkpoint" in screen_text(pilot), 10)
        await pilot.press("enter")
        await until(pilot, lambda: "samples  32 · of these" in screen_text(pilot))
        await pilot.press(*"samples=2", "enter")
        await until(pilot, lambda: "samples  2 · of these" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen.query_one("#progress", Static).has_class("-shown"))
        await until(pilot, lambda: pilot.app.screen.query_one("#list", DataTable).row_count == before + 1, 90)
        await pilot.pause(0.2)
        assert " eval " in screen_text(pilot)
        made = [json.loads(path.read_text()) for path in run.evaluations.glob("step-*/evaluation.json")]
        assert [each["replies"] for each in made if each["identity"].get("samples") == 2] == [2]
        assert not pilot.app.screen.query_one("#progress", Static).has_class("-shown")


async def test_a_measurement_is_set_up_from_a_list() -> None:
    async with run_app(FakeServices(), LOW) as pilot:

        async def ask() -> list[Any]:
            return [await ask_settings(pilot.app, "run@50")]

        asking = pilot.app.run_worker(ask())
        await until(pilot, lambda: "samples  32 · of these" in screen_text(pilot))
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, Prompt))
        await pilot.press("backspace", "backspace", *"two", "enter")
        await until(pilot, lambda: "samples must be a number" in screen_text(pilot))
        await pilot.press("backspace", "backspace", "backspace", "4", "enter")
        await until(pilot, lambda: "samples  4 · of these" in screen_text(pilot))
        await pilot.press(*"constrained", "enter")
        await until(pilot, lambda: "constrained  true · whether" in screen_text(pilot))
        await pilot.press(*"data=my.jsonl", "enter")
        await until(pilot, lambda: "data  my.jsonl · a file" in screen_text(pilot))
        await pilot.press(*"nonsense=1", "enter")
        await until(pilot, lambda: "nonsense=1: write NAME=VALUE" in screen_text(pilot))
        await pilot.press("enter")
        assert await asking.wait() == [{"samples": 4, "constrained": True, "data": "my.jsonl"}]


@pytest.mark.slow
async def test_a_run_without_evaluations_says_what_to_do(bare_home: Home, tmp_path: Path) -> None:
    folder = bare_home.run("empty-1").path
    folder.mkdir(parents=True)
    async with run_app(RealEngine, LOW, bare_home) as pilot:
        pilot.app.push_screen(EvaluationsScreen("empty-1"))
        await until(pilot, lambda: "no evaluations yet" in screen_text(pilot), 30)
        assert_fits(pilot)
        await pilot.press("n")
        await until(pilot, lambda: "no checkpoint yet" in screen_text(pilot), 10)
