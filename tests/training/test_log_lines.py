from __future__ import annotations

from engine.protocol.journal import Checkpoint, End, Evaluation, Ledger, Metrics, Phase, Warn
from engine.protocol.messages import Problem
from engine.training.log_lines import format_line


def test_a_line_says_what_a_person_wants_to_know() -> None:
    def text(entry: object) -> str:
        return format_line(entry).partition("  ")[2]  # type: ignore[arg-type]

    assert (
        text(Metrics(attempt=1, step=1200, values={"train/loss": 0.31241, "train/step_seconds": 1.0}))
        == "step 1,200  loss 0.3124"
    )
    evaluation = Evaluation(attempt=1, step=25, values={"eval/loss": 0.2, "eval/triples_f1": None}, seconds=12.4)
    assert text(evaluation) == "step 25  evaluated in 12 s  loss 0.2  triples_f1 not finite"
    assert (
        text(Checkpoint(attempt=1, step=25, path="/r/step-25", best=True)) == "step 25  saved /r/step-25 (best so far)"
    )
    assert (
        text(Ledger(attempt=1, step=3, name="training.learning_rate", old=1e-4, new=5e-5))
        == "step 3  training.learning_rate: 0.0001 → 5e-05"
    )
    assert text(Ledger(attempt=1, step=3, name="pause", new="asked")) == "step 3  pause: asked"
    assert text(Warn(attempt=1, message="odd", hint="look")) == "warning: odd → look"
    assert (
        text(End(attempt=1, step=9, status="failed", problem=Problem(title="Out of memory")))
        == "step 9  failed: Out of memory"
    )
    assert format_line(Phase(attempt=1, name="loading")) == ""
