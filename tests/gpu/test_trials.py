"""Accelerated paths are tried on the device: a verdict is there, and what they compute differs little."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fused_lora_is_tried(device: str, bare_home: Home, dtype: str) -> None:
    import torch

    from engine.models.trials import Trials
    from engine.training.adapters import fused_lora
    from engine.training.fast_paths import try_fused_lora
    from tests.training.test_cpu_lora import tiny as make

    layer = fused_lora.list_layers(make().to(device))[0]
    passes = partial(torch.autocast, device, getattr(torch, dtype)) if dtype != "float32" else nullcontext
    verdict = try_fused_lora(Trials(bare_home, device, "this one"), layer, device, passes)
    assert not verdict.failed and verdict.difference <= 0.03, verdict


def test_ligers_kernels_are_tried(device: str, bare_home: Home) -> None:
    if device == "cpu":
        pytest.skip("Liger's kernels need a GPU")
    pytest.importorskip("liger_kernel")
    import torch

    from engine.models.trials import Trials
    from engine.training import liger
    from tests.inference.test_lean_step import make

    model = make("llama", torch.bfloat16).to(device)
    verdict = liger.try_kernels(Trials(bare_home, device, "this one"), model, device, nullcontext, demanded=True)
    assert verdict.used and verdict.difference <= 0.03, verdict


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_captured_step_decodes_what_the_model_does(device: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through growth of the cache, and for two replies one after the other. A CPU rehearses it without a capture."""
    from engine.inference import compiled_step, lean_step
    from engine.inference.compiled_step import Compilation
    from tests.inference.test_compiled_step import reply
    from tests.inference.test_lean_step import make, repeat

    monkeypatch.setattr(compiled_step, "_ROOM", 16)
    model = make(family).to(device)
    capture = lean_step.capture_graph if device == "cuda" else repeat([])
    for _ in range(2):
        expected = reply(model, 125)
        compilation = Compilation(Home(Path("nowhere")), "")
        compilation._program = lean_step.LeanStep(model, capture)
        assert reply(model, 125, compilation.open) == expected
        assert compilation._program is not None, "the captured step has failed"
