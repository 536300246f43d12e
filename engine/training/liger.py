"""Liger's kernels (https://github.com/linkedin/Liger-Kernel): norms, rotary positions and gated feed-forward layers,
each as one Triton kernel. They are used after a trial (`engine.models.trials`).

Its cross entropy is not used: the output layer here computes only trained positions, which saves more.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from engine.models.memory import is_out_of_memory
from engine.models.trials import Trials, Verdict
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line

_KERNELS = {"cross_entropy": False, "fused_linear_cross_entropy": False}
_TOKENS = 512
"""Length of the row on which the kernels are tried."""
_TOLERANCE = 0.03
"""Relative difference of loss and gradients that rounding to 16 bits explains."""


def is_enabled(setting: bool | str, device_kind: str) -> bool:
    """Whether to use Liger, for a value of `training.liger`. Raises ProblemError where the profile requires it and it
    is unavailable."""
    installed = find_spec("liger_kernel") is not None
    if setting == "auto":
        return device_kind == "cuda" and installed
    if setting and device_kind != "cuda":
        raise ProblemError(
            Problem(
                code="device.unsupported",
                title="training.liger needs an NVIDIA or AMD GPU",
                cause=f"this job runs on {device_kind}",
                hint="set training.liger to auto or false",
            )
        )
    if setting and not installed:
        raise ProblemError(
            Problem(
                code="package.missing",
                title="training.liger needs the package liger-kernel",
                cause="it is not installed in this environment",
                hint="pip install 'cockpit[liger]', or set training.liger to auto",
            )
        )
    return bool(setting)


def install(model: Any) -> None:
    """Install the kernels in `model`; a family that Liger does not support is left unchanged, which Liger logs."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, _KERNELS)


def try_kernels(trials: Trials, model: Any, device: str, autocast: Callable[[], Any], *, demanded: bool) -> Verdict:
    """Try the kernels in one layer of this model's shape with random weights. If they are `demanded`, they need not be
    faster, only correct."""
    import torch

    config, dtype = _shorten(model.config.get_text_config()), str(model.dtype).removeprefix("torch.")
    name = f"Liger's kernels in {config.model_type} {config.hidden_size} wide, {dtype}"
    faster = 0.0 if demanded else 1.0
    if kept := trials.read(name, faster):
        return kept
    ids = torch.arange(_TOKENS, device=device)[None] % config.vocab_size

    def compute(kind: Any) -> list[Any]:
        with autocast():
            logits = kind(input_ids=ids, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        return [loss, *torch.autograd.grad(loss, [*kind.parameters()])]

    try:
        # `torch.random` is left as it was: the run's own numbers must not depend on whether there is a verdict.
        with torch.random.fork_rng([torch.device(device)] if device != "cpu" else []):
            torch.manual_seed(0)
            plain = _make_layer(config, model).to(device, model.dtype).eval()  # without dropout
        compute(plain)
    except Exception as error:  # noqa: BLE001 - not every model can be made with one layer, of its configuration alone
        verdict = Verdict(name, used=False, reason=f"one layer of the model cannot be tried: {first_line(error)}")
        if not is_out_of_memory(error):
            trials.keep(verdict)
        return verdict
    fast, names, installed = copy.deepcopy(plain), _Names(plain), False

    def compute_fast() -> list[Any]:
        nonlocal installed
        names.restore(patched=True)
        if not installed:
            install(fast)
            names.record()
            installed = True
        return compute(fast)

    def compute_plain() -> list[Any]:
        names.restore(patched=False)
        return compute(plain)

    try:
        return trials.decide(name, compute_plain, compute_fast, tolerance=_TOLERANCE, faster=faster)
    finally:
        names.restore(patched=False)


class _Names:
    """The names in the modules of transformers that define a model's classes. Liger replaces some of them, such as the
    function for rotary positions, for every model in the process."""

    def __init__(self, model: Any) -> None:
        named = {type(part).__module__ for part in model.modules()}
        self._modules = [sys.modules[name] for name in named if name.startswith("transformers.")]
        self._plain = self._patched = self._read()

    def _read(self) -> list[dict[str, Any]]:
        return [dict(vars(module)) for module in self._modules]

    def record(self) -> None:
        """Remember the names as Liger has left them."""
        self._patched = self._read()

    def restore(self, *, patched: bool) -> None:
        for module, names in zip(self._modules, self._patched if patched else self._plain, strict=True):
            vars(module).update(names)


def _make_layer(config: Any, model: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation=_attention(model))


def _attention(model: Any) -> str:
    """That of the model, unless it is the one that knows joined rows."""
    name = str(model.config._attn_implementation)
    return name if name in ("eager", "sdpa") else "sdpa"


def _shorten(config: Any) -> Any:
    """The same configuration with one layer and a small vocabulary."""
    short = copy.deepcopy(config)
    short.num_hidden_layers, short.vocab_size = 1, min(_TOKENS, config.vocab_size)
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:1]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(short, name, None)
    return short
