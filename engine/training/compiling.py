"""torch.compile for a model's layers while they train (`training.compile`).

Each decoder layer is compiled by itself: they share one program, so it is made once, and the loop around them stays ordinary. What
cannot be compiled runs as it is, and the run says so. Evaluation and generation are not compiled: their shapes change with every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

MODES = {"cuda": "max-autotune-no-cudagraphs", "mps": "reduce-overhead"}
"""torch's mode by device. Without CUDA graphs, since rows differ in length and each length would have a graph of its own."""
MIN_STEPS = 500
"""Optimiser steps from which `auto` compiles: below, tuning takes longer than it saves."""
BACKEND = "inductor"


class Warn(Protocol):
    """Says something to the user."""

    def __call__(self, message: str, hint: str, *, code: str) -> object: ...


def is_enabled(setting: bool | str, device_kind: str, steps: int) -> bool:
    """Whether to compile, of `training.compile`, for a run of so many steps."""
    return device_kind in MODES and steps >= MIN_STEPS if setting == "auto" else bool(setting)


def install(model: Any, device_kind: str, warn: Warn) -> int:
    """Compile the layers of `model` when they are first used; returns how many. `warn` is told, once, when that fails."""
    import torch
    import torch._functorch.config
    from transformers import AttentionInterface

    from engine.models.segments import NAME

    # The backward pass with the forward pass: when it cannot be compiled, nothing has been computed yet.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    registered = AttentionInterface()
    if NAME in registered:
        # The rows' lengths differ in every batch, and each would be a program of its own.
        AttentionInterface.register(NAME, torch.compiler.disable(registered[NAME]))
    layers = list(_find_layers(model))
    compiler = _LayerCompiler(device_kind, warn)
    for layer in layers:
        compiler.wrap(layer)
    if not layers:
        warn(
            "this model's layers cannot be told apart, so nothing is compiled",
            "set training.compile to false",
            code="compile.unsupported",
        )
    return len(layers)


def _find_layers(model: Any) -> Iterator[Any]:
    """The decoder layers: what transformers never splits over devices. Of a layer that is computed again in the backward pass its
    parts, since torch does not look into a checkpointed function."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            yield from module.children() if getattr(module, "gradient_checkpointing", False) else (module,)


class _LayerCompiler:
    """Compiled layers of one model, which fail together."""

    def __init__(self, device_kind: str, warn: Warn) -> None:
        self._mode, self._warn = MODES.get(device_kind), warn
        self._failed = False

    def wrap(self, layer: Any) -> None:
        """Let `layer` run compiled in training mode, until that fails."""
        import torch
        from torch._dynamo.exc import TorchDynamoException

        plain = layer._call_impl
        compiled = torch.compile(
            plain, backend=BACKEND, mode=self._mode if BACKEND == "inductor" else None, dynamic=True
        )

        def call(*arguments: Any, **named: Any) -> Any:
            if self._failed or not layer.training:
                return plain(*arguments, **named)
            try:
                return compiled(*arguments, **named)
            except TorchDynamoException as error:
                self._fail(error)
                return plain(*arguments, **named)

        layer._compiled_call_impl = call

    def _fail(self, error: Exception) -> None:
        self._failed = True
        cause = str(getattr(error, "inner_exception", error)).strip() or type(error).__name__
        self._warn(
            f"torch.compile failed, so the model runs without it: {cause.splitlines()[0]}",
            "nothing to do; training.compile=false leaves the attempt out",
            code="compile.failed",
        )
