"""What is read from a run's history, without a screen: marks, settings, pauses, thresholds, replies."""

from __future__ import annotations

from typing import Any

import pytest

from cockpit.state.app_state import RunHistory, add_entry
from cockpit.state.run_history import (
    ProbeReply,
    active_warnings,
    chart_marks,
    current_settings,
    format_value,
    held_batch,
    pause_advice,
    replies_by_probe,
    rollback_step,
    samples_by_step,
    sort_rows,
)
from cockpit.state.run_settings import TITLES, describe_setting, parse_value
from cockpit.state.text_diff import NEW, mark_new_words
from cockpit.widgets.history_dialog import format_entries
from cockpit.widgets.run_panels import evaluation_rows, loss_bounds
from cockpit.widgets.samples_dialog import describe_probe
from engine.config.settable import SETTABLE
from tests.app.fake import bad_batch, demo_run, entries, ledger


def history_of(*more: dict[str, Any]) -> RunHistory:
    result = RunHistory()
    for entry in (*entries(), *more):
        result = add_entry(result, entry)
    return result


def test_changes_are_marked_once_and_the_newest_value_is_the_present_one() -> None:
    history = history_of(
        ledger(20, "training.learning_rate", 3e-4, 2e-4),
        ledger(24, "training.micro_batch", 8, 4),
        ledger(24, "training.accumulation", 1, 2),
        ledger(26, "from a newer engine"),
    )
    assert chart_marks(history) == ((20, "lr"), (24, "batch"))
    now = current_settings(demo_run(), history)
    assert (now["training.learning_rate"], now["evaluation.every_steps"], now["training.max_steps"]) == (2e-4, 25, 50)


def test_changes_of_an_attempt_before_the_start_are_in_the_start_already() -> None:
    early = ledger(3, "training.learning_rate", 1e-3, 9e-4)
    history = add_entry(RunHistory(), early | {"time": 1.0})
    for entry in entries():
        history = add_entry(history, entry)
    assert current_settings(demo_run(), history)["training.learning_rate"] == 3e-4


def test_a_held_batch_is_known_until_it_is_decided_on() -> None:
    run = demo_run(state="paused", step=31, reason=bad_batch()["reason"], code="pause.loss_spike")
    warning = {
        "kind": "warning",
        "step": 31,
        "time": 2.0,
        "code": "training.batch_held",
        "message": "step 32 is held back: loss spike: 5",
        "hint": "h",
    }
    waiting = history_of(bad_batch(), warning, ledger(31, "pause", None, "reworded", code="pause.loss_spike"))
    assert held_batch(run, waiting) is not None
    assert pause_advice(run, waiting)[0].startswith("‖ step 32 is held back: loss spike")
    assert active_warnings(run, waiting) == [warning]
    decided = add_entry(waiting, ledger(31, "continue", bad_batch()["reason"], "skip"))
    going = demo_run(state="running", step=32)
    assert held_batch(going, decided) is None and active_warnings(going, decided) == []
    later = add_entry(decided, ledger(40, "pause", None, "asked", code="pause.asked"))
    assert held_batch(demo_run(state="paused", step=40, reason="asked", code="pause.asked"), later) is None


def test_a_held_batch_of_a_journal_without_codes_is_known_by_its_step() -> None:
    batch = {key: value for key, value in bad_batch().items() if key != "code"}
    run = demo_run(state="paused", step=31, reason=batch["reason"])
    assert held_batch(run, history_of(batch, ledger(31, "pause", None, batch["reason"]))) is not None
    assert held_batch(run, history_of(batch, ledger(40, "pause", None, "asked"))) is None


@pytest.mark.parametrize(
    ("code", "reason", "key"),
    [
        ("pause.disk_low", "1.2 GB free", "continues automatically"),
        ("pause.gradient_not_finite", "gradient not finite", "p continues"),
        ("pause.asked", "asked", ""),
        ("", "disk low: from an older engine", "p continues"),
    ],
)
def test_a_pause_shows_its_reason_and_the_keys(code: str, reason: str, key: str) -> None:
    text, keys = pause_advice(demo_run(state="paused", reason=reason, code=code), history_of())
    assert (reason in text and key in keys) if key else (text, keys) == ("", "")


