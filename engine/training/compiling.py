"""torch.compile for a model's layers during training (`training.compile`).

Each decoder layer is compiled separately: all of them share one program, which is compiled once, and the model around
them stays unchanged. Layers that cannot be compiled run as they are, with a warning. Evaluation and generation are not
compiled: their shapes change with every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from engine.models.memory import is_out_of_memory

MODES = {"cuda": "max-autotune-no-cudagraphs", "mps": "reduce-overhead"}
"""Device -> torch's mode. Without CUDA graphs: rows differ in length, and each length would need its own graph."""
MIN_STEPS = 500
"""Optimiser steps from which `auto` compiles: for fewer, tuning takes longer than it saves."""
BACKEND = "inductor"


class Warn(Protocol):
    """Warns the user."""

    def __call__(self, message: str, hint: str, *, code: str) -> object: ...


def is_enabled(setting: bool | str, device_kind: str, steps: int) -> bool:
    """Whether to compile, for a value of `training.compile` and a run of `steps` steps."""
    return device_kind in MODES and steps >= MIN_STEPS if setting == "auto" else bool(setting)


def install(model: Any, device_kind: str, warn: Warn) -> CompiledLayers | None:
    """Compile the layers of `model` at their first use; None where it has none that are known. `warn` is called once if
    compilation fails."""
    import torch
    import torch._functorch.config
    from transformers import AttentionInterface

    from engine.models.segments import NAME

    # Compiles the backward pass with the forward pass: a failure then occurs before anything is computed.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    registered = AttentionInterface()
    if NAME in registered:
        # The rows' lengths differ in every batch, and each would need its own program.
        AttentionInterface.register(NAME, torch.compiler.disable(registered[NAME]))
    layers = list(_find_layers(model))
    compiled = CompiledLayers(device_kind, warn)
    for layer in layers:
        compiled.wrap(layer)
    if not layers:
        warn(
            "this model's decoder layers cannot be identified, so nothing is compiled",
            "set training.compile to false",
            code="compile.unsupported",
        )
    return compiled if layers else None


def _find_layers(model: Any) -> Iterator[Any]:
    """Yield the decoder layers: the modules that transformers never splits across devices. With gradient checkpointing,
    yield their children, since torch does not compile inside a checkpointed function."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            yield from module.children() if getattr(module, "gradient_checkpointing", False) else (module,)


def _find_collector() -> Any:
    """The variable that transformers' hooks on each layer and attention ask whether hidden states are wanted."""
    from transformers.utils import output_capturing

    return getattr(output_capturing, "_active_collector", None)


@contextmanager
def _traceable(collector: Any) -> Iterator[None]:
    """Let torch trace the hooks while nothing is collected. They would else end a program at each hook: transformers
    expects to be compiled as a whole model, not layer by layer."""
    if collector is None:
        yield
        return
    before, collector.compiling = collector.compiling, True
    try:
        yield
    finally:
        collector.compiling = before


def _require_gradient(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let the hidden states of the first layer require a gradient, as those of the others do: it would else be compiled
    separately."""
    given = arguments[0] if arguments else named.get("hidden_states")
    if given is None or given.requires_grad or not given.is_floating_point():
        return arguments, named
    required = given.detach().requires_grad_()
    return ((required, *arguments[1:]), named) if arguments else (arguments, named | {"hidden_states": required})


class CompiledLayers:
    """The compiled layers of one model. While not `enabled`, and after a failure, all of them run as they are."""

    def __init__(self, device_kind: str, warn: Warn) -> None:
        self._mode, self._warn = MODES.get(device_kind), warn
        self.enabled = True
        self.raising = False
        """Whether a failure is raised, rather than answered with the plain layer."""

    def wrap(self, layer: Any) -> None:
        """Let `layer` run compiled in training mode, until compilation fails."""
        import torch
        import torch.utils.checkpoint

        plain = layer._call_impl
        compiled = torch.compile(
            plain, backend=BACKEND, mode=self._mode if BACKEND == "inductor" else None, dynamic=True
        )

        collector = _find_collector()
        trained = any(weight.requires_grad for weight in layer.parameters())

        def call(*arguments: Any, **named: Any) -> Any:
            if not self.enabled or not layer.training or (collector and collector.get()):
                return plain(*arguments, **named)
            if trained and torch.is_grad_enabled():
                arguments, named = _require_gradient(arguments, named)
            try:
                with _traceable(collector):
                    return compiled(*arguments, **named)
            except Exception as error:
                # The layer itself would raise the same again; what else a compiler, Triton or a driver raises has many
                # classes, and the layer has changed nothing yet.
                # By such an exception, checkpointing ends the recomputation of a layer.
                recomputed = type(error).__module__ == torch.utils.checkpoint.__name__
                if recomputed or self.raising or is_out_of_memory(error):
                    raise
                found = plain(*arguments, **named)
                self._fail(error)
                return found

        layer._compiled_call_impl = call

    def _fail(self, error: Exception) -> None:
        self.enabled = False
        cause = str(getattr(error, "inner_exception", error)).strip() or type(error).__name__
        self._warn(
            f"torch.compile failed, so the model runs without it: {cause.splitlines()[0]}",
            "nothing to do; training.compile=false avoids the attempt",
            code="compile.failed",
        )
