"""Supported combinations of adapter, base and method. docs/training.md shows these tables; a test compares the two."""

from __future__ import annotations

from collections.abc import Iterator

from engine.models.checks import VIRTUAL
from engine.options.tables import ROW_KINDS, STRATEGIES
from engine.training.parallel import deepspeed_config

_UNQUANTIZED = ("none",)
_ALL = ("none", "nf4", "int8")
QUANTIZATIONS = {
    "none": _UNQUANTIZED,
    "lora": _ALL,
    "rslora": _ALL,
    "dora": ("none", "nf4"),
    "ia3": _ALL,
    "oft": _ALL,
    "prefix": _ALL,
    "prompt": _ALL,
}
"""Adapter -> the values of `model.quantization` that it supports. DoRA reads the base's weights in every pass; with
int8 weights, peft 0.21 then loses their scales on a CPU."""
_ADAPTERS_OF_WEIGHTS = tuple(adapter for adapter in QUANTIZATIONS if adapter not in VIRTUAL)
ADAPTERS_FOR = {
    "tokens": tuple(QUANTIZATIONS),
    "pairs": _ADAPTERS_OF_WEIGHTS,
    "judged": _ADAPTERS_OF_WEIGHTS,
    "prompts": ("none", "lora"),
}
"""Kind of prepared rows -> supported adapters. Online methods are tested with these two only."""


def is_supported(adapter: str, quantization: str, rows: str) -> bool:
    """Whether `adapter` trains on a base with this quantisation, by a method that takes prepared rows of the kind
    `rows`."""
    return quantization in QUANTIZATIONS[adapter] and adapter in ADAPTERS_FOR[rows]


def find_unsupported(adapter: str, quantization: str, method: str, rows: str) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for an unsupported combination."""
    if quantization not in QUANTIZATIONS[adapter]:
        why = "cannot be trained in full" if adapter == "none" else f"does not go with adapter.kind {adapter}"
        bases = " or ".join(QUANTIZATIONS[adapter])
        yield "model.quantization", f"a {quantization} base {why}: choose adapter.kind lora, or quantization {bases}"
    if not is_supported(adapter, QUANTIZATIONS[adapter][0], rows):
        yield (
            "adapter.kind",
            f"{adapter} does not go with method.kind {method}: choose {' or '.join(ADAPTERS_FOR[rows])}",
        )


SHARDED_OPTIMIZERS = ("adamw", "adam", "muon", "sgd")
"""Values of `training.optimizer` that compute with shares of weights."""
SHARDED_ADAPTERS = tuple(adapter for adapter in QUANTIZATIONS if adapter not in VIRTUAL)
"""Adapters that compute within the layers, where the weights are gathered."""


def render_strategies() -> str:
    """What goes with which strategy, in Markdown."""
    virtual = " and ".join(VIRTUAL)
    rest = [adapter for adapter in SHARDED_ADAPTERS if adapter not in deepspeed_config.ADAPTERS]
    every, whole, divided, ours = (
        set(STRATEGIES),
        {name for name, strategy in STRATEGIES.items() if not strategy.sharded},
        {name for name, strategy in STRATEGIES.items() if strategy.sharded},
        {name for name, strategy in STRATEGIES.items() if not strategy.foreign},
    )
    muon = [name for name in SHARDED_OPTIMIZERS if name not in deepspeed_config.OPTIMIZERS]
    rows = {
        f"adapters {', '.join(deepspeed_config.ADAPTERS)}": every,
        f"adapters {', '.join(rest)}": ours,
        f"adapters {virtual}": whole,
        "bases in 16 or 32 bits": every,
        "bases nf4 and int8": ours,
        "methods sft and pretrain": every,
        "preference and online methods": ours,
        f"optimisers {', '.join(deepspeed_config.OPTIMIZERS)}": every,
        f"optimiser {' and '.join(muon)}": ours,
        "optimisers adafactor, 8-bit and paged": whole,
        "`model.quantize_experts`": whole,
        "`model.dtype: float16` (a loss scaler)": whole,
        "`training.compile`": whole,
        "`training.ema`, `training.router_aux_loss`": ours,
        "`launch.offload: cpu`": divided,
        "save, probes, held-back batches, gradient checkpointing": every,
        "pause, changed settings, hot chat, evaluation with replies": every,
        "a forecast": ours,
        "a rank without memory: the run goes on in the same attempt": whole,
    }
    lines = ["| | " + " | ".join(f"`{name}`" for name in STRATEGIES) + " |", "|---" * (1 + len(STRATEGIES)) + "|"]
    for what, names in rows.items():
        cells = ("yes" if name in names else "–" for name in STRATEGIES)
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_tables() -> str:
    """The tables in Markdown: one row per adapter, one column per quantisation and per kind of prepared rows."""
    kinds = ["tokens", *(kind for kind in ROW_KINDS if kind != "tokens")]
    lines = [
        "| adapter | " + " | ".join([*(f"base {base}" for base in _ALL), *(f"{kind} rows" for kind in kinds)]) + " |",
        "|---" * (1 + len(_ALL) + len(kinds)) + "|",
    ]
    for adapter, bases in QUANTIZATIONS.items():
        cells = [base in bases for base in _ALL] + [is_supported(adapter, bases[0], kind) for kind in kinds]
        lines.append(f"| {adapter} | " + " | ".join("yes" if cell else "–" for cell in cells) + " |")
    return "\n".join(lines)
