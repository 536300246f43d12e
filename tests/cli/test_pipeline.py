"""The built-in pipelines, all their stages in one command: a service on the loopback, a tiny model, real workers."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.protocol import journal
from engine.protocol.home import Home, RunDirectory
from tests import plain
from tests.cli.conftest import Cockpit
from tests.evaluation.benchmark_files import CHOICES, HARNESS
from tests.prep.service import Act, LoopbackService, completion
from tests.training.test_profiles import LLAMA, family

SMALL = (
    "model.quantization=none",
    "model.dtype=float32",
    "adapter={kind: lora, rank: 4}",
    "training={max_steps: 2, micro_batch: 2, rehearsal: false, threads: 1}",
    "evaluation.samples=1",
    "generation.max_new_tokens=2",
    "logging={plots: false, tensorboard: false}",
    "limits={disk_free_gb: 0}",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, light: Path) -> Path:
    return family(tmp_path_factory.mktemp("llama"), LLAMA, light)


def settings(tiny: Path, *more: str) -> list[str]:
    return [part for change in (f"model.base={tiny}", *SMALL, *more) for part in ("--set", change)]


def graphs(number: int, body: dict[str, Any]) -> Act:
    """Two new thought graphs for each request."""
    made = [
        {
            "question": f"Would question {number}-{item} about {word} have an answer?",
            "standpoints": [
                {"id": f"s{side}", "text": f"{word} {side}", "arguments": [{"id": f"a{side}", "text": f"For {word}."}]}
                for side in "12"
            ],
            "counter_questions": [{"id": "c1", "text": f"What if {word} were not {number}?"}],
        }
        for item, word in enumerate(("rivers", "numbers"))
    ]
    return completion(json.dumps(made))


def stages_of(run: RunDirectory) -> list[str]:
    return [entry.stage for entry, _ in journal.read(run.lifecycle) if isinstance(entry, journal.Launched)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thought_graphs_from_examples_to_an_exported_model(
    cockpit: Cockpit, bare_home: Home, tiny: Path, tmp_path: Path
) -> None:
    with LoopbackService(graphs) as service:
        changes = settings(
            tiny,
            f"data.expand.base_url={service.url}",
            "data.expand.samples=6",
            "data.expand.per_request=2",
            "data.max_rows=20",
            "evaluation.thresholds=['schema_validity >= 0.9', 'loss < 100']",
        )
        given = {"DEEPSEEK_API_KEY": "sk-loop", "PYTHONPATH": str(HARNESS)}
        done = cockpit("train", "thought-graph-pipeline", "--json", *changes, seconds=400, **given)
        asked = len(service.prompts)
        assert asked >= 3 and service.keys == {"Bearer sk-loop"}
        # A missed threshold is told by the exit status; the run has done all its stages nevertheless.
        assert done.returncode == 1, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert (told["state"], told["step"], told["passed"]) == ("completed", 2, False)
        assert told["stages"] == ["check", "expand", "prepare", "train", "evaluate", "export"]
        assert [(each["threshold"], each["passed"]) for each in told["thresholds"]] == [
            ("schema_validity >= 0.9", False),
            ("loss < 100", True),
        ]
        assert "a threshold was not reached: schema_validity is 0" in done.stderr
        assert "train is done, in" in done.stderr and "its stages: check, expand, prepare" in done.stderr
        run = bare_home.run(told["run"])
        report = json.loads(run.report.read_text())
        assert report["test"]["rows"] > 0 and report["test"]["values"]["test/schema_validity"] == 0
        assert report["export"]["agreement"]["golden_equal"] == report["export"]["agreement"]["golden"] > 0
        named = {(each["part"], each["name"]) for each in report["data"]["files"]}
        assert {
            ("train", "thought_graph.jsonl"),
            ("train", "thought_graph_zh.jsonl"),
            ("train", "expanded-0.jsonl"),
        } <= named
        check_loads(run.exported)
        card = (run.exported / "README.md").read_text()
        for wanted in ("test/schema_validity", "MISSED", "thought_graph_zh.jsonl", f"run: {run.id}"):
            assert wanted in card
        assert "sk-loop" not in "".join(
            path.read_text(errors="replace") for path in run.path.rglob("*.*") if path.is_file()
        )
        # A threshold and a benchmark, and nothing but what they are about is done again: the service is not asked.
        limits = ["loss < 100"]
        if HARNESS.is_dir():
            (tmp_path / "capitals.yaml").write_text(CHOICES)
            (tmp_path / "choices.jsonl").write_text(
                '{"question": "The capital of France is", "choices": ["Paris", "seven"], "answer": 0}\n' * 3
            )
            limits.append("benchmark/capitals/acc >= 0")
            changes += ["--set", f"evaluation.benchmarks={{names: [capitals], rows: 2, folder: {tmp_path}}}"]
        changes += ["--set", f"evaluation.thresholds={limits}"]
        again = cockpit("train", "thought-graph-pipeline", "--from", "evaluate", *changes, seconds=120, **given)
        assert again.returncode == 0, again.stderr
        assert all(f"✓ passed  {limit}" in again.stdout for limit in limits)
        assert "✓ export    merged in" in again.stdout
        if len(limits) > 1:
            assert "rows of data.test, 2 rows of benchmarks" in again.stdout
            assert "benchmark/capitals/acc" in (run.exported / "README.md").read_text()
        assert stages_of(run) == ["prepare", "train", "evaluate", "export", "prepare", "evaluate", "export"]
        assert len(service.prompts) == asked


def check_loads(folder: Path) -> None:
    """In plain transformers, in a process that knows nothing of ours."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = (c.from_pretrained(sys.argv[1]) for c in (AutoModelForCausalLM, AutoTokenizer))\n"
        "asked = tokenizer.apply_chat_template([{'role': 'user', 'content': 'Why?'}], add_generation_prompt=True,\n"
        "    return_tensors='pt', return_dict=True)\n"
        "print(*model.generate(**asked, max_new_tokens=3).shape)"
    )
    assert plain.run(code, folder).startswith("1 ")


@pytest.mark.slow
def test_triples_killed_in_the_last_stage_and_gone_on_with(cockpit: Cockpit, bare_home: Home, tiny: Path) -> None:
    changes = settings(tiny, "data.test.0.max_rows=3", "evaluation.thresholds=[]")
    started = cockpit("train", "triples-pipeline", "--detach", *changes)
    run = bare_home.run(started.stdout.strip())
    worker = wait_for_worker(run, "export")
    os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (shown := json.loads(cockpit("show", run.id, "--json").stdout))["state"] != "failed":
        assert time.monotonic() < deadline, shown
        time.sleep(0.3)
    assert not run.exported.exists() and run.result("evaluate").is_file()
    resumed = cockpit("resume", run.id, "--json", seconds=120)
    assert resumed.returncode == 0, resumed.stderr
    told = json.loads(resumed.stdout.splitlines()[-1])
    assert told["stages"] == ["check", "prepare", "train", "evaluate", "export"]
    assert stages_of(run) == ["prepare", "train", "evaluate", "export", "export"]
    check_loads(run.exported)
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".")] == []


def wait_for_worker(run: RunDirectory, stage: str) -> int:
    """The pid of the worker of this stage, as soon as it has begun."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        for entry, _ in journal.read(run.lifecycle):
            if isinstance(entry, journal.Launched) and entry.stage == stage and psutil.pid_exists(entry.pid):
                return entry.pid
        time.sleep(0.05)
    raise AssertionError(f"{stage} was not begun: {run.log.read_text()[-2000:]}")
