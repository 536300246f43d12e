"""Writes the results of a benchmark as JSON, with the date and a description of the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "textual", "pyzmq", "msgspec")


def machine() -> dict[str, Any]:
    return {
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _find_version(name) for name in PACKAGES},
    }


def _find_version(package: str) -> str:
    """Empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def save(name: str, results: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any]:
    """Write `<name>.json` and print it; returns its content. Figures are rounded to four significant digits."""
    document = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "results": _rounded(results),
    }
    text = json.dumps(document, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n")
    print(text)
    return document


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
