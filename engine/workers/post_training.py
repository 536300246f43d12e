"""The stages of a run after training: its best checkpoint is evaluated on the test rows, and exported.

Each stage writes its result into the run's directory and adds to report.json. An evaluation that was killed goes on
with what it had measured. A stage that succeeds writes no `End`, since another stage may go on with the same journal; a
failure ends the run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import stage_plan
from engine.config.profile import Profile, ProfileError, parse
from engine.models import libraries, targets
from engine.models.targets import Target
from engine.protocol import attempt_fence, stages
from engine.protocol.home import Home, RunDirectory, write_private
from engine.protocol.journal import Evaluation
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line
from engine.protocol.worker_link import Link
from engine.workers.run_journal import RunJournal

if TYPE_CHECKING:
    from engine.evaluation.request import EvaluationRequest
    from engine.evaluation.reward_scoring import PairScorer
    from engine.inference.loaded_model import LoadedModel

GROUP = "test/"
"""Prefix of the names of metrics on the test rows."""


@dataclass
class Stage:
    """One stage of one run. `target` is the run's best checkpoint, else its newest."""

    home: Home
    run: RunDirectory
    profile: Profile
    target: Target
    journal: RunJournal


def evaluate(stage: Stage) -> dict[str, Any]:
    """Evaluate on the test rows and on benchmarks; returns the content of `evaluated.json`."""
    from engine.evaluation import benchmarks
    from engine.evaluation.request import EvaluationRequest
    from engine.training import report

    options, outcome = stage.profile.evaluation.benchmarks, {}
    if stage_plan.has_test_rows(stage.profile):
        outcome["test"] = _measure(stage, "the test rows", EvaluationRequest(), GROUP)
    if options is not None:
        request = benchmarks.make_request(options, stage.profile.directory)
        outcome["benchmarks"] = _measure(stage, "benchmarks", request, "")
    values = {name: value for part in outcome.values() for name, value in part["values"].items()}
    verdicts = report.judge_test(stage.run, stage.profile, values)
    for verdict in verdicts:
        if not verdict.passed:
            stage.journal.warn(
                f"a threshold was not reached: {verdict}",
                "train longer, use more or better data, or change evaluation.thresholds",
                stage.target.step,
                code="evaluation.threshold_missed",
            )
    report.extend_report(stage.run, stages.EVALUATE, **outcome)
    return outcome


def _measure(stage: Stage, on: str, request: EvaluationRequest, group: str) -> dict[str, Any]:
    """Measure the target and journal the values, whose names get the prefix `group`; returns an entry of the report."""
    from engine.evaluation.run import evaluate as measure

    began = time.monotonic()
    watch = _Watch(stage.journal, on)
    found = measure(stage.target.label, request, stage.home, stage.run.path, _Models(stage.home, watch), watch)
    values = {f"{group}{name}": value for name, value in found["metrics"].items()}
    seconds = time.monotonic() - began
    totals = {
        name: value for name, value in values.items() if "." not in name
    }  # without the parts of a metric, such as each predicate's
    stage.journal.write(
        Evaluation(attempt=stage.journal.attempt, step=stage.target.step or 0, values=totals, seconds=seconds)
    )
    fields = ("rows", "replies", "data", "sha256", "directory", "notes", "versions")
    facts = {name: found[name] for name in fields if name in found}
    return {"step": stage.target.step, "values": values, "seconds": seconds, **facts}


def export(stage: Stage) -> dict[str, Any]:
    """Export the checkpoint; returns the content of `exported.json`."""
    from engine.export.request import ExportRequest
    from engine.export.run import export as export_target
    from engine.training import report

    options = stage.profile.export
    directory = stage.profile.directory
    out = Path(directory, options.output).expanduser() if options.output else stage.run.exported
    request = ExportRequest(
        adapter_only=options.kind == "adapter",
        dtype=options.dtype,
        gguf=options.gguf,
        converter=str(Path(directory, options.converter).expanduser()) if options.converter else None,
        replacing=options.output is None,
    )
    began = time.monotonic()

    def report_progress(name: str, done: int, total: int) -> None:
        stage.journal.progress(f"exporting: {name}", done, total)

    made = export_target(stage.target, out, request, stage.home, report_progress)
    outcome: dict[str, Any] = {
        "step": stage.target.step,
        "directory": str(made.directory),
        "kind": made.kind,
        "agreement": made.agreement,
        "gguf": made.gguf,
        "seconds": time.monotonic() - began,
    }
    report.extend_report(stage.run, stages.EXPORT, export=outcome)
    return outcome


STAGES = {stages.EVALUATE: evaluate, stages.EXPORT: export}


class _Watch:
    """Journals the progress of the evaluation."""

    def __init__(self, journal: RunJournal, on: str) -> None:
        self._journal, self._on = journal, on

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._journal.progress(f"evaluating on {self._on}: {stage}", done, total)

    def is_cancelled(self) -> bool:
        return False  # a stage is stopped by ending its process


class _Models:
    """Loads the models that the evaluation needs."""

    def __init__(self, home: Home, watch: _Watch) -> None:
        self._home, self._watch = home, watch

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> LoadedModel:
        libraries.import_all()
        from engine.inference.loaded_model import load

        return load(target, home=self._home, dtype=dtype, quantization=quantization, progress=self._watch)

    def reward_model(self, target: Target) -> PairScorer:
        from engine.evaluation.reward_scoring import PairScorer

        return PairScorer(target, lambda done, total: self._watch("loading", done, total))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--stage", choices=stages.AFTER, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the export removes what is half written
    home = Home(arguments.home)
    run = home.run(arguments.job)
    attempt_fence.hold(run.path, arguments.attempt)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home)
    journal = RunJournal(run, arguments.attempt, link)
    step = 0
    try:
        directory = Path(json.loads((run.path / "job.json").read_bytes())["directory"])
        profile = parse(run.profile.read_text(encoding="utf-8"), str(run.profile), directory, home=home, prepared=True)
        target = targets.resolve(run.id, home, directory)
        step = target.step or 0
        result = STAGES[arguments.stage](Stage(home, run, profile, target, journal))
        write_private(run.result(arguments.stage), json.dumps(result, ensure_ascii=False, indent=1).encode())
        return 0
    except ProblemError as error:
        journal.fail(error.problem, step)
    except ProfileError as error:
        journal.fail(
            Problem(code="profile.outdated", title="The run's profile is no longer valid", cause=str(error)), step
        )
    except Exception as error:  # noqa: BLE001 - any failure must be in the run's journal
        journal.fail(
            Problem(
                code="stage.failed",
                title=f"The stage {arguments.stage} failed",
                cause=f"{type(error).__name__}: {first_line(error)}",
                hint="the checkpoints are kept; `cockpit resume` continues with this stage",
                traceback=traceback.format_exc(),
            ),
            step,
        )
    finally:
        link.close()
    return 1


if __name__ == "__main__":
    sys.exit(main())
