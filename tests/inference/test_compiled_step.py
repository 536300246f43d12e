"""A compiled step decodes the same tokens, is swapped in while a reply is written, and never harms one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.inference import compiled_step
from engine.inference.compiled_step import Compilation, Program, is_compilable
from engine.inference.generate import stream
from engine.inference.sampling import Sampling
from engine.inference.step_program import Held, Step, name_program
from engine.models.trials import Trials, list_verdicts
from engine.protocol.home import Home

PROMPT = [5, 9, 17, 33, 8, 2, 40, 3, 21]


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled program alone; tests/inference/test_lean_step.py tries the other step."""
    monkeypatch.setenv("COCKPIT_COMPILE", "1")
    monkeypatch.setattr(compiled_step, "is_lean", lambda model: False)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def model(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


class Letters:
    """A tokenizer of one letter a token."""

    all_special_ids: list[int] = []
    all_special_tokens: list[str] = []
    chat_template = None

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(chr(48 + token) for token in ids)

    def convert_tokens_to_ids(self, *_: Any) -> None:
        return None

    def get_added_vocab(self) -> dict[str, int]:
        return {}


class Uncompiled(Program):
    """The program's module, run as it is; fails when told to."""

    def __init__(self, path: Path, model: Any) -> None:
        self.steps, self.failing = 0, False
        self.take_weights(model)

    def take_weights(self, model: Any) -> None:
        self.model = model
        self._runner = Step(model)

    def step(self, ids: Any, held: Held) -> Any:
        self.steps += 1
        if self.failing:
            raise RuntimeError("CUDA error: an illegal memory access")
        return super().step(ids, held)


def reply(model: Any, count: int, open_forward: Any = None, at: Any = lambda count: None) -> list[int]:
    named = {} if open_forward is None else {"open_forward": open_forward}
    for piece in stream(model, Letters(), PROMPT, Sampling(count), (), **named):
        at(piece.count)
    assert piece.reply is not None
    return piece.reply.ids


def test_tokens_are_the_same_through_swaps_growth_and_failure(model: Any, tmp_path: Path) -> None:
    expected = reply(model, 400)
    compilation = Compilation(Home(tmp_path / "home"), "")
    program = Uncompiled(tmp_path, model)

    def at(count: int) -> None:
        if count == 10:
            compilation._program = program
        if count == 390:
            program.failing = True

    assert reply(model, 400, compilation.open, at) == expected, "and the capacity has grown twice"
    assert program.steps == 381 and compilation.find(model) is None, "it is not used again"


def test_another_models_weights_are_taken_for_its_reply(model: Any, tmp_path: Path) -> None:
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(-1)
    compilation = Compilation(Home(tmp_path / "home"), "")
    compilation._program = program = Uncompiled(tmp_path, model)
    assert reply(other, 20) != reply(model, 20)
    for each in (other, model):
        assert reply(each, 20, compilation.open) == reply(each, 20) and program.model is each


def test_what_cannot_be_compiled_is_left_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    assert is_compilable(model)
    monkeypatch.setenv("COCKPIT_COMPILE", "0")
    assert not is_compilable(model)
    monkeypatch.delenv("COCKPIT_COMPILE")
    assert not is_compilable(model), "on a CPU, unless asked for"
    monkeypatch.setenv("COCKPIT_COMPILE", "1")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    assert not is_compilable(model), "its ends are tied by the configuration, and are not"
    model.tie_weights()
    model.model.layers[0].mlp.up_proj.weight.data = model.model.layers[0].mlp.up_proj.weight.data.bfloat16()
    assert not is_compilable(model), "two dtypes"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not is_compilable(model), "no compiler"


def test_caches_of_other_kinds_stay_with_the_plain_path() -> None:
    from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

    layer = DynamicLayer()
    layer.update(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
    held = compiled_step._hold(Cache(layers=[layer]))
    assert held is not None and held.capacity == 512 and held.to_cache().get_seq_length() == 5
    assert compiled_step._hold(Cache(layers=[layer, DynamicSlidingWindowLayer(8)])) is None


def test_a_program_that_does_not_compile_is_not_tried_again(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, said, built = Home(tmp_path / "home").create(), [], []

    def fail(*_: Any) -> str:
        built.append(1)
        return "it does not compile: no such operator"

    monkeypatch.setattr(compiled_step, "_build", fail)
    for _ in range(2):
        compilation = Compilation(home, "", said.append)
        pieces = stream(model, Letters(), PROMPT, Sampling(40), (), open_forward=compilation.open)
        assert len([*compilation.watch(model, pieces)]) == 41
        compilation.wait()
    assert len(built) == 1 and said == ["compiled step: it does not compile: no such operator"]
    [[verdict]] = list_verdicts(home).values()
    assert not verdict.used and "no such operator" in verdict.reason


def test_a_program_with_other_results_is_not_used(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Uncompiled):
        def step(self, ids: Any, held: Held) -> Any:
            return super().step(ids, held) * 1.1

    home = Home(tmp_path / "home").create()
    monkeypatch.setattr(compiled_step, "Program", Wrong)
    monkeypatch.setattr(compiled_step, "_build", lambda request, home: "")
    said: list[str] = []
    compilation = Compilation(home, "", said.append)
    pieces = stream(model, Letters(), PROMPT, Sampling(40), (), open_forward=compilation.open)
    assert len([*compilation.watch(model, pieces)]) == 41
    compilation.wait()
    assert compilation.find(model) is None and said == ["compiled step: its results differ by 0.1"]


@pytest.mark.slow
@pytest.mark.skipif("COCKPIT_LONG_TESTS" not in os.environ, reason="takes a minute: set COCKPIT_LONG_TESTS=1")
@pytest.mark.skipif(shutil.which("g++") is None, reason="a compiled step wants a compiler")
def test_a_step_is_compiled_in_the_background_and_kept(
    model: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, said = Home(tmp_path / "home").create(), []
    monkeypatch.setattr(compiled_step, "_FASTER", 1.0)
    monkeypatch.setattr(Trials, "_time", lambda trials, work: 1.0)  # which is faster is not what this is about
    expected = reply(model, 400)
    compilation = Compilation(home, str(base), said.append)
    pieces = stream(model, Letters(), PROMPT, Sampling(40), (), open_forward=compilation.open)
    assert len([*compilation.watch(model, pieces)]) == 41
    compilation.wait()
    assert said == ["compiled step: 1 times as fast"]
    assert reply(model, 400, compilation.open) == expected and compilation.find(model) is not None
    again = Compilation(home, str(base), said.append)
    again.open(model, lambda: False)
    again.wait()
    assert again.find(model) is not None and len(said) == 1
    assert [path.name for path in (home.cache / "compiled").iterdir()] == [f"{name_program(model)}.pt2"]
