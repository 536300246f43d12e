"""What a run leaves for people and other programs: pictures of its curves, Weights & Biases runs."""

from __future__ import annotations

import warnings

import pytest

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Metrics, Start, Warn, Writer
from engine.training import plots


def start(attempt: int, step: int) -> Start:
    return Start(
        attempt=attempt,
        step=step,
        max_steps=9,
        epochs=1,
        steps_per_epoch=9,
        processes=1,
        global_batch=1,
        parameters=1,
        trainable_parameters=1,
        rows=1,
        trained_tokens=1,
    )


def test_curves_are_those_of_the_latest_attempt(bare_home: Home) -> None:
    run = bare_home.run("again")
    journal = Writer(run.events)
    for entry in (
        start(1, 0),
        *(Metrics(attempt=1, step=step, values={"train/loss": 5.0 - step}) for step in (1, 2, 3)),
        start(2, 1),  # steps 2 and 3 are done anew, differently
        Metrics(attempt=2, step=2, values={"train/loss": 7.0, "train/grad_norm": 1.0}),
        Evaluation(attempt=2, step=2, values={"eval/loss": None}),
    ):
        journal.write(entry)
    assert plots.read_curves(run, ["train/loss", "eval/loss"]) == {"train/loss": ([1, 2], [4.0, 7.0])}


@pytest.mark.parametrize("steps", [1, 50, 5000])
def test_a_picture_has_both_parts_and_chinese_words(steps: int) -> None:
    numbers = list(range(1, steps + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a character that no font has
        png = plots.draw_curves(
            "三元组抽取 · 训练损失",
            {"train/loss": (numbers, [1 / step for step in numbers]), "评估/loss": ([1], [2.0])},
        )
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    with pytest.raises(ValueError, match="no such metrics"):
        plots.draw_curves("empty", {})


@pytest.mark.slow
def test_a_run_draws_itself_and_tells_weights_and_biases(start_run, monkeypatch):
    pytest.importorskip("wandb")
    run = start_run(
        "drawn", "logging.plots=true", "logging.wandb={project: tests, mode: offline}", "checkpoint.every_steps=4"
    )
    run.train()
    assert not run.entries(Warn), run.log()
    drawn = {path.name for path in run.run.plots.iterdir()}
    assert drawn == {
        "loss_curve_step_4.png",
        "loss_curve_step_7.png",
        "loss_curve_final_step_7.png",
        "loss_curve_latest.png",
    }
    (record,) = run.run.path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in record.read_bytes() and b"eval/loss" in record.read_bytes()