def test_a_roll_back_goes_to_the_newest_checkpoint_that_is_still_there() -> None:
    history = history_of(
        {"kind": "checkpoint", "step": 30, "removed": [25]}, {"kind": "checkpoint", "step": 40, "removed": [30]}
    )
    assert (rollback_step(history, 41), rollback_step(history, 40), rollback_step(history_of(), 26)) == (40, None, 25)


def test_rows_stand_by_their_loss_those_that_are_not_finite_first() -> None:
    assert [row.get("loss") for row in sort_rows(bad_batch())] == [None, 9.5, 5.25, 0.4]


def test_thresholds_judge_the_last_evaluation() -> None:
    rows = {name: str(value) for name, value in evaluation_rows(history_of())}
    assert rows["loss"].split() == ["0.4512", "✓", "<1.2", "▼", "1.9"]
    assert rows["schema_validity"].split() == ["0.94", "✗", "≥0.95", "▲", "0.94"]
    assert rows["rouge"].split() == ["–", "✗", ">0.5"]
    assert "✓" not in rows["triples_f1"] and "✗" not in rows["triples_f1"]
    assert str(dict(evaluation_rows(history_of(), short=True))["schema_validity"]).split() == ["0.94", "✗"]
    assert loss_bounds(history_of()) == ((1.2, "eval < 1.2"),)


def test_probes_show_when_a_reply_changed_and_how() -> None:
    def reply(step: int, text: str) -> dict[str, Any]:
        return {"kind": "sample", "probe": True, "step": step, "prompt": "who?", "reply": text}

    history = history_of(
        reply(0, "Ada wrote it"), reply(25, "Ada wrote it"), reply(50, "Marie wrote it"), reply(50, "She wrote it")
    )
    assert replies_by_probe(history)["who?"] == [ProbeReply(0, 25, "Ada wrote it"), ProbeReply(50, 50, "She wrote it")]
    assert list(samples_by_step(history)) == [25, 0], "kept samples are not probes"
    text = describe_probe("who?", replies_by_probe(history)["who?"])
    assert text.plain.index("step 50") < text.plain.index("step 0 to 25, unchanged")
    assert "step 50  1 word new, 1 gone\nShe wrote it" in text.plain
    marked = [text.plain[span.start : span.end] for span in text.spans if span.style == NEW]
    assert marked == [" new ", "She"]


def test_json_replies_are_shown_indented_and_compared_word_by_word() -> None:
    text = describe_probe("p", [ProbeReply(1, 1, '[{"a": 1}]'), ProbeReply(2, 2, '[{"a": 2}]')])
    assert '\n  {\n    "a": 2\n  }' in text.plain
    same, moved = mark_new_words("a b", "a b")
    assert (same.spans, moved) == ([], "0 words new, 0 gone")


def test_the_history_lists_changes_and_warnings_newest_first() -> None:
    now = 1_000_000.0
    history = RunHistory(
        ledger=(ledger(20, "training.learning_rate", 3e-4, 2e-4) | {"time": now - 9},),
        warnings=({"kind": "warning", "step": 22, "time": now - 3, "message": "m", "hint": "do this"},),
    )
    first, hint, second = (line.plain for line in format_entries(history, now, 80))
    assert "step 22" in first and first.endswith("! m") and hint.strip() == "→ do this"
    assert "step 20" in second and "training.learning_rate  3e-4 → 2e-4" in second
    assert format_value(None) == "none" and format_value([1, 2]) == "2 rows"


def test_what_is_typed_becomes_a_value_or_an_explanation() -> None:
    assert set(TITLES) == set(SETTABLE)
    assert all(describe_setting(key) for key in TITLES)
    assert parse_value("training.learning_rate", "2e-4", 0) == 2e-4
    assert parse_value("evaluation.every_steps", "none", 0) is None
    assert parse_value("training.max_steps", "1,000", 5) == 1000
    for key, text, message in (
        ("training.learning_rate", "2", "is not a learning rate"),
        ("training.learning_rate", "fast", "fast is not a learning rate"),
        ("training.max_grad_norm", "-1", "greater than or equal to 0"),
        ("training.max_steps", "none", "none is not a number of steps"),
        ("training.max_steps", "4", "step 5 is done already"),
        ("checkpoint.every_steps", "0", "greater than or equal to 1"),
        ("evaluation.every_steps", "2.5", "valid integer"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_value(key, text, 5)
