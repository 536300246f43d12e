"""The loss is that of the global batch, however it is split."""

from __future__ import annotations

import pytest

from engine.protocol.journal import End, Start


@pytest.mark.slow
def test_two_ranks_and_micro_batches_lose_as_one_process(start_run):
    splits = {"one": (4, 1, 1), "accumulated": (1, 4, 1), "ranks": (2, 1, 2), "both": (1, 2, 2)}
    losses, norms = {}, {}
    for name, (micro_batch, accumulation, processes) in splits.items():
        run = start_run(
            name,
            f"training.micro_batch={micro_batch}",
            f"training.accumulation={accumulation}",
            f"launch.processes={processes}",
        )
        run.train(processes=processes)
        losses[name], norms[name] = run.series("train/loss"), run.series("train/grad_norm")
        assert run.entries(Start)[0].global_batch == 4
        assert run.entries(End)[-1].status == "completed"
    assert list(losses["one"]) == [1, 2, 3, 4, 5, 6, 7]  # 27 rows: the last global batch holds three
    for name in splits:
        assert losses[name] == pytest.approx(losses["one"], rel=1e-3), name
        assert norms[name] == pytest.approx(norms["one"], rel=1e-3), name
    assert losses["one"][7] < losses["one"][1]
