"""Cards that a machine without any seems to have."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent
GB = 10**9


def make_card(number: int, **given: Any) -> dict[str, Any]:
    uuid = f"GPU-{number:08x}-0000-0000-0000-{number:012x}"
    return {"name": f"NVIDIA T{number}", "uuid": uuid, "total": 24 * GB, "used": GB // 2} | given


class Cards:
    """The file from which the fake reads. `write` changes what is seen."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "nvml.json"

    def write(self, *cards: Any, **given: Any) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"cards": cards} | given))
        fresh.rename(self.path)


def load() -> ModuleType:
    """The fake module, under a name of its own."""
    spec = importlib.util.spec_from_file_location("fake_pynvml", FOLDER / "pynvml.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """Let this process, and those that it starts with this environment, see the cards of a file."""
    import sys

    from engine.hardware import nvidia

    cards, module = Cards(folder), load()
    monkeypatch.setenv("FAKE_NVML", str(cards.path))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(nvidia, "pynvml", module)
    monkeypatch.setattr(nvidia, "_FAILURES", (module.NVMLError, *nvidia._FAILURES))
    return cards
