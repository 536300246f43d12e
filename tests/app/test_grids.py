"""Grids of runs: what they are made of, what they have come to, and their picture."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cockpit.profiles import grids
from cockpit.profiles.grid_results import list_rows
from cockpit.profiles.grids import Grid, Member, combine, parse_axis
from cockpit.screens.runs import RunsScreen
from cockpit.verbs.grid import check_outputs
from cockpit.widgets.grid_dialog import GridDialog
from cockpit.widgets.parallel import Axis, draw, place_metric, place_values
from engine.protocol.home import Home
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until

RATES, RANKS = ["1e-4", "3e-4", "1e-3"], ["8", "16"]


def test_axes_are_combined_and_commas_in_brackets_belong_to_a_value() -> None:
    assert parse_axis("training.learning_rate=1e-4, 3e-4") == ("training.learning_rate", ["1e-4", "3e-4"])
    assert parse_axis('adapter.targets=[q_proj,v_proj],all-linear,"a,b"')[1] == [
        "[q_proj,v_proj]",
        "all-linear",
        '"a,b"',
    ]
    made = combine({"a": RATES, "b": RANKS})
    assert [tuple(each.settings.values()) for each in made] == list(itertools.product(RATES, RANKS))
    for wrong in ("a", "a=", "a=1,,2", "a=1,1", "=1"):
        with pytest.raises(ValueError, match="--grid"):
            parse_axis(wrong)
    with pytest.raises(ValueError, match=r"1,000 runs"):
        combine({name: [str(number) for number in range(10)] for name in "abc"})


def make_grid(home: Home) -> tuple[Grid, list[Any]]:
    members = combine({"training.learning_rate": RATES, "adapter.rank": RANKS})
    runs: list[Any] = []
    for number, member in enumerate(members):
        member.run = f"mine-{number}"
        metrics = {} if number == 5 else {"eval/loss": 1.0 + abs(number - 2) / 10, "train/loss": 1.0}
        runs.append(demo_run(id=member.run, state="completed", metrics=metrics))
    axes = {"training.learning_rate": RATES, "adapter.rank": RANKS}
    grid = Grid("mine", "mine.yaml", axes, runs=members)
    grids.save(home, grid)
    return grid, runs


def test_a_grid_is_kept_and_its_best_run_comes_first(tmp_path: Path) -> None:
    home = Home(tmp_path).create()
    grid, runs = make_grid(home)
    assert grids.load(home, "mine") == grid == grids.load(home, "last") and grids.free_name(home, "mine") == "mine-2"
    (grids.folder(home) / "damaged.json").write_text("{")
    assert [each.name for each in grids.list_grids(home)] == ["mine"]
    rows = list_rows(grid, {run.id: run for run in runs[1:]})
    assert [row.run for row in rows] == ["mine-2", "mine-1", "mine-3", "mine-4", "mine-0", "mine-5"]
    assert rows[-2].state == "deleted" and rows[-1].value is None
    grid.rises = True
    assert list_rows(grid, {run.id: run for run in runs})[0].run == "mine-0"
    with pytest.raises(ValueError, match="known are mine"):
        grids.load(home, "other")


def test_the_picture_has_an_axis_for_each_setting_and_the_best_at_the_top() -> None:
    assert place_values(["1e-3", "1e-4"]) == {"1e-4": 0.0, "1e-3": 1.0} and place_values(["x"]) == {"x": 0.5}
    assert place_metric([2.0, None, 1.0], rises=False) == [0.0, None, 1.0]
    axes = [Axis("rate", [("low", 0.0), ("high", 1.0)]), Axis("loss", [("1.5", 1.0)])]
    for width, height in ((40, 10), (20, 4), (12, 2)):
        rows = draw(axes, [[0.0, 1.0], [1.0, 0.0], [0.5, None]], 1, width, height)
        assert len(rows) == height and {len(text) for text, _ in rows} == {width} == {len(roles) for _, roles in rows}
    text = [row for row, _ in draw(axes, [[0.0, 1.0]], -1, 40, 10)]
    assert text[0].startswith("rate") and "loss" in text[0] and "high" in text[1] and "1.5" in text[1]
    assert "low" in text[-1]


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_the_dialog_shows_the_runs_and_opens_one(size: tuple[int, int], tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    _, runs = make_grid(home)
    async with run_app(FakeEngine(*runs), size, home=home, first="runs") as pilot:  # type: ignore[arg-type]
        assert isinstance(pilot.app.screen, RunsScreen)
        await pilot.press("g")
        await until(pilot, lambda: isinstance(pilot.app.screen, GridDialog))
        await until(pilot, lambda: "★ 1e-3" in screen_text(pilot) or "★ 3e-4" in screen_text(pilot))
        text = screen_text(pilot)
        assert "learning_rate" in text and "eval/loss" in text and "┤" in text
        assert_fits(pilot)
        await pilot.press("j", "enter")
        await until(pilot, lambda: pilot.app.state.selected == "mine-1")  # type: ignore[attr-defined]


async def test_without_grids_it_says_how_to_queue_one(tmp_path: Path) -> None:
    async with run_app(FakeEngine(), home=Home(tmp_path / "home").create(), first="runs") as pilot:
        await pilot.press("g")
        await until(pilot, lambda: "No grids yet" in screen_text(pilot))


def test_files_that_are_no_grids_are_left_out_and_values_that_are_no_numbers_come_last(tmp_path: Path) -> None:
    home = Home(tmp_path).create()
    grid, runs = make_grid(home)
    whole = json.loads((grids.folder(home) / "mine.json").read_text())
    wrong: tuple[dict[str, Any], ...] = (
        {"created": "x"},
        {"runs": "ab"},
        {"runs": [{"settings": "ab", "run": ""}]},
        {"axes": 3},
        {"name": 3},
        {},
    )
    for at, change in enumerate(wrong):  # the last one is a copy: its name is that of another file
        (grids.folder(home) / f"wrong-{at}.json").write_text(json.dumps({**whole, "name": f"wrong-{at}", **change}))
    (grids.folder(home) / "wrong-5.json").write_text(json.dumps(whole))
    (grids.folder(home) / "list.json").write_text("[1]")
    (grids.folder(home) / "mine.json").write_text(json.dumps({**whole, "added": "by a newer version"}))
    assert grids.list_grids(home) == [grid]
    for number, value in ((2, math.nan), (1, math.inf), (3, -math.inf)):
        runs[number].metrics["eval/loss"] = value
    rows = list_rows(grid, {run.id: run for run in runs})
    assert [row.run for row in rows] == ["mine-0", "mine-4", "mine-1", "mine-2", "mine-3", "mine-5"]
    assert [row.value is None for row in rows] == [False, False, True, True, True, True]


@pytest.mark.parametrize(("section", "kind"), [("checkpoint", ""), ("export", "merged")])
def test_runs_of_a_grid_do_not_share_an_output(section: str, kind: str) -> None:
    def make(output: str | None, kind: str = kind) -> SimpleNamespace:
        sections = {"checkpoint": SimpleNamespace(output=None), "export": SimpleNamespace(output=None, kind="none")}
        chosen = (
            SimpleNamespace(output=output) if section == "checkpoint" else SimpleNamespace(output=output, kind=kind)
        )
        return SimpleNamespace(**{**sections, section: chosen})

    check_outputs([make("a"), make("b")])  # type: ignore[list-item]
    check_outputs([make(None), make(None)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=f"{section}.output is the same folder"):
        check_outputs([make("a"), make("a")])  # type: ignore[list-item]


def test_a_member_without_a_run_was_not_queued() -> None:
    (row,) = list_rows(Grid("g", "p", {"a": ["1"]}, runs=[Member({"a": "1"})]), {})
    assert (row.state, row.value) == ("not queued", None)
