"""What an export is asked for, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExportRequest:
    """How a target is exported."""

    adapter_only: bool = False
    dtype: str | None = None
    """None: the dtype of training, else the stored one."""
    gguf: str | None = None
    """The type of a GGUF file beside the weights; None: no such file."""
    converter: str | None = None
    """The place of llama.cpp's converter; None: it is searched for."""
    replacing: bool = False
    """Whether an earlier export under that name may be replaced."""


@dataclass(frozen=True)
class ExportResult:
    """A finished export."""

    directory: Path
    kind: str
    """`merged`, `model`, `adapter` or `reward`."""
    agreement: dict[str, Any]
    """From `agreement.compare` or `reward_scores.compare`. Where two bases were tried, also the `base` that was taken
    and the figures of both in `candidates`."""
    gguf: dict[str, Any] | None = None
    """From `gguf_converter.convert`."""
