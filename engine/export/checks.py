"""Whether a profile's export can be made. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.models.checks import VIRTUAL


def check_export(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` for each setting of an export that does not fit the adapter or the method."""
    export, adapter, method = (sections.get(name) for name in ("export", "adapter", "method"))
    if export is None:
        return
    if export.kind == "none":
        for key in ("output", "dtype", "gguf", "converter"):
            if getattr(export, key) is not None:
                yield f"export.{key}", "nothing is exported: set export.kind to merged or adapter"
        return
    if adapter and export.kind == "merged" and adapter.kind in VIRTUAL:
        yield "export.kind", f"a {adapter.kind} adapter changes no weight and cannot be merged: set it to adapter"
    if adapter and export.kind == "adapter" and adapter.kind == "none":
        yield "export.kind", "there is no adapter: set it to merged, which is the whole weights"
    if export.gguf and export.kind == "adapter":
        yield "export.gguf", "is for whole weights: set export.kind to merged"
    if export.gguf and getattr(method, "scores", False):
        yield "export.gguf", "a reward model has no GGUF"
