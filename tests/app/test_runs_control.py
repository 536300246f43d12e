"""The list of runs as mission control: filters, columns, choice, labels, preview, another attempt, fork, log."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from cockpit.connection.settings import Settings
from cockpit.state.log_lines import ERROR, LogText, find, select
from cockpit.state.run_diff import compare, find_parent
from cockpit.state.run_filter import FilterError, parse_filter
from cockpit.widgets import log_viewer, run_table
from cockpit.widgets.log_viewer import LogViewer
from engine.protocol.home import Home
from engine.protocol.messages import (
    AttemptEnd,
    CheckpointInfo,
    CleanItem,
    CleanQuery,
    CleanReply,
    Label,
    Message,
    Problem,
    ProblemError,
    Resume,
    Run,
    RunChanged,
    RunDetail,
    RunRef,
)
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import assert_fits, run_app, screen_text, until

PROBLEM = Problem(code="memory.exhausted", title="Out of memory [/x]", cause="\x1b[2J", hint="halve the batch")
NOW = time.time()


class Keeping(FakeEngine):
    """It keeps labels, and has profiles, checkpoints and earlier attempts."""

    def __init__(self) -> None:
        runs = [
            demo_run(id="lr-high", state="failed", learning_rate=4e-4, problem=PROBLEM, attempt=2, created=NOW - 50),
            demo_run(id="lr-low", state="completed", step=50, learning_rate=1e-5, tags=["paper"], created=NOW - 90_000),
            demo_run(id="going", learning_rate=2e-4, created=NOW - 10, profile="/p.yaml"),
        ]
        super().__init__(*runs)

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> object:
        if operation == "label":
            assert isinstance(message, Label)
            self.requests.append((operation, message))
            run = self.runs[message.run]
            run.tags = [tag for tag in dict.fromkeys([*run.tags, *message.add]) if tag not in message.remove]
            run.note = run.note if message.note is None else message.note
            run.pinned = run.pinned if message.pinned is None else message.pinned
            self.say(RunChanged(run=run))
            return run
        reply = await super().request(operation, message, timeout)
        if isinstance(reply, RunDetail):
            reply.profile_text = f"training: {{learning_rate: {reply.run.learning_rate}, epochs: 3}}\n"
            reply.checkpoints = [CheckpointInfo(step=step, path="/x", bytes=3 << 20) for step in (20, 31)]
            reply.attempts = [AttemptEnd(attempt=1, state="lost", step=7, reason="its worker has gone")]
        return reply

    def sent(self, operation: str) -> list[Message]:
        return [message for name, message in self.requests if name == operation]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("state:failed", "a"),
        ("state:failed,completed", "ab"),
        ("lr:>1e-4", "ac"),
        ("lr:>=2e-4 lr:<3e-4", "c"),
        ("tag:PAPER", "b"),
        ("-tag:paper", "ac"),
        ("!state:running lr:>", "ab"),
        ("age:>1d", "b"),
        ("age:<1h going", "c"),
        ('eval/loss:0.4512 "lr-high"', "a"),
        ("eval/nothing:>0", ""),
        ("code:memory", "a"),
        ("抽取", ""),
        ("", "abc"),
    ],
)
def test_filters(text: str, found: str) -> None:
    runs = dict(zip("abc", Keeping().runs.values(), strict=True))
    assert "".join(name for name, run in runs.items() if parse_filter(text).matches(run)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stat:failed", "did you mean state?"),
        ("x:1", "there is no field x: id,"),
        ("lr:>high", "lr is a number"),
        ("age:>3y", "y is no unit"),
    ],
)
def test_a_filter_that_is_not_understood_says_which_part(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said.replace("?", r"\?")):
        parse_filter(text)


def test_the_parent_is_the_run_before_of_the_same_profile() -> None:
    old, other, new = (
        Run(id=name, created=at, profile=profile, name="same")
        for name, at, profile in (("old", 1.0, "/p"), ("other", 2.0, "/q"), ("new", 3.0, "/p"))
    )
    assert find_parent(new, [old, other, new]) is old
    assert find_parent(other, [old, other, new]) is old, "by its name: no other run has its profile"
    assert find_parent(old, [old, other, new]) is None
    before = {"a": {"b": 1, "c": [1]}, "gone": 2}
    assert [tuple(each) for each in compare(before, {"a": {"b": 1, "c": [2], "d": None}})] == [
        ("a.c", [1], [2]),
        ("gone", 2, None),
    ]


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40), (200, 60)])
async def test_the_run_under_the_cursor_is_described(size: tuple[int, int]) -> None:
    async with run_app(Keeping(), size, first="runs") as pilot:
        await pilot.press("j", *(["v"] if size[0] < 150 else []))
        wanted = ["Out of memory [/x]", "␛[2J", "training.learning_rate", "1e-5 → 4e-4"]
        wanted += ["checkpoints  2, 6M", "its worker has gone"]
        wanted = wanted if size[1] > 30 else wanted[:1]
        await until(pilot, lambda: all(text in screen_text(pilot) for text in wanted))
        if size[1] > 30:  # below, the text is scrolled
            assert_fits(pilot)


async def test_columns_filter_and_order_are_there_again_in_the_next_app(tmp_path: Path) -> None:
    home = Home(tmp_path)
    async with run_app(Keeping(), first="runs", home=home) as pilot:
        await pilot.press("c", "space", "j", "j", "j", "j", "j", "space", "enter")  # without state, with lr
        await until(pilot, lambda: " lr " in screen_text(pilot) and "4e-4" in screen_text(pilot))
        await pilot.press("t", "slash", *"stat:x")
        await until(pilot, lambda: "did you mean state?" in screen_text(pilot) and "lr-high" in screen_text(pilot))
        await pilot.press("escape", "slash", *"lr:>1e-4", "enter")
        await until(pilot, lambda: "2 of 3 runs" in screen_text(pilot))
    async with run_app(Keeping(), first="runs", home=home) as pilot:
        await until(pilot, lambda: "2 of 3 runs" in screen_text(pilot))
        text = screen_text(pilot)
        assert " lr " in text and "completed" not in text and "sorted by state" in text
        await pilot.press("escape")
        await until(pilot, lambda: "3 runs" in screen_text(pilot))
    home.settings.write_text("runs: {columns: 3, sort: [}\n")  # damaged by hand: the app starts, and keeps it
    async with run_app(Keeping(), first="runs", home=home) as pilot:
        await pilot.press("t")
        await until(pilot, lambda: "sorted by state" in screen_text(pilot))
    assert (tmp_path / "settings.yaml.damaged").read_text().startswith("runs: {columns")
    assert "state" in home.settings.read_text()


async def test_chosen_runs_are_tagged_pinned_and_deleted_together() -> None:
    fake = Keeping()
    async with run_app(fake, first="runs") as pilot:
        await pilot.press("j", "space", "space", "number_sign", *"draft -paper", "enter")
        await until(pilot, lambda: len(fake.sent("label")) == 2)
        assert fake.runs["lr-high"].tags == fake.runs["lr-low"].tags == ["draft"]
        await pilot.press("asterisk")
        await until(pilot, lambda: screen_text(pilot).index("lr-low") < screen_text(pilot).index("going"))
        await until(pilot, lambda: "2 chosen" in screen_text(pilot))
        await pilot.press("d")
        await until(pilot, lambda: "Delete 2 runs?" in screen_text(pilot))
        await pilot.press("y")
        await until(pilot, lambda: len(fake.sent("delete")) == 2)
        assert {message.run for message in fake.sent("delete")} == {"lr-high", "lr-low"}  # type: ignore[attr-defined]


async def test_another_attempt_a_note_and_a_fork(tmp_path: Path) -> None:
    fake, home = Keeping(), Home(tmp_path)
    async with run_app(fake, first="runs", home=home) as pilot:
        await pilot.press("j", "j", "e", *"40", "enter")  # a completed run, and a step that it has done
        await until(pilot, lambda: "40 is no step after 50" in screen_text(pilot))
        await pilot.press("backspace", "backspace", *"+30", "enter")
        await until(pilot, lambda: fake.sent("resume"))
        (first,) = fake.sent("resume")
        assert isinstance(first, Resume) and (first.run, first.step) == ("lr-low", None)
        assert first.changes == {"training.max_steps": 80}
        await pilot.press("f")
        await until(pilot, lambda: "from step" in screen_text(pilot) and "3M" in screen_text(pilot))
        await pilot.press("down", "enter")
        await until(pilot, lambda: len(fake.sent("resume")) == 2)
        second = fake.sent("resume")[1]
        assert isinstance(second, Resume) and (second.run, second.step, second.changes) == ("lr-low", 20, {})
        await pilot.press("n", *"好", "enter")
        await until(pilot, lambda: fake.runs["lr-low"].note == "好")
        await pilot.press("F")
        await until(pilot, lambda: "A name for the new profile" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.current_mode == "profile")
        made = tmp_path / "profiles" / "triples-qlora-fork.yaml"
        assert made.read_text() == "# from the run lr-low\ntraining: {learning_rate: 1e-05, epochs: 3}\n"
    assert RunRef(run="lr-low") in fake.sent("show")


def log_text() -> str:
    lines = [f"step {step} loss 0.5" for step in range(1, 300)]
    return "\n".join(
        [
            *lines,
            "UserWarning: hot",
            "[rank1]: Traceback (most recent call last):",
            "    main()",
            "ValueError: no",
            "尾 end\x1b[2J",
            "",
        ]
    )


def test_a_log_is_the_same_however_it_is_cut() -> None:
    whole = LogText()
    whole.append(log_text())
    for cut in range(1, len(log_text()), 997):
        parts = LogText()
        parts.append(log_text()[cut:])
        parts.prepend(log_text()[:cut])
        assert [line.text for line in parts.all()] == [line.text for line in whole.all()], cut
    errors = select(whole.all(), ERROR, None)
    assert [line.text.strip() for line in errors] == [
        "[rank1]: Traceback (most recent call last):",
        "main()",
        "ValueError: no",
    ]
    assert [line.rank for line in errors] == [1, 1, None] and whole.list_ranks() == [1]
    assert find(whole.all(), "STEP 3 ", 0, 1) is None and find(whole.all(), "step 3 ", 5, 1) == 2
    assert find(whole.all(), "step 3 ", 1, -1) == 2, "round the start"


@pytest.mark.parametrize("size", [(60, 18), (120, 40)])
async def test_the_log_follows_searches_and_keeps_levels_apart(size: tuple[int, int]) -> None:
    fake = Keeping()
    fake.log = log_text()
    async with run_app(fake, size, first="runs") as pilot:
        await pilot.press("L")
        await until(pilot, lambda: isinstance(pilot.app.screen, LogViewer) and "尾 end␛[2J" in screen_text(pilot))
        fake.log += "one more\n"
        await until(pilot, lambda: "one more" in screen_text(pilot))
        await pilot.press("slash", *"step 7 ", "enter")
        await until(pilot, lambda: "step 7 loss" in screen_text(pilot) and "stands still" in screen_text(pilot))
        fake.log += "unseen\n"
        await pilot.pause(1.3)
        assert "unseen" not in screen_text(pilot)
        await pilot.press("escape", "l", "l")
        await until(pilot, lambda: "3 lines" in screen_text(pilot) and "ValueError: no" in screen_text(pilot))
        await pilot.press("l", "w", "f")
        await until(pilot, lambda: "unseen" in screen_text(pilot))
        assert_fits(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, LogViewer))


class Slow(Keeping):
    """Its log comes over a slow line."""

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> object:
        reply = await super().request(operation, message, timeout)
        if operation == "log":
            await asyncio.sleep(5 * log_viewer.PERIOD)
        return reply


async def test_a_log_is_read_to_its_end_over_a_slow_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_viewer, "PERIOD", 0.05)
    fake = Slow()
    fake.log = "begin\n"
    async with run_app(fake, first="runs") as pilot:
        await pilot.press("L")
        await until(pilot, lambda: "begin" in screen_text(pilot))
        fake.log += "ValueError: why it has ended\n"
        fake.say(RunChanged(run=demo_run(id="going", state="failed", problem=PROBLEM)))
        await until(pilot, lambda: "why it has ended" in screen_text(pilot))
        viewer = pilot.app.screen
        assert isinstance(viewer, LogViewer)
        await until(pilot, lambda: viewer._whole)
        asked = len(fake.sent("log"))
        await pilot.pause(0.3)
        assert len(fake.sent("log")) == asked, "nothing more comes"


class Cleaning(Keeping):
    """The first removal is refused: one of the things has come into use; afterwards only the other one is listed."""

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> object:
        if operation != "clean":
            return await super().request(operation, message, timeout)
        assert isinstance(message, CleanQuery)
        self.requests.append((operation, message))
        items = [CleanItem(path="/c/1", kind="checkpoint", run="lr-low", step=1, bytes=5 << 20, why="[/x] neither")]
        if len(self.sent("clean")) == 1:
            items.append(CleanItem(path="/c/2", kind="resume", run="lr-high", step=2, safe=False, why="its newest"))
        if len(self.sent("clean")) == 2:
            raise ProblemError(
                Problem(code="clean.refused", title="/c/2 is not removed", cause="it is in use", hint="")
            )
        removed = [item for item in items if item.path in message.remove]
        left = [item for item in items if item not in removed]
        return CleanReply(items=left, removed=removed, disk_free=7 << 30, disk_total=9 << 30)


@pytest.mark.parametrize("size", [(60, 18), (120, 40)])
async def test_the_disk_is_cleaned_and_listed_again_when_something_came_into_use(size: tuple[int, int]) -> None:
    fake = Cleaning()
    async with run_app(fake, size, first="runs") as pilot:
        await pilot.press("D")
        await until(pilot, lambda: "needed to resume" in screen_text(pilot) and "[/x] neither" in screen_text(pilot))
        assert "1 thing marked, 5M" in screen_text(pilot)
        await pilot.press("j", "space", "d")
        await until(pilot, lambda: "1 of them are not safe" in screen_text(pilot))
        await pilot.press("y")
        await until(pilot, lambda: "1 thing marked" in screen_text(pilot) and "lr-high@2" not in screen_text(pilot))
        await pilot.press("d", "y")
        await until(pilot, lambda: "Nothing can be removed" in screen_text(pilot))
        queries = [message for message in fake.sent("clean") if isinstance(message, CleanQuery) and message.remove]
        assert [(query.remove, query.unsafe) for query in queries] == [(["/c/1", "/c/2"], True), (["/c/1"], False)]
        await pilot.press("escape")


def test_a_long_note_is_cut_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    monkeypatch.setattr(run_table, "cell_len", lambda text: measured.append(text) or cell_len(text))
    for note, kept in (("x" * 4000, f"{'x' * 23}…"), ("论" * 4000, f"{'论' * 11}…"), ("short", "short")):
        assert run_table.cut(note, 24) == kept
    assert sum(map(len, measured)) < 20_000


def test_settings_that_yaml_cannot_hold_plainly_are_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for value in ("a\x7fb\x85", "\ud800", "论文 \u202e"):
        Settings(home).set("runs.filter", value)
        assert Settings(home).get("runs.filter", "") == value
    settings, failed = Settings(home), []
    settings.failed = failed.append
    settings.set("runs.filter", "\ufffe")  # which YAML has no way to write
    assert failed and Settings(home).get("runs.filter", "") == "论文 \u202e"
