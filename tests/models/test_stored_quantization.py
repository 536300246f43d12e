"""Bases that are stored quantised: their own numbers are read, and they are refused by name where their library is
missing, before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from engine.models import checks, loading, stored_quantization
from engine.models.stored_quantization import LIBRARIES, find_problem
from engine.options.model import ModelOptions
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.training.harness import make_model

ROOT = Path(__file__).parents[2]
FOLDER = Path(sys.prefix, "compressed-tensors")
"""Where `make test` installs compressed-tensors, apart from what every other test imports."""
HAS_LIBRARY = FOLDER.is_dir() or importlib.util.find_spec("compressed_tensors") is not None


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


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBRARY, reason="compressed-tensors is not installed: make test does")
def test_packed_weights_answer_and_train_as_their_unpacked_twin(tmp_path: Path) -> None:
    """Weights in 4 and 8 bits that compressed-tensors has packed, in chat and under a LoRA."""
    places = [str(ROOT), str(FOLDER), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.compressed", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for kind, found in json.loads(done.stdout.splitlines()[-1]).items():
        packed, twin = found["packed"], found["twin"]
        assert (found["method"], found["format"]) == ("compressed-tensors", "pack-quantized"), kind
        for each in ("base", "trained"):
            logits, expected = (numpy.array(side[each]["logits"]) for side in (packed, twin))
            assert numpy.abs(logits - expected).max() < 1e-5, (kind, each)
            assert packed[each]["reply"] == twin[each]["reply"], (kind, each)
        assert numpy.abs(numpy.array(packed["base"]["logits"]) - numpy.array(found["plain"])).max() > 1e-3, kind
        assert packed["losses"] == pytest.approx(twin["losses"], rel=1e-5), kind


def test_weights_that_bitsandbytes_has_packed_are_not_drawn_at_random(tmp_path: Path) -> None:
    """As chat and training ask for a base without further quantisation: the folder's own is what counts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    packed = AutoModelForCausalLM.from_pretrained(
        make_model(tmp_path / "plain"), dtype=torch.float32, quantization_config=config
    )
    packed.save_pretrained(tmp_path / "packed")
    ids = torch.arange(4, 12)[None]
    loaded = loading.load_model(str(tmp_path / "packed"), dtype=torch.float32, quantization_config=None)
    scorer = loading.load_reward_model(str(tmp_path / "packed"), dtype=torch.float32, quantization_config=None)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed", num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, packed(ids).logits, atol=1e-5)
        states = [each.model(ids).last_hidden_state for each in (scorer, theirs)]
    assert torch.allclose(*states, atol=1e-5)
