"""Two cards: what the strategies compute there is what one card computes. Skipped where there is only one; in a
rehearsal the ranks are processes on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.training.conftest import start_run  # noqa: F401 - a fixture
from tests.training.harness import Supervised
from tests.training.test_fsdp import FULL

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "fsdp"])
@pytest.mark.parametrize(
    "changes",
    [("model.quantization=nf4",), (*FULL, "training.ema={decay: 0.5}", "training.gradient_checkpointing=true")],
    ids=["nf4", "full"],
)
def test_two_cards_train_as_one_does(
    start_run: Callable[..., Supervised],  # noqa: F811
    device: str,
    strategy: str,
    changes: tuple[str, ...],
) -> None:
    import torch

    if device != "cpu" and torch.accelerator.device_count() < 2:
        pytest.skip("there is one card")
    brief = (
        "training.max_steps=6",
        "evaluation.every_steps=3",
        "checkpoint.every_steps=3",
        "training.optimizations=false",
    )
    dtype = "float32" if device == "cpu" else "bfloat16"
    whole = start_run("one", *changes, *brief, f"model.dtype={dtype}")
    whole.train(cold=device != "cpu")
    launch = f"launch={{processes: 2, strategy: {strategy}}}"
    run = start_run("two", *changes, *brief, f"model.dtype={dtype}", "training.micro_batch=2", launch)
    run.train(processes=2, cold=device != "cpu")
    for name in ("train/loss", "train/grad_norm"):
        tolerance = 1e-4 if device == "cpu" else 0.05
        assert run.series(name) == pytest.approx(whole.series(name), rel=tolerance), name
    assert run.run.checkpoint_steps() == whole.run.checkpoint_steps() == [3, 6]
