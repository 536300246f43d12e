"""A trained checkpoint is evaluated, exported and served on the device."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home, RunDirectory
from engine.protocol.journal import Evaluation, Start, read
from engine.protocol.sockets import list_directories
from tests.conftest import end_processes_of
from tests.serving.conftest import Kitchen

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]
ASKED = [{"role": "user", "content": "w3 w7 w1"}]


class _Watch:
    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def is_cancelled(self) -> bool:
        return False


def test_an_evaluation_measures_what_the_run_measured(
    device: str, trained: tuple[Home, RunDirectory], tmp_path: Path
) -> None:
    from engine.evaluation.request import EvaluationRequest
    from engine.evaluation.run import evaluate
    from engine.inference import load

    class Models:
        def language_model(self, target: Any, dtype: str | None, quantization: str | None) -> Any:
            loaded = load(target, home=home, dtype=dtype, quantization=quantization)
            places.append(str(loaded.model.device).partition(":")[0])
            return loaded

        def reward_model(self, target: Any) -> Any:
            raise AssertionError("this is a language model")

    home, run = trained
    places: list[str] = []
    told = [entry for entry, _ in read(run.events) if isinstance(entry, Evaluation)][-1].values
    request = EvaluationRequest(again=True, out=str(tmp_path / "out"))
    found = evaluate(run.id, request, home, tmp_path, Models(), _Watch())
    assert places == [device]
    assert found["metrics"]["loss"] == pytest.approx(told["eval/loss"], rel=1e-3)


def test_an_export_computes_what_its_checkpoint_computes(
    device: str, trained: tuple[Home, RunDirectory], tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from engine.export.request import ExportRequest
    from engine.export.run import export
    from engine.models import targets

    home, run = trained
    done = export(targets.resolve(run.id, home, tmp_path), tmp_path / "out", ExportRequest(), home)
    base = json.loads(run.prepared.read_text())["base"]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.checkpoint(4)).to(device).eval()
    merged = AutoModelForCausalLM.from_pretrained(done.directory).to(device).eval()
    ids = torch.tensor([[2, 9, 11, 5, 1, 3]], device=device)
    with torch.no_grad():
        expected, found = (model(ids).logits.float() for model in (tuned, merged))
        plain = AutoModelForCausalLM.from_pretrained(base).to(device)(ids).logits.float()
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert (plain - expected).abs().max() > 10 * (found - expected).abs().max()


def test_a_run_of_the_engine_computes_on_the_device(device: str, trained: tuple[Home, RunDirectory]) -> None:
    start = next(entry for entry, _ in read(trained[1].events) if isinstance(entry, Start))
    assert ("CPU cores" in start.facts["device"]) == (device == "cpu")


@pytest.fixture
def kitchen(tiny: Path, tmp_path: Path) -> Iterator[Kitchen]:
    kitchen = Kitchen(Home(tmp_path / "home").create(), tiny)
    yield kitchen
    end_processes_of(kitchen.home)
    for directory in list_directories(kitchen.home):
        shutil.rmtree(directory, ignore_errors=True)


def test_a_server_replies_as_the_model_does(device: str, kitchen: Kitchen) -> None:
    from engine.inference import load

    model = load(str(kitchen.model), home=kitchen.home)
    assert str(model.device).partition(":")[0] == device
    expected = model.chat(ASKED, max_new_tokens=12)
    served = kitchen.serve()
    body = {"model": str(kitchen.model), "messages": ASKED, "max_tokens": 12, "temperature": 0}
    request = urllib.request.Request(
        f"{served.address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = json.load(answer)
    finally:
        served.stop()
    assert told["choices"][0]["message"]["content"] == expected.text
    assert told["usage"]["completion_tokens"] == len(expected.ids)
