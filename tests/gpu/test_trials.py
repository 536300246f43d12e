"""Accelerated paths are tried on the device: a verdict is there, and what they compute differs little."""

from __future__ import annotations

from typing import Any

import pytest

from engine.protocol.home import Home
from engine.training import compiling
from tests.gpu.conftest import find_verdicts
from tests.gpu.test_losses import losses

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]


def test_compiled_layers_are_tried(
    device: str, bare_home: Home, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":  # inductor's C++ takes minutes there
        monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiled = losses(bare_home, "compiled", prepared, "training.compile=true")
    plain = losses(bare_home, "plain", prepared, "training.compile=false")
    verdict = next(each for name, each in find_verdicts(bare_home).items() if name.startswith("compiled layers"))
    assert verdict["used"] and verdict["difference"] <= 0.03, verdict
    assert compiled == pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 2, 16), (32, 8, 128), (9, 3, 64)])
def test_variable_length_attention_is_tried(
    device: str, bare_home: Home, heads: int, groups: int, width: int, windowed: bool
) -> None:
    if device == "cpu":
        pytest.skip("a CPU has no kernel for rows of several lengths")
    import torch

    from engine.models.trials import Trials
    from engine.training.fast_paths import try_varlen

    trials = Trials(bare_home, "cuda:0", torch.cuda.get_device_name(0))
    verdict = try_varlen(trials, "cuda:0", torch.bfloat16, heads, groups, width, windowed)
    assert not verdict.failed and verdict.difference <= 0.03, verdict
    assert find_verdicts(bare_home)[verdict.name]["difference"] == verdict.difference


def test_a_run_in_bfloat16_decides_about_its_attention(device: str, bare_home: Home, prepared: Any) -> None:
    losses(bare_home, "run", prepared, "model.dtype=bfloat16")
    names = [name for name in find_verdicts(bare_home) if name.startswith("variable-length attention")]
    assert len(names) == (1 if device == "cuda" else 0)
