"""Which accelerated paths a run uses: those that have proved themselves on its device (see `engine.models.trials`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from engine.models.trials import Trials, Verdict
from engine.models.varlen import Boundaries, varlen_attention
from engine.protocol.home import Home
from engine.training.compiling import CompiledLayers
from engine.training.job import Job

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

_ROWS = (700, 200, 100, 24)
"""Lengths in tokens of the rows that attention is tried on."""
_GRADIENTS = 32
"""Trained weights whose gradients are compared."""
_TOLERANCE = 0.03
"""Relative difference of losses and gradients that rounding to 16 bits explains."""
_WINDOW = 128
"""Sliding window of the trial, for models that have one."""


def make_trials(job: Job) -> Trials:
    """The trials of this rank's device. Failures of new trials are journaled."""

    def report(verdict: Verdict) -> None:
        job.has_tried_paths = True
        if verdict.failed:
            job.reporter.warn(
                code="trial.failed",
                message=f"{verdict.name} does not work on {job.device.label}, so the plain path is used: "
                f"{verdict.reason}",
                hint="nothing to do; `cockpit doctor --again` tries it again",
            )

    return Trials(Home(job.run.path.parent.parent), job.device.name, job.device.label, report)


def use(job: Job, try_path: Callable[[Trials], Verdict]) -> bool:
    """Whether all ranks use a path: rank 0 tries it. A forecast assumes that it works."""
    if job.simulated:
        return True
    used: bool = job.ranks.broadcast(job.ranks.first and try_path(make_trials(job)).used)
    return used


def use_varlen(job: Job, model: Any) -> bool:
    """Whether one call computes the attention of all joined rows. Only accelerators have such a kernel, and only for
    16-bit dtypes."""
    if job.device.kind == "cpu" or job.device.compute == torch.float32:
        return False
    shape = _read_shape(model)
    return use(job, lambda trials: try_varlen(trials, job.device.name, job.device.compute, *shape))


def try_varlen(trials: Trials, device: str, dtype: Any, heads: int, groups: int, width: int, windowed: bool) -> Verdict:
    """Try the kernel on random rows: `heads` of queries, `groups` of keys and values, `width` of a head."""
    tokens = sum(_ROWS)
    generator = torch.Generator().manual_seed(0)
    query, key, value, upstream = (
        torch.randn(tokens, count, width, generator=generator).to(device, dtype)
        for count in (heads, groups, groups, heads)
    )
    boundaries = Boundaries.of(_ROWS, query.device)
    left = _WINDOW - 1 if windowed else -1

    def work(attend: Callable[[Any, Any, Any], Any]) -> Sequence[Any]:
        parts = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        output = attend(parts[0], parts[1], parts[2])
        return (output, *torch.autograd.grad(output, parts, upstream))

    return trials.decide(
        f"variable-length attention {str(dtype).removeprefix('torch.')} {heads}/{groups} heads of {width}"
        + (" in a window" if windowed else ""),
        lambda: work(lambda q, k, v: _attend_by_row(q, k, v, left)),
        lambda: work(lambda q, k, v: varlen_attention(q, k, v, boundaries, left=left, scale=None)),
        tolerance=_TOLERANCE,
    )


def use_fused_lora(job: Job, model: Any) -> bool:
    """Whether LoRA layers are computed by one function each: on CUDA, whose autocast the function follows. Forecasts
    count with peft's layers, which take more."""
    from engine.training.adapters import fused_lora

    layers = [layer for layer in fused_lora.list_layers(model) if fused_lora.can_fuse(layer)]
    if not layers or job.simulated or job.device.kind != "cuda":
        return False
    return use(job, lambda trials: try_fused_lora(trials, layers[0], job.device.name, job.device.autocast))


