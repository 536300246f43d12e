"""Bases that are stored quantised are refused by name where their library is missing, before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.models import checks, loading, stored_quantization
from engine.models.stored_quantization import LIBRARIES, find_problem
from engine.options.model import ModelOptions
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError


def make_folder(folder: Path, quantised: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantised}))
    return folder


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = importlib.util.find_spec
    known = {name for libraries in LIBRARIES.values() for name in libraries}

    def find(name: str, *rest: Any) -> Any:
        return (object() if name in names else None) if name in known else found(name, *rest)

    monkeypatch.setattr(stored_quantization.importlib.util, "find_spec", find)


def check(folder: Path, home: Home, adapter: str, **model: Any) -> list[tuple[str, str]]:
    sections = {
        "model": ModelOptions(base=str(folder), **model),
        "adapter": SimpleNamespace(kind=adapter, targets="all-linear"),
    }
    return list(checks.check_base(sections, folder, home, look=lambda _: []))


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("gptq", "pip install gptqmodel optimum"),
        ("awq", "pip install gptqmodel"),
        ("compressed-tensors", "pip install compressed-tensors"),
    ],
)
def test_a_missing_library_is_named_at_submission_and_at_loading(
    method: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    folder, home = make_folder(tmp_path / "base", {"quant_method": method}), Home(tmp_path / "home").create()
    for load in (loading.load_model, loading.load_reward_model):
        with pytest.raises(ProblemError) as refused:
            load(str(folder))
        problem = refused.value.problem
        assert problem.code == "model.quantized_unreadable" and stored_quantization.NAMES[method] in problem.title
        assert command in problem.hint
    ((key, message),) = check(folder, home, "lora")
    assert key == "model.base" and command in message
    # With the library, adapters are trained on these weights, and nothing else is.
    install(monkeypatch, *LIBRARIES[method])
    assert find_problem(folder) is None and check(folder, home, "lora") == []
    assert [key for key, _ in check(folder, home, "none")] == ["adapter.kind"]
    assert [key for key, _ in check(folder, home, "lora", quantization="nf4")] == ["model.quantization"]


@pytest.mark.parametrize("quantised", [None, "gptq", {}, {"quant_method": ["gptq"]}, {"quant_method": "bitsandbytes"}])
def test_other_folders_pass(quantised: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    folder = make_folder(tmp_path / "base", quantised)
    assert find_problem(folder) is None and find_problem(tmp_path) is None
    assert check(folder, Home(tmp_path / "home").create(), "none") == []
