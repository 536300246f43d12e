"""The data screen: empty, and on real rows with the real data worker; and how rows look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cockpit.content import Content
from cockpit.screens.data import DataScreen, is_profile
from cockpit.widgets import row_view
from engine.options.data import ExpandOptions, SourceOptions
from engine.prep import read_rows
from engine.prep.expand.expand import expand
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from tests.app.fake import FakeEngine
from tests.app.screen import HIGH, LOW, RealEngine, assert_fits, run_app, screen_text, until
from tests.app.services import FakeServices
from tests.prep.service import LoopbackService
from tests.scripted.bench import Engine

ROW = {"messages": [{"role": "user", "content": "上海在哪里？[b]"}, {"role": "assistant", "content": "长江入海口。"}]}
PROFILE = "name: wide\nmodel: {base: smollm2-135m-instruct}\ndata: {train: [{source: rows.jsonl}]}\n"


@pytest.fixture
def working(home: Home, request: pytest.FixtureRequest) -> Iterator[Home]:
    """An engine with the real workers, and a profile of its own. With the parameter `cold` nothing is forked."""
    folder = home.root / "profiles"
    folder.mkdir()
    (folder / "wide.yaml").write_text(PROFILE, encoding="utf-8")
    lines = [json.dumps(ROW, ensure_ascii=False)] * 3 + ["{broken"]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    cold = getattr(request, "param", "") == "cold"
    engine = Engine(home, "engine.workers", warm=not cold, cold=cold)
    yield home
    engine.close()


@pytest.fixture
def expanded(tmp_path: Path) -> Path:
    """A folder in which six rows were made."""
    seeds = SourceOptions(source="triples/train.jsonl")
    with LoopbackService() as service:
        options = ExpandOptions(base_url=service.url, samples=6)
        expand(read_rows.locate(seeds, Path.cwd()), seeds, options, tmp_path / "more", lambda *_: None)
    return tmp_path / "more"


def test_trained_tokens_differ_by_more_than_colour() -> None:
    pieces = [{"text": "a\n", "id": 1, "trained": False}, {"text": "", "id": 2, "trained": True}]
    content = row_view.tokens(pieces)
    assert content.plain == "a↵\n◌"
    assert ["underline" in str(span.style) for span in content.spans] == [False, True]


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_without_a_profile_it_says_what_to_do(size: tuple[int, int]) -> None:
    async with run_app(FakeEngine(), size, first="data") as pilot:
        assert "No data open" in screen_text(pilot) and "o picks a profile" in screen_text(pilot)
        assert_fits(pilot)


class Forgetful(FakeServices):
    """Its worker can be killed: the next one knows of no data."""

    killed = False

    async def request(self, operation: str, message: Any = None, timeout: float = 30.0) -> Any:
        if operation == "service_ask":
            self.killed = self.killed and message.question != "open"
            if self.killed:
                raise ProblemError(Problem(code="service.nothing_open", title="No profile is open"))
        return await super().request(operation, message, timeout)


async def test_after_its_worker_was_killed_the_same_row_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    engine = Forgetful()
    async with run_app(engine, HIGH, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        screen.open(tmp_path / "x.jsonl")
        await until(pilot, lambda: "row 1 of 5" in screen_text(pilot) and "train" in screen.stats)
        await pilot.press("v", "right")
        await until(pilot, lambda: "validation · row 2 of 2" in screen_text(pilot))
        engine.killed = True
        await pilot.press("t")
        await until(pilot, lambda: "the data are read again" in screen_text(pilot))
        await until(pilot, lambda: "validation · row 2 of 2" in screen_text(pilot) and screen.view == "tokens")
        assert "No profile is open" not in screen_text(pilot)


@pytest.mark.slow
@pytest.mark.parametrize("working", ["cold"], indirect=True)
async def test_rows_tokens_counts_and_rejects(working: Home) -> None:
    async with run_app(RealEngine, HIGH, home=working, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        await pilot.press("o")
        await until(pilot, lambda: "Open the data of a profile" in screen_text(pilot))
        await pilot.press(*"wide", "enter")
        await until(pilot, lambda: "train" in screen.stats, 60)
        await until(pilot, lambda: "row 1 of 3" in screen_text(pilot))
        text = screen_text(pilot)
        assert "▌user" in text and "[b]" in text and "1 rejected" in text and "rows.jsonl:4" in text
        assert_fits(pilot)
        await pilot.press("l", "t")
        await until(pilot, lambda: "row 2 of 3" in screen_text(pilot) and " trained" in screen_text(pilot), 10)
        assert "<|im_end|>" in screen_text(pilot) and "context, not trained" in screen_text(pilot)
        numbers = screen.stats["train"]
        assert numbers["rows"] == 3 and 0 < numbers["trained_tokens"] < numbers["tokens"]
        await pilot.press("slash", *"99", "enter")
        await until(pilot, lambda: "row 3 of 3" in screen_text(pilot))


RICH = """\
name: rich
model: {base: smollm2-135m-instruct}
data: {train: [{source: many.jsonl}], dedup: {near: false}, max_length: 64, max_rejected: 0.2}
training: {micro_batch: 2}
"""


def stages(screen: DataScreen) -> dict[str, tuple[int, int]]:
    """Rows in and out of those that are done."""
    return {stage["name"]: (stage["in"], stage["out"]) for stage in screen.summary.get("done", ())}


async def test_an_answer_to_a_screen_that_is_being_removed_is_dropped() -> None:
    async with run_app(FakeEngine(), first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        await screen.query("*").remove()
        screen.show_content(Content("too late"))
        screen.show_status("too late")


@pytest.mark.slow
@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_finding_batches_rejects_and_stages(size: tuple[int, int], working: Home) -> None:
    folder = working.root / "profiles"
    (folder / "rich.yaml").write_text(RICH, encoding="utf-8")
    many = [
        ROW,
        *({"messages": [{"role": "user", "content": f"Question {n}"}, ROW["messages"][1]]} for n in range(7)),
        ROW,
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in many]
    (folder / "many.jsonl").write_text("\n".join([*lines, "{broken", ""]), encoding="utf-8")
    async with run_app(RealEngine, size, home=working, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        screen.open(folder / "rich.yaml")
        await until(pilot, lambda: "train" in screen.stats and "row 1 of 9" in screen_text(pilot), 60)
        await pilot.press("slash", *"question", "enter")
        await until(pilot, lambda: "row 1 of 7" in screen_text(pilot) and "found by question" in screen_text(pilot))
        await pilot.press("end")
        await until(pilot, lambda: "row 7 of 7" in screen_text(pilot) and "Question 6" in screen_text(pilot))
        await pilot.press("t", "t")
        await until(pilot, lambda: "byte for byte" in screen_text(pilot) and "<|im_start|>" in screen_text(pilot))
        await pilot.press("t")
        await until(pilot, lambda: '{"messages"' in screen_text(pilot))
        await pilot.press("slash", *"nowhere", "enter")
        await until(pilot, lambda: "No row of train matches" in screen_text(pilot))
        await pilot.press("v")
        await until(pilot, lambda: "not JSON" in screen_text(pilot) and "many.jsonl:10" in screen_text(pilot))
        assert_fits(pilot)
        await pilot.press("r")
        await until(
            pilot,
            lambda: (
                "Run the stages up to" in screen_text(pilot)
                and "rejects equal and nearly equal rows" in screen_text(pilot)
            ),
        )
        await pilot.press(*"dedup", "enter")
        await until(pilot, lambda: "rejected after dedup · row 1 of 2" in screen_text(pilot), 60)
        assert "validate: not JSON" in screen_text(pilot) and stages(screen) == {"validate": (10, 9), "dedup": (9, 8)}
        await until(pilot, lambda: not screen.request, 20)
        await pilot.press("end")
        await until(
            pilot,
            lambda: (
                "dedup: exact duplicate of many.jsonl:1" in screen_text(pilot) and "many.jsonl:9" in screen_text(pilot)
            ),
        )
        await pilot.press("v")
        await until(pilot, lambda: "train after dedup · row 1 of 8" in screen_text(pilot))
        assert_fits(pilot)
        await pilot.press("r", "enter")
        await until(pilot, lambda: "tokenize" in stages(screen), 60)
        assert stages(screen) == {"validate": (10, 9), "dedup": (9, 8), "tokenize": (8, 8)}
        await until(pilot, lambda: not screen.request, 20)
        await pilot.press("b")
        await until(pilot, lambda: "batch of step 1 of 4" in screen_text(pilot) and "▌row 2" in screen_text(pilot), 20)
        await pilot.press("right")
        await until(pilot, lambda: "batch of step 2 of 4" in screen_text(pilot))
        assert_fits(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: screen.view == "conversation")
        (folder / "own.csv").write_text("question,answer\nWhere?,There.\n", encoding="utf-8")
        screen.open(folder / "own.csv")
        await until(pilot, lambda: "row 1 of 1" in screen_text(pilot) and "There." in screen_text(pilot), 20)
        screen.open(folder / "nowhere.csv")
        await until(pilot, lambda: "cannot read" in screen_text(pilot))


def test_a_histogram_is_drawn_to_its_longest_bar() -> None:
    lines = [line.plain for line in row_view.histogram([(0, 1), (100, 24 * 8), (200, 0)])]
    assert lines == ["     0 ▏ 1", f"   100 {'█' * 24} 192", "   200  0"]


def test_pairs_tools_and_columns_are_told() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "find"}}]}
    row = {
        "prompt": [ROW["messages"][0]],
        "chosen": [turn],
        "rejected": [ROW["messages"][1]],
        "columns": {"topic": "rivers"},
    }
    text = row_view.conversation(row).plain
    assert text.index("── prompt ──") < text.index("── chosen ──") < text.index('"find"') < text.index("── rejected ──")
    assert text.endswith("topic rivers")


def test_a_json_profile_is_told_from_json_rows() -> None:
    assert is_profile('{"data": {"train": []}}')
    assert not any(map(is_profile, ('[{"text": "a"}]', '{"data": "a row"}', '{"text": 1}', "{broken", '{"data": 3}')))


@pytest.mark.slow
async def test_expanded_rows_are_accepted_and_dropped(working: Home, expanded: Path) -> None:
    out, made = expanded, (expanded / "made.jsonl").read_text().splitlines()
    async with run_app(RealEngine, HIGH, home=working, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        screen.open(out)
        await until(pilot, lambda: "expanded · row 1 of 6 · undecided" in screen_text(pilot), 60)
        text = screen_text(pilot)
        assert "Made from" in text and "task triples · request 1, item 1" in text and "seed 1 of 3" in text
        assert "6 undecided" in text and "x Drop" in text
        await pilot.press("a")
        await until(
            pilot, lambda: "row 2 of 6 · undecided" in screen_text(pilot) and "1 accepted" in screen_text(pilot)
        )
        await pilot.press("x")
        await until(pilot, lambda: "row 3 of 6 · undecided" in screen_text(pilot) and "1 dropped" in screen_text(pilot))
        await pilot.press("x")
        await until(pilot, lambda: "row 4 of 6 · undecided" in screen_text(pilot) and "2 dropped" in screen_text(pilot))
        await pilot.press("u")
        await until(pilot, lambda: "row 3 of 6 · undecided" in screen_text(pilot) and "1 dropped" in screen_text(pilot))
        assert (out / "rows.jsonl").read_text().splitlines() == [made[0], *made[2:]]
        await pilot.press("f")
        await until(
            pilot, lambda: "row 1 of 4 · undecided" in screen_text(pilot) and "is:undecided" in screen_text(pilot)
        )
        await pilot.press("f", "left")
        await until(pilot, lambda: "row 1 of 6 · accepted" in screen_text(pilot))
        await pilot.press("v")
        await until(pilot, lambda: "train · row 1 of 5" in screen_text(pilot) and "Expanded rows" in screen_text(pilot))
        assert "x Drop" not in screen_text(pilot)
        await until(pilot, lambda: not screen.request)
        await pilot.press("v", "end", "x")
        await until(pilot, lambda: "2 dropped" in screen_text(pilot))
        await pilot.press("v", "end")
        await until(pilot, lambda: "train · row 4 of 4" in screen_text(pilot))
        assert (out / "rows.jsonl").read_text().splitlines() == [made[0], *made[2:5]]
