"""GGUF targets in llama.cpp: with `llama-cpp-python` where it is installed, and with a stand-in of its API which
computes by transformers."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from engine.export import gguf_converter
from engine.inference import load
from engine.inference.llama_cpp_model import PACKAGE, choose_options, score_texts
from engine.inference.prefill import Cancelled
from engine.models.gguf import put_alone
from engine.protocol.home import Home
from tests.models.test_gguf import write

REAL = importlib.util.find_spec(PACKAGE) is not None
GREEDY = {"max_new_tokens": 24}


class FakeLlama:
    """What is used of `llama_cpp.Llama` 0.3, computed by transformers."""

    made: list[FakeLlama] = []

    def __init__(
        self,
        model_path: str,
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        logits_all: bool = False,
        verbose: bool = True,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        file = Path(model_path)
        with put_alone(file) as folder:
            if "unknown" in file.name:
                raise ValueError(f"Failed to load model from file: {file}")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            ).eval()
        self._room, self.ids, self.evaluated, self.closed = n_ctx, [], 0, False
        self.ctx = self
        self.made.append(self)

    def n_ctx(self) -> int:
        return self._room

    def n_vocab(self) -> int:
        return int(self._model.config.vocab_size)

    def reset(self) -> None:
        self.ids = []

    def eval(self, tokens: list[int]) -> None:
        assert not self.closed and len(self.ids) + len(tokens) <= self._room, "llama_decode returned 1"
        self.ids += tokens
        self.evaluated += len(tokens)
        with torch.inference_mode():
            self.scores = self._model(torch.tensor([self.ids])).logits[0].numpy()

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        found: list[int] = self.tokenizer(text.decode()).input_ids
        return found

    def close(self) -> None:
        self.closed = True


def fake_package() -> ModuleType:
    package = ModuleType(PACKAGE)

    def get_logits(context: FakeLlama, row: int) -> Any:
        context.last = numpy.ascontiguousarray(context.scores[row])
        return context.last.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    vars(package).update(
        __version__="0.3.0",
        __spec__=importlib.util.spec_from_loader(PACKAGE, None),
        Llama=FakeLlama,
        llama_get_logits_ith=get_logits,
        llama_supports_gpu_offload=lambda: False,
    )
    return package


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.skipif(not REAL, reason="not installed"))])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "stand-in":
        FakeLlama.made = []
        monkeypatch.setitem(sys.modules, PACKAGE, fake_package())
    yield request.param


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def test_llama_cpp_answers_with_our_tokens_and_sampling(package: str, home: Home, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")
    loaded = load(str(file), home=home, device="cpu")
    plain = load(str(file), home=home, device="cpu", dtype="float32")
    assert loaded.llama_cpp and "computed by llama.cpp" in loaded.note
    assert plain.llama_cpp is None and "llama.cpp" not in plain.note
    prompt = [{"role": "user", "content": "the moth"}]
    forward = loaded.llama_cpp.open(loaded.model, lambda: False)
    ids = loaded.prompt(prompt)
    first = forward(torch.tensor([ids]), None)
    then = forward(torch.tensor([[7]]), first.past_key_values)
    with torch.inference_mode():
        wanted = plain.model(torch.tensor([[*ids, 7]])).logits[:, -2:]
    found = torch.cat([first.logits, then.logits], 1)
    assert found.shape == wanted.shape
    assert float((wanted.log_softmax(-1).exp() * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum()) < 2e-3
    for sampling in (GREEDY, {**GREEDY, "temperature": 0.9, "top_k": 20, "seed": 5}):
        reply = loaded.chat(prompt, **sampling)
        assert reply.prompt_tokens == len(ids) and reply.finish in ("stop", "length")
        assert reply.ids == loaded.chat(prompt, **sampling).ids
        if package == "stand-in":
            assert reply.ids == plain.chat(prompt, **sampling).ids
    stop = loaded.chat(prompt, **GREEDY).text[2:4]
    assert stop not in loaded.chat(prompt, **GREEDY, stop=[stop]).text


def fail(*_: object, **options: object) -> None:
    raise ValueError("no memory")


@pytest.mark.parametrize("offloads", [False, True])
def test_it_computes_where_the_model_is(offloads: bool) -> None:
    package = SimpleNamespace(llama_supports_gpu_offload=lambda: offloads, LLAMA_SPLIT_MODE_NONE=0)
    threads = {"n_threads": torch.get_num_threads(), "n_threads_batch": torch.get_num_threads()}
    layers = {"n_gpu_layers": -1 if offloads else 0}
    card = {"split_mode": 0, "main_gpu": 1} if offloads else {}
    assert choose_options(package, "cpu", False) == {**threads, "n_gpu_layers": 0}
    assert choose_options(package, "cuda:1", False) == {**threads, **layers, **card}
    assert choose_options(package, "cuda:0", True) == {**threads, **layers}


def test_a_conversation_goes_on_where_it_was(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLlama.made = []
    monkeypatch.setitem(sys.modules, PACKAGE, fake_package())
    monkeypatch.setattr("engine.inference.llama_cpp_model._LEAST", 40)
    loaded = load(str(write(tmp_path / "m.gguf")), home=home, device="cpu")
    (llama,) = FakeLlama.made
    first = loaded.generate("the moth", max_new_tokens=4)
    before = llama.evaluated
    assert before == first.prompt_tokens + 3
    held = [*loaded.prompt("the moth"), *first.ids]
    forward = loaded.llama_cpp.open(loaded.model, lambda: False)  # type: ignore[union-attr]
    forward(torch.tensor([[*held, 5]]), None)
    assert llama.evaluated == before + 2  # only the reply's last token and what follows
    forward(torch.tensor([[1, 2, 3]]), None)
    assert llama.evaluated == before + 5 and llama.ids == [1, 2, 3]
    # A conversation that grows beyond the room is computed anew in a larger one.
    forward(torch.tensor([[9] * 45]), None)
    assert llama.closed and len(FakeLlama.made) == 2 and FakeLlama.made[1].n_ctx() == 90
    with monkeypatch.context() as full, pytest.raises(ValueError, match="no memory"):
        full.setattr(FakeLlama, "__init__", fail)
        forward(torch.tensor([[9] * 100]), None)
    forward(torch.tensor([[1, 2, 3]]), None)  # a failure to grow is that of one reply
    assert FakeLlama.made[1].closed and FakeLlama.made[2].ids == [1, 2, 3]
    with pytest.raises(Cancelled):
        loaded.llama_cpp.open(loaded.model, lambda: True)(torch.tensor([[8] * 9]), None)  # type: ignore[union-attr]


def test_a_file_that_llama_cpp_cannot_read_is_dequantised(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, fake_package())
    loaded = load(str(write(tmp_path / "unknown.gguf")), home=home, device="cpu")
    assert loaded.llama_cpp is None and "Failed to load model" in loaded.note
    assert loaded.generate("the", max_new_tokens=2).tokens


def test_an_export_is_measured_through_llama_cpp(package: str, home: Home, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")
    plain = load(str(file), home=home, device="cpu", dtype="float32")
    folder = tmp_path / "folder"
    plain.model.save_pretrained(folder)
    plain.tokenizer.save_pretrained(folder)
    found = gguf_converter._compare(folder, file)
    assert found["measured_by"].startswith("llama.cpp (llama-cpp-python")
    assert found["kl"] < 2e-3 and found["top1"] > 0.9 and found["same_tokens"] == 1
    assert found["perplexity"] == pytest.approx(found["perplexity_before"], rel=0.02)
    scores, own, _ = score_texts(file, ["the moth"], [[4, 5, 6]])
    assert scores[0].shape == (3, plain.model.config.vocab_size) and own == [plain.tokenizer("the moth").input_ids]
