"""What the start of a worker does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.harness import make_model

pytest.importorskip("bitsandbytes")
LOADED = """
import sys
import torch
from engine.models.loading import load_model
compile_now = torch.compile
model = load_model(sys.argv[1])
import peft
peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
assert "bitsandbytes" in sys.modules and torch.compile is compile_now
print(sorted({"torch._inductor.compile_fx", "torch._inductor.lowering"} & sys.modules.keys()))
"""
COMPUTED = """
from engine.models import bitsandbytes_import
import bitsandbytes.functional as functional
given = torch.randn(64, 64)
packed, state = functional.quantize_4bit(given, quant_type="nf4")
wide = functional.dequantize_4bit(packed, state)
assert (wide - given).abs().mean() < 0.1
calls = []
def noted(function, **options):
    calls.append(options)
    return function
made = bitsandbytes_import._compile_when_called(noted, lambda value: value + 1, dynamic=False)
assert not calls and made(1) == 2 == made(1) and calls == [{"dynamic": False}]
print("the same")
"""


BASE = """
import sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
import gc
from engine.models import libraries
libraries.import_all()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
from engine.inference.loaded_model import load
loaded = load(sys.argv[1])
next(iter(loaded.stream("a b", max_new_tokens=1)))
sources = [file for file in opened if "/transformers/models/" in file and file.endswith(".py")]
print(sorted({"peft", "torch._inductor.compile_fx", "datasets", "pandas"} & sys.modules.keys()))
print(len(set(sources)) > 100, len(sources) < 1.1 * len(set(sources)))
"""
TOKENIZER = """
import sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
from engine.models import tokenizers
tokenizers.leave_out_torch()
tokenizers.load(sys.argv[1])
sources = [file for file in opened if "/transformers/models/" in file and file.endswith(".py")]
print("torch" in sys.modules, len(set(sources)) > 100, len(sources) < 1.1 * len(set(sources)))
"""


def run(program: str, model: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, str(model)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_base_alone_answers_without_peft_and_its_sources_are_looked_through_once(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    assert run(BASE, model) == ["[]", "True True"]
    assert run(TOKENIZER, model) == ["False True True"]


def test_a_model_with_an_adapter_starts_without_the_compiler_and_computes(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    assert run(LOADED + COMPUTED, model) == ["[]", "the same"]
