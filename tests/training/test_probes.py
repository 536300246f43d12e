"""What a run says of itself at its evaluations: answers to probes, thresholds, curves that part."""

from __future__ import annotations

import json

import pytest

from engine.protocol.journal import Sample, Start, Warn

TWICE = ("training.epochs=2", "evaluation.every_steps=7", "evaluation.at_start=true", "generation.max_new_tokens=6")


@pytest.mark.slow
def test_probes_are_answered_at_every_evaluation_and_thresholds_judged(start_run):
    run = start_run(
        "probed",
        *TWICE,
        "evaluation.probes=['w1 w2', 'w3']",
        "evaluation.thresholds=['loss < 1e-3', 'token_accuracy >= 0', 'rouge_l > 0.5']",
    )
    run.train()
    samples = run.entries(Sample)
    assert [(sample.step, sample.prompt) for sample in samples] == [
        (step, text) for step in (0, 7, 14) for text in ("w1 w2", "w3")
    ]
    assert all(sample.probe for sample in samples)
    assert len({sample.reply for sample in samples}) > 1, "what is learned shows in the replies"
    assert run.entries(Start)[0].facts["thresholds"][0] == ["eval/loss", "<", 1e-3]
    missed = [warning.message for warning in run.entries(Warn)]
    assert len(missed) == 2 and all(message.startswith("a threshold was not reached") for message in missed), missed
    assert "rouge_l was not measured" in missed[1]
    verdicts = json.loads(run.run.report.read_text())["thresholds"]
    assert [(each["threshold"], each["passed"]) for each in verdicts] == [
        ("loss < 0.001", False),
        ("token_accuracy >= 0", True),
        ("rouge_l > 0.5", False),
    ]


@pytest.mark.slow
def test_probes_need_no_held_out_rows(start_run, prepared):
    run = start_run(
        "alone", "evaluation.probes=['w1 w2']", "generation.max_new_tokens=4", prepared={**prepared, "validation": None}
    )
    run.train()
    assert [sample.step for sample in run.entries(Sample)] == [7]
