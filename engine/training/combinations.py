"""Supported combinations of adapter, base and method. docs/training.md shows these tables; a test compares the two."""

from __future__ import annotations

from collections.abc import Iterator

from engine.models.checks import VIRTUAL
from engine.options.tables import ROW_KINDS

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
