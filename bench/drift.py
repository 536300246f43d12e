"""What `evaluation.drift` costs a run: CPU seconds of the base's answers and of a measurement, in steps of training.

A model of four of the embedded model's thirty layers, with its tokenizer, trains on the bundled triples in global
batches of eight rows, as the built-in profiles do. The logits of 49,152 tokens weigh more in it than in whole models,
and a measurement has more of them than a step, so the shares are upper bounds for larger models on a CPU.

    python -m bench.drift [--steps 12] [--base FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import save
from engine.config.bundled import find_bundled
from engine.config.profile import load
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.worker_link import Link
from engine.training import session
from engine.training.drift import DriftMeter
from engine.training.inbox import Inbox
from engine.training.loop import TrainingLoop
from engine.training.reporter import Reporter

LAYERS, HIDDEN = 4, 576
CHANGES = (
    "model.dtype=float32",
    "evaluation.drift=true",
    "evaluation.at_start=false",
    "evaluation.task=null",
    "data.validation=[]",
    "logging.tensorboard=false",
    "logging.plots=false",
    "training.rehearsal=false",
    "training.threads=1",
    "limits.disk_free_gb=0",
)
RUNS = {"quick-check": (1000, 100, 8), "resource-limited": (3000, 500, 4), "triples-24gb": (150, 200, 8)}
"""Steps of built-in profiles with their own data, steps from one evaluation to the next, and rows in a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--base", help="a model folder; default: random weights")
    arguments = parser.parse_args()
    seconds = _watch()
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder, "home")).create()
        base = arguments.base or str(_make_base(Path(folder, "base")))
        changes = [*CHANGES, f"model.base={base}", f"training.max_steps={arguments.steps}"]
        changes += [f"evaluation.every_steps={arguments.steps // 2}"]
        _train(home, changes)
    step = statistics.median(seconds["step"][1:])
    begin, measure = seconds["begin"][0] / step, statistics.median(seconds["measure"]) / step
    save(
        "drift",
        {
            "base": Path(arguments.base).name if arguments.base else f"{LAYERS} layers of {HIDDEN}, random",
            "cpu_s_a_step": step,
            "base_answers_in_steps": begin,
            "measurement_in_steps": measure,
            "percent_of_a_run": {
                name: (begin + measure * -(-steps // every)) * 8 / rows / steps * 100
                for name, (steps, every, rows) in RUNS.items()
            },
        },
    )


def _make_base(folder: Path) -> Path:
    from tests.conftest import USER_HOME
    from tests.training.test_profiles import LLAMA, family

    folder.mkdir()
    family(folder, LLAMA, USER_HOME.models / "smollm2-135m-instruct")
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = HIDDEN, 1536, LAYERS
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 9, 3, 64
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _watch() -> defaultdict[str, list[float]]:
    """Note the CPU seconds of each step, of the base's answers and of each measurement."""
    found = defaultdict[str, list[float]](list)

    def count(owner: Any, name: str, key: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any) -> Any:
            began = time.process_time()
            try:
                return function(*given)
            finally:
                found[key].append(time.process_time() - began)

        setattr(owner, name, counted)

    count(TrainingLoop, "train_step", "step")
    count(DriftMeter, "begin", "begin")
    count(DriftMeter, "measure", "measure")
    return found


def _train(home: Home, changes: list[str]) -> None:
    profile = load(find_bundled("profiles") / "quick-check.yaml", changes, home)
    run = home.run("run")
    run.path.mkdir(parents=True)
    run.profile.write_text(profile.to_yaml())
    (run.path / "job.json").write_text(json.dumps({"kind": "train", "directory": str(home.root)}))
    run.prepared.write_text(json.dumps(prepare(profile, home, lambda *_: None)))
    link, inbox = Link(f"ipc://{run.path}/nobody", run.id, 1), Inbox()
    inbox.connect(link)
    try:
        session.train(run, 1, profile, home.root, None, Reporter(run, 1, link, 0), inbox)
    finally:
        link.close()


if __name__ == "__main__":
    main()
