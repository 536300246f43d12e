"""What `evaluation.drift` costs a run, as a share of its training steps.

measured  Profiles that run on a CPU, with the embedded model, their own settings and data, and one thread: CPU seconds
          of a step, of the base's answers before the first step, and of a measurement, for the steps and evaluations
          that the profile has.
computed  The others that train on tokens, for a GPU: in tokens of forward passes, of which a training step takes two
          for each of its tokens (three when all weights are trained), and one more with gradient checkpointing. A pass
          over few tokens is counted as FLOOR tokens: reading the weights takes as long. The tokens are those of the
          profile's own rows, counted with the embedded model's tokenizer. `percent_between_evaluations` is the share
          for users' own rows, in a run so long that the base's answers do not count; it needs `every_steps`.

    python -m bench.drift [measured] [computed] [--steps 6]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import RESULTS, save
from engine.config.bundled import find_bundled
from engine.config.profile import Profile, load
from engine.models.catalogue import pull
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.worker_link import Link
from engine.training import session
from engine.training.drift import REPLY, SPOKEN_TOKENS, DriftMeter
from engine.training.inbox import Inbox
from engine.training.loop import TrainingLoop
from engine.training.reporter import Reporter

BASE = "smollm2-135m-instruct"
MEASURED = ("triples-qlora", "quick-check", "resource-limited")
COMPUTED = (
    "triples-16gb",
    "triples-20gb",
    "triples-24gb",
    "triples-8gpu",
    "chatglm-6b-qlora-20gb",
    "chatglm3-6b-qlora-8gpu",
    "sft-lora",
    "sft-full",
    "thought-graph-qlora",
    "pretrain-continued",
)
ITEMS = 64
"""Prompts and texts, of each of which a measurement is one pass."""
FLOOR = 160
"""Products of a card for each byte that it reads, about: 312 tera a second to 2 TB on an A100, 165 to 1 on an RTX
4090."""
CHANGES = ("logging.tensorboard=false", "logging.plots=false", "training.rehearsal=false", "limits={disk_free_gb: 0}")
BRIEF = ("evaluation.at_start=false", "evaluation.task=null", "data.validation=[]", "training.threads=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="measured|computed", help="default: both")
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    parts = arguments.parts or ["computed", "measured"]
    path = RESULTS / "drift.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    if "computed" in parts:
        results["computed"] = {name: _compute(name) for name in COMPUTED}
    if "measured" in parts:
        seconds = _watch()
        results["measured"] = {name: _measure(name, arguments.steps, seconds) for name in MEASURED}
    save("drift", results)


def _measure(name: str, steps: int, seconds: defaultdict[str, list[float]]) -> dict[str, Any]:
    seconds.clear()
    changes = (f"training.max_steps={steps}", f"evaluation.every_steps={steps // 2}", "evaluation.drift=true", *BRIEF)
    with tempfile.TemporaryDirectory() as folder:
        home = _make_home(Path(folder))
        whole, prepared = _prepare(name, home)
        _train(home, _load(name, home, *changes, "checkpoint={every_steps: 1000}"))
    step, measure = (statistics.median(seconds[key][key == "step" :]) for key in ("step", "measure"))
    begin, length = seconds["begin"][0], _count_steps(whole, prepared)
    evaluations = _count_evaluations(whole, length)
    return {
        "steps": length,
        "evaluations": evaluations,
        "cpu_s_a_step": step,
        "cpu_s_of_the_bases_answers": begin,
        "cpu_s_a_measurement": measure,
        "percent_of_the_steps": (begin + measure * evaluations) / (step * length) * 100,
    }


def _compute(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        whole, prepared = _prepare(name, _make_home(Path(folder)))
    options, cards = whole.training, _count_cards(whole)
    passes = (2 if whole.adapter.kind != "none" else 3) + options.gradient_checkpointing
    length = _count_steps(whole, prepared)
    run = prepared["tokens"] * options.epochs * passes / cards
    items = -(-ITEMS // cards)
    begin, measure = (FLOOR * (items + replies) for replies in (REPLY, SPOKEN_TOKENS))
    evaluations, every = _count_evaluations(whole, length), whole.evaluation.every_steps
    full = int(options.micro_batch) * options.accumulation * passes  # rows of a step on a card, in forward passes
    row = whole.data.max_length if whole.method.kind == "pretrain" else prepared["tokens"] / prepared["rows"]
    return {
        "steps": length,
        "evaluations": evaluations,
        "percent_of_the_steps": (begin + measure * evaluations) / run * 100,
        "percent_between_evaluations": measure / (every * full * row) * 100 if every else None,
    }


def _count_cards(profile: Profile) -> int:
    """Those that the profile names; one where it takes all there are."""
    count = profile.launch.processes
    return count if isinstance(count, int) else 1


def _count_rows_of_a_step(profile: Profile) -> int:
    return int(profile.training.micro_batch) * profile.training.accumulation * _count_cards(profile)


def _count_steps(profile: Profile, prepared: dict[str, Any]) -> int:
    options = profile.training
    epoch = -(-prepared["rows"] // _count_rows_of_a_step(profile))
    return options.max_steps or math.ceil(epoch * options.epochs)


def _count_evaluations(profile: Profile, steps: int) -> int:
    options = profile.evaluation
    every = options.every_steps or math.ceil(steps / profile.training.epochs)
    return -(-steps // every) + options.at_start


def _make_home(folder: Path) -> Home:
    home = Home(folder / "home").create()
    (home.models / BASE).symlink_to(pull(BASE, Home.locate().create(), lambda *_: None))
    return home


def _load(name: str, home: Home, *changes: str) -> Profile:
    return load(find_bundled("profiles") / f"{name}.yaml", [f"model.base={BASE}", *CHANGES, *changes], home)


def _prepare(name: str, home: Home) -> tuple[Profile, dict[str, Any]]:
    """A profile, and what is said of its own rows when they have been prepared."""
    profile = _load(name, home)
    return profile, prepare(profile, home, lambda *_: None)


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


def _train(home: Home, profile: Profile) -> None:
    run = home.run("run")
    run.path.mkdir(parents=True)
    run.profile.write_text(profile.to_yaml())
    (run.path / "job.json").write_text(json.dumps({"kind": "train", "directory": str(home.root)}))
    run.prepared.write_text(json.dumps(prepare(profile, home, lambda *_: None)))
    link, inbox = Link(f"ipc://{run.path}/nobody", run.id, 1), Inbox()
    inbox.connect(link)
    with contextlib.closing(link), contextlib.closing(Reporter(run, 1, link, 0)) as reporter:
        session.train(run, 1, profile, home.root, None, reporter, inbox)


if __name__ == "__main__":
    main()