def try_fused_lora(trials: Trials, layer: Any, device: str, autocast: Callable[[], Any]) -> Verdict:
    """Try a copy of this LoRA layer, with an update that is not zero, on random activations."""
    from engine.training.adapters.fused_lora import FusedLinear

    (name,) = layer.active_adapters
    layer = copy.deepcopy(layer).train()
    plain = type(layer)
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    generator = torch.Generator().manual_seed(0)
    with autocast():
        probe = layer.get_base_layer()(torch.zeros(1, down.shape[1], device=device, dtype=down.dtype))
    values, upstream = (
        torch.randn(sum(_ROWS), width, generator=generator).to(device, probe.dtype)
        for width in (down.shape[1], up.shape[0])
    )
    # The run's own random numbers must not depend on whether there is a verdict.
    up.data.copy_(0.02 * torch.randn(up.shape, generator=generator))

    def work(kind: Any) -> Sequence[Any]:
        layer.__class__ = kind
        given = values.detach().requires_grad_()
        with autocast():
            output = layer(given)
        return (output, *torch.autograd.grad(output, (given, down, up), upstream))

    base = f"{str(probe.dtype).removeprefix('torch.')} {down.shape[1]} to {up.shape[0]}, rank {down.shape[0]}"
    with _no_dropout(layer):
        return trials.decide(f"fused LoRA {base}", lambda: work(plain), lambda: work(FusedLinear), tolerance=_TOLERANCE)


def try_compiled(loop: TrainingLoop, compiled: CompiledLayers) -> None:
    """Let the compiled layers run only if two rows have the same loss and gradients with them, and, unless the profile
    demands them, if they are faster."""
    method, model = loop.method, loop.model
    if not method.rehearsable:
        return
    before = copy.deepcopy(loop.checkpointer.snapshot())
    weights = [weight for weight in model.parameters() if weight.requires_grad][:_GRADIENTS]
    settings = loop.profile.training
    rows = range(min(2, 2 if settings.tokens_per_batch else settings.rows, len(method.rows)))
    batch = method.to_device(method.longest_batch([method.rows[row] for row in rows]))
    config = model.config.get_text_config()
    name = f"compiled layers of {config.model_type} {config.hidden_size} wide, {loop.profile.adapter.kind}"
    name += f", {loop.profile.model.quantization} weights, {loop.profile.method.kind}"

    def work(enabled: bool) -> Sequence[Any]:
        compiled.enabled = enabled
        loss = method.loss(model, batch, max(method.units(batch), 1.0))
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return (loss, *(gradient for gradient in gradients if gradient is not None))

    def decide(trials: Trials) -> Verdict:
        faster = 1.0 if loop.profile.training.compile == "auto" else 0.0
        return trials.decide(name, lambda: work(False), lambda: work(True), tolerance=_TOLERANCE, faster=faster)

    compiled.raising = True
    with _no_dropout(model):
        model.train()
        compiled.enabled = use(loop.job, decide)
    compiled.raising = False
    loop.checkpointer.restore(before)


@contextmanager
def _no_dropout(model: Any) -> Iterator[None]:
    """Context without dropout, which two paths would draw differently."""
    rates = {module: module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    try:
        for module in rates:
            module.p = 0.0
        yield
    finally:
        for module, rate in rates.items():
            module.p = rate


def _attend_by_row(query: Any, key: Any, value: Any, left: int) -> Any:
    """The plain path of `varlen_attention`, row by row."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    found = []
    for parts in zip(*(tensor.split(_ROWS) for tensor in (query, key, value)), strict=True):
        tokens = len(parts[0])
        seen = (
            torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().triu(-left) if left >= 0 else None
        )
        rows = (tensor.transpose(0, 1)[None] for tensor in parts)
        queries, keys, values = rows
        output = scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, is_causal=seen is None, enable_gqa=True
        )
        found.append(output[0].transpose(0, 1))
    return torch.cat(found)


def _read_shape(model: Any) -> tuple[int, int, int, bool]:
    """Heads of queries, heads of keys and values, width of a head, and whether a layer attends in a window."""
    config = model.config.get_text_config()
    heads: int = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ()) or bool(
        getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    )
    return heads, groups, width, windowed
