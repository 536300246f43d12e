"""A LoRA layer's forward and backward pass as one autograd function, on a CPU and where a trial finds it faster.

peft composes it of six operations on activations, each of which reads and writes megabytes; a GPU also waits for the
host to start them. Here the update is added in place to the base's product, and its gradient to the base's gradient,
and the scale is applied to tensors that are only `rank` wide. The results are the same up to rounding, with fewer
passes over memory (as in Unsloth's LoRA kernels for GPUs).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.amp import custom_bwd, custom_fwd

from engine.training.dropout import PooledDropout


def install(model: torch.nn.Module) -> None:
    """Let the plain LoRA layers of `model` use the fused function."""
    for layer in list_layers(model):
        layer.__class__ = FusedLinear


def list_layers(model: torch.nn.Module) -> list[Linear]:
    """The plain LoRA layers of `model`, around unquantised linear layers."""
    return [
        layer
        for layer in model.modules()
        if type(layer) is Linear and type(layer.get_base_layer()) is torch.nn.Linear and not layer.lora_variant
    ]


def can_fuse(layer: Linear) -> bool:
    """Whether the fused function computes this layer on an accelerator: one adapter, without torch's own dropout."""
    active = layer.active_adapters
    return len(active) == 1 and isinstance(layer.lora_dropout[active[0]], torch.nn.Identity)


class FusedLinear(Linear):  # type: ignore[misc]
    """peft's layer with a fused pass for plain training of one adapter; peft computes everything else."""

    def forward(self, x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        active = self.active_adapters
        if arguments or named or self.disable_adapters or self.merged or not self.training or len(active) != 1:
            result: torch.Tensor = super().forward(x, *arguments, **named)
            return result
        (name,) = active
        base, dropout = self.get_base_layer(), self.lora_dropout[name]
        if isinstance(dropout, PooledDropout):
            factors = dropout.pool.take_slice(x)
        elif isinstance(dropout, torch.nn.Identity):
            factors = None
        else:
            return super().forward(x)  # type: ignore[no-any-return]
        function = _Fused if x.device.type == "cpu" and not _is_float16() else _FusedElsewhere
        fused: torch.Tensor = function.apply(
            x,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
            factors,
        )
        return fused


def _is_float16() -> bool:
    """Whether a CPU's autocast computes in float16, as in a rehearsal of a GPU."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16


def _without_autocast(kind: str) -> AbstractContextManager[object]:
    """Not every back end can disable it."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _multiply(
    ctx: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    factors: torch.Tensor | None,
) -> torch.Tensor:
    """The layer's output, and in `ctx` what its gradients need."""
    flat = x.reshape(-1, x.shape[-1])
    factors = factors if factors is None else factors.reshape(flat.shape)
    dropped = flat if factors is None else flat * factors
    low = (dropped @ a.t()).mul_(scale)
    ctx.save_for_backward(weight, a, b, dropped, low, factors)
    ctx.scale = scale
    return torch.nn.functional.linear(flat, weight, bias).addmm_(low, b.t()).view(*x.shape[:-1], -1)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients of what `_multiply` was given, from that of its output."""
    weight, a, b, dropped, low, factors = ctx.saved_tensors
    flat = gradient.reshape(-1, gradient.shape[-1])
    into_low = (flat @ b).mul_(ctx.scale)
    into_x = None
    if ctx.needs_input_grad[0]:
        update = into_low @ a
        into_x = flat @ weight
        into_x = into_x.add_(update) if factors is None else into_x.addcmul_(update, factors)
        into_x = into_x.view(*gradient.shape[:-1], -1)
    return into_x, None, None, into_low.t() @ dropped, flat.t() @ low, None, None


class _Fused(torch.autograd.Function):
    """x [..., in] · Wᵀ + bias + s · ((x ⊙ factors) · Aᵀ) · Bᵀ, with gradients of x, A [rank, in] and B [out, rank]. W
    is frozen."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        factors: torch.Tensor | None,
    ) -> torch.Tensor:
        return _multiply(ctx, x, weight, bias, a, b, scale, factors)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return _differentiate(ctx, gradient)


class _FusedElsewhere(torch.autograd.Function):
    """x [..., in] · Wᵀ + bias + s · ((x ⊙ factors) · Aᵀ) · Bᵀ, with gradients of x, A [rank, in] and B [out, rank]. W
    is frozen. Within autocast, all products are computed in its dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        factors: torch.Tensor | None,
    ) -> torch.Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight, a, b = (tensor.to(dtype) for tensor in (x, weight, a, b))
            bias, factors = (tensor if tensor is None else tensor.to(dtype) for tensor in (bias, factors))
        with _without_autocast(kind):
            return _multiply(ctx, x, weight, bias, a, b, scale, factors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        with _without_autocast(gradient.device.type):
            return _differentiate(ctx, gradient)
