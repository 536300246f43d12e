"""What is read from a run's journal: marks, settings, trouble, thresholds, replies; without a screen."""

from __future__ import annotations

from typing import Any

import pytest

from cockpit.state.app_state import RunTold, take
from cockpit.state.reply_format import NEW, compared
from cockpit.state.run_history import (
    Answered,
    advice,
    held,
    marks,
    probes,
    rows_of,
    samples,
    settings,
    standing,
    way_back,
    written,
)
from cockpit.state.run_settings import TITLES, meaning, value_of
from cockpit.widgets.history_dialog import lines
from cockpit.widgets.run_panels import bounds, evaluation
from cockpit.widgets.samples_dialog import told_of_probe
from engine.protocol.settable import SETTABLE
from tests.app.fake import bad_batch, demo_run, entries, ledger


def told(*more: dict[str, Any]) -> RunTold:
    result = RunTold()
    for entry in (*entries(), *more):
        result = take(result, entry)
    return result


def test_changes_are_marked_once_and_the_newest_value_is_the_present_one() -> None:
    story = told(
        ledger(20, "training.learning_rate", 3e-4, 2e-4),
        ledger(24, "training.micro_batch", 8, 4),
        ledger(24, "training.accumulation", 1, 2),
        ledger(26, "from a newer engine"),
    )
    assert marks(story) == ((20, "lr"), (24, "batch"))
    now = settings(demo_run(), story)
    assert (now["training.learning_rate"], now["evaluation.every_steps"], now["training.max_steps"]) == (2e-4, 25, 50)


def test_changes_of_an_attempt_before_the_start_are_in_the_start_already() -> None:
    early = ledger(3, "training.learning_rate", 1e-3, 9e-4)
    story = take(RunTold(), early | {"time": 1.0})
    for entry in entries():
        story = take(story, entry)
    assert settings(demo_run(), story)["training.learning_rate"] == 3e-4


def test_a_held_batch_is_known_until_it_is_decided_on() -> None:
    run = demo_run(state="paused", step=31, reason=bad_batch()["reason"])
    warning = {
        "kind": "warning",
        "step": 31,
        "time": 2.0,
        "message": "step 32 is held back: loss spike: 5",
        "hint": "h",
    }
    waiting = told(bad_batch(), warning, ledger(31, "pause", None, bad_batch()["reason"]))
    assert held(run, waiting) is not None
    assert advice(run, waiting)[0].startswith("‖ step 32 is held back: loss spike")
    assert standing(run, waiting) == [warning]
    decided = take(waiting, ledger(31, "continue", bad_batch()["reason"], "skip"))
    going = demo_run(state="running", step=32)
    assert held(going, decided) is None and standing(going, decided) == []
    later = take(decided, ledger(40, "pause", None, "asked"))
    assert held(demo_run(state="paused", step=40, reason="asked"), later) is None


@pytest.mark.parametrize(
    ("reason", "key"),
    [("disk low: 1.2 GB free", "goes on by itself"), ("gradient not finite", "p goes on"), ("asked", "")],
)
def test_a_pause_says_its_reason_and_the_way_on(reason: str, key: str) -> None:
    said, keys = advice(demo_run(state="paused", reason=reason), told())
    assert (reason in said and key in keys) if key else (said, keys) == ("", "")


def test_a_roll_back_goes_to_the_newest_checkpoint_that_is_still_there() -> None:
    story = told(
        {"kind": "checkpoint", "step": 30, "removed": [25]}, {"kind": "checkpoint", "step": 40, "removed": [30]}
    )
    assert (way_back(story, 41), way_back(story, 40), way_back(told(), 26)) == (40, None, 25)


def test_rows_stand_by_their_loss_those_that_are_not_finite_first() -> None:
    assert [row.get("loss") for row in rows_of(bad_batch())] == [None, 9.5, 5.25, 0.4]


def test_thresholds_judge_the_last_evaluation() -> None:
    rows = {name: str(value) for name, value in evaluation(told())}
    assert rows["loss"].split() == ["0.4512", "✓", "<1.2", "▼", "1.9"]
    assert rows["schema_validity"].split() == ["0.94", "✗", "≥0.95", "▲", "0.94"]
    assert rows["rouge"].split() == ["–", "✗", ">0.5"]
    assert "✓" not in rows["triples_f1"] and "✗" not in rows["triples_f1"]
    assert str(dict(evaluation(told(), short=True))["schema_validity"]).split() == ["0.94", "✗"]
    assert bounds(told()) == ((1.2, "eval < 1.2"),)


def test_probes_show_when_a_reply_changed_and_how() -> None:
    def reply(step: int, text: str) -> dict[str, Any]:
        return {"kind": "sample", "probe": True, "step": step, "prompt": "who?", "reply": text}

    story = told(
        reply(0, "Ada wrote it"), reply(25, "Ada wrote it"), reply(50, "Marie wrote it"), reply(50, "She wrote it")
    )
    assert probes(story)["who?"] == [Answered(0, 25, "Ada wrote it"), Answered(50, 50, "She wrote it")]
    assert list(samples(story)) == [25, 0], "kept samples are not probes"
    text = told_of_probe("who?", probes(story)["who?"])
    assert text.plain.index("step 50") < text.plain.index("step 0 to 25, unchanged")
    assert "step 50  1 word new, 1 gone\nShe wrote it" in text.plain
    marked = [text.plain[span.start : span.end] for span in text.spans if span.style == NEW]
    assert marked == [" new ", "She"]


def test_json_replies_are_shown_indented_and_compared_word_by_word() -> None:
    text = told_of_probe("p", [Answered(1, 1, '[{"a": 1}]'), Answered(2, 2, '[{"a": 2}]')])
    assert '\n  {\n    "a": 2\n  }' in text.plain
    same, moved = compared("a b", "a b")
    assert (same.spans, moved) == ([], "0 words new, 0 gone")


def test_the_history_tells_changes_and_warnings_newest_first() -> None:
    now = 1_000_000.0
    story = RunTold(
        ledger=(ledger(20, "training.learning_rate", 3e-4, 2e-4) | {"time": now - 9},),
        warnings=({"kind": "warning", "step": 22, "time": now - 3, "message": "m", "hint": "do this"},),
    )
    first, hint, second = (line.plain for line in lines(story, now, 80))
    assert "step 22" in first and first.endswith("! m") and hint.strip() == "→ do this"
    assert "step 20" in second and "training.learning_rate  3e-4 → 2e-4" in second
    assert written(None) == "none" and written([1, 2]) == "2 rows"


def test_what_is_typed_becomes_a_value_or_an_explanation() -> None:
    assert set(TITLES) == set(SETTABLE)
    assert all(meaning(key) for key in TITLES)
    assert value_of("training.learning_rate", "2e-4", 0) == 2e-4
    assert value_of("evaluation.every_steps", "none", 0) is None
    assert value_of("training.max_steps", "1,000", 5) == 1000
    for key, text, said in (
        ("training.learning_rate", "2", "no learning rate"),
        ("training.learning_rate", "fast", "fast is not a learning rate"),
        ("training.max_grad_norm", "-1", "greater than or equal to 0"),
        ("training.max_steps", "none", "none is not a number of steps"),
        ("training.max_steps", "4", "step 5 is done already"),
        ("checkpoint.every_steps", "0", "greater than or equal to 1"),
        ("evaluation.every_steps", "2.5", "valid integer"),
    ):
        with pytest.raises(ValueError, match=said):
            value_of(key, text, 5)
