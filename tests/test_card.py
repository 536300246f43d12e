"""What `bench/card.sh` reckons and writes, without a card: operations, time limits, wheels, reports, the page."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import card, card_page, wheels
from bench.card_models import LLAMA_8B, TINY, count_operations, make_rows

ROOT = Path(__file__).parents[1]
ANSWERING = """
import json, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if request == {"die": True}:
        sys.exit(3)
    time.sleep(request.get("sleep", 0))
    print(json.dumps({"got": request}), flush=True)
"""


@pytest.mark.parametrize("shape", [TINY, LLAMA_8B], ids=lambda shape: shape.name)
def test_operations_are_those_of_all_matrices_and_of_attention(shape: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape.config))
    matrices = sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear))
    rows = [[0] * 100, [0] * 300]
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * (100 * 100 + 300 * 300)
    for weights in (4, 6):
        total = 400 * count_operations(shape, rows, weights=weights)
        assert total == pytest.approx(400 * weights * matrices + attention, rel=1e-12)


@pytest.mark.parametrize("shape", [TINY, LLAMA_8B], ids=lambda shape: shape.name)
def test_there_is_a_micro_batch_of_rows_for_every_step(shape: Any) -> None:
    for length in shape.lengths:
        rows = make_rows(shape, length)
        assert len(rows) == shape.steps * (shape.tokens // length)
        assert all(length // 2 <= len(row) <= length for row in rows)


def test_a_measurement_that_hangs_or_dies_costs_itself_alone() -> None:
    worker = card.Worker([sys.executable, "-c", ANSWERING], limit=0.5, starting=20.0)
    try:
        until = time.monotonic() + 60
        assert worker.ask({"a": 1}, until) == {"got": {"a": 1}}
        assert "had not ended" in worker.ask({"sleep": 30}, until)["error"]
        assert worker.ask({"a": 2}, until) == {"got": {"a": 2}}
        assert "died" in worker.ask({"die": True}, until)["error"]
        assert worker.ask({"a": 3}, until) == {"got": {"a": 3}}
        assert "had not ended" in worker.ask({"sleep": 30}, time.monotonic() + 0.1)["error"]
    finally:
        worker.close()


def test_medians_shares_and_ratios_are_of_the_rounds_that_worked() -> None:
    def told(*rates: float) -> list[dict[str, Any]]:
        return [{"tokens_per_second": each, "tflops": each / 10, "tflops_palm": each / 5} for each in rates]

    name = "bf16 LoRA, rows of up to 8192 tokens"
    ours = told(300, 500, 400)
    for each, peak in zip(ours, (20.0, 25.0, 30.0), strict=True):
        each |= {"peak_gb": peak, "forecast_gb": 26.0}
    found = {
        "peak of matrix products": {"cockpit": [{"tflops": 100.0, "size": 8192}]},
        name: {
            "cockpit": ours,
            "trl": [*told(100, 250), {"error": "OutOfMemoryError: full | all"}],
            "trl, packing": [{"error": "ImportError: no such thing"}],
        },
        "decoding, one stream": {"cockpit": [{"error": "no time was left"}]},
    }
    summary = card.summarize(found)
    first, theirs = summary[name]["cockpit"], summary[name]["trl"]
    assert (first["tokens_per_second"], first["mfu"], first["mfu_palm"], first["rounds"]) == (400, 0.4, 0.8, 3)
    assert (theirs["cockpit_is_times"], theirs["rounds"]) == (2.5, 2)
    machine = {"cores": 1, "memory_gb": 1, "system": "Linux", "architecture": "x", "python": "3", "versions": {}}
    results = {"rehearsal": False, "model": "m", "card": {"card": "C"}, "ladder": summary, "seconds": 1.0}
    page = card_page.write_page({"date": "d", "machine": machine, "results": results})
    for part in (
        "40.0% (goal 55%)",
        "| 25.0 GB | 26 GB (+4.0 %) |",
        "failed: ImportError",
        "full \\| all",
        "failed: no time was left",
        "card C",
    ):
        assert part in page, part
    results["rehearsal"] = True
    assert "No GPU was used" in card_page.write_page({"date": "d", "machine": machine, "results": results})


def test_a_forecast_is_made_once_and_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all rounds of a measurement, of the settings that it ran with in the end; without one it counts."""
    asked: list[tuple[str, list[str]]] = []

    def answer(self: card.Worker, request: dict[str, Any], until: float) -> dict[str, Any]:
        asked.append((request["measure"], request["more"]))
        if request["measure"] == "forecast":
            return {"error": "no such thing"} if request["more"] == [] else {"forecast_gb": 3.0}
        full = request["length"] == 256 and request["more"] == []
        return {"error": "OutOfMemoryError: full"} if full else {"tokens_per_second": 1.0}

    monkeypatch.setattr(card.Worker, "ask", answer)
    ladder = card.Ladder(TINY, True, time.monotonic() + 60)
    for length in (64, 256):
        for _ in range(2):
            request = {"measure": "training", "length": length, "more": []}
            ladder._measure(card.Worker([]), f"{length}", "cockpit", request)
    again = ["training.gradient_checkpointing=true"]
    assert [more for kind, more in asked if kind == "forecast"] == [[], again]
    assert ladder.found["64"]["cockpit"] == 2 * [{"tokens_per_second": 1.0, "forecast_error": "no such thing"}]
    found = {"tokens_per_second": 1.0, "gradient_checkpointing": True, "forecast_gb": 3.0}
    assert ladder.found["256"]["cockpit"] == 2 * [found]
    assert card_page._describe_forecast(ladder.found["64"]["cockpit"][0]) == "failed: no such thing"


def test_the_report_of_the_tests_says_what_failed_and_why(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'one is not two'\n"
        "def test_out(): pytest.skip('no card')\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError('no fixture')\n"
        "def test_broken(broken): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml", str(file)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    found = card.read_tests(tmp_path / "out.xml")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    reasons = {name.partition(": ")[2]: each.get("reason", "") for name, each in found["tests"].items()}
    assert "one is not two" in reasons["test_bad"] and reasons["test_out"] == "no card"
    assert "no fixture" in reasons["test_broken"]


def test_only_wheels_of_missing_packages_are_installed(tmp_path: Path) -> None:
    names = ("PyTest-99.0-py3-none-any", "no_Such.thing-1.0-py3-none-any", "typing_extensions-9-py3-none-any")
    for name in names:
        (tmp_path / f"{name}.whl").touch()
    assert [each.name for each in wheels.list_missing(tmp_path)] == ["no_Such.thing-1.0-py3-none-any.whl"]


def test_the_script_says_how_to_use_it() -> None:
    done = subprocess.run([str(ROOT / "bench/card.sh"), "--help"], capture_output=True, text=True, check=True)
    assert "--wheels FOLDER" in done.stdout and "card_rehearsal" in done.stdout
