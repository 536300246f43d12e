"""report.json: environment, settings and results of a run, enough to repeat it on another machine. Each stage adds its
part."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import stage_plan
from engine.config.profile import Profile
from engine.models import limits
from engine.models.versions import list_versions
from engine.options import thresholds
from engine.options.thresholds import Verdict
from engine.protocol import stages
from engine.protocol.home import RunDirectory, write_private
from engine.training import memory_report

if TYPE_CHECKING:
    from engine.training.job import Job

_DATA_KEYS = ("hash", "files", "rows", "tokens", "trained_tokens", "rejected")


def write_report(
    job: Job, status: str, step: int, results: dict[int, dict[str, float]], verdicts: list[Verdict], seconds: float
) -> None:
    """Write report.json beside the journal, without the parts of stages after training. Raises OSError."""
    done = [stage for stage in stage_plan.list_stages(job.profile) if stage not in stages.AFTER]
    document: dict[str, Any] = {
        "run": job.run.id,
        "status": status,
        "attempt": job.attempt,
        "step": step,
        "seconds": seconds,
        "stages": done if status == "completed" else done[:-1],
        "environment": list_versions()
        | {"platform": platform.platform(), "device": job.device.label, "processes": job.ranks.world},
        "compute_dtype": str(job.device.compute).removeprefix("torch."),
        "memory": memory_report.describe(job),
        "data": {key: job.prepared.get(key) for key in _DATA_KEYS},
        "recurrent": not job.profile.model.from_scratch and limits.is_recurrent(Path(job.prepared["base"])),
        "settings": job.profile.to_dict(),
        "evaluations": [{"step": key, "values": values} for key, values in sorted(results.items())],
        "thresholds": _describe_verdicts(verdicts),
        "passed": all(verdict.passed for verdict in verdicts),
        "checkpoints": [{"step": key, "metrics": metrics} for key, metrics in sorted(job.checkpoints.items())],
    }
    write_private(job.run.report, json.dumps(document, ensure_ascii=False, indent=1).encode())


def extend_report(run: RunDirectory, stage: str, **parts: Any) -> None:
    """Add the results of a stage after training. Raises OSError."""
    document = _read(run)
    before = [each for each in document.get("stages", []) if stages.STAGES.index(each) < stages.STAGES.index(stage)]
    document |= {"stages": [*before, stage], **parts}
    write_private(run.report, json.dumps(document, ensure_ascii=False, indent=1).encode())


def judge_test(run: RunDirectory, profile: Profile, tested: Mapping[str, float | None]) -> list[Verdict]:
    """Check the thresholds on the metrics of the test rows, `test/…`, and add the verdicts to the report. Raises
    OSError.

    A threshold without a group, or on held-out rows, applies to the last evaluation: that of the test rows where it has
    the metric, else the last one during training.
    """
    document = _read(run)
    evaluations = document.get("evaluations") or [{"values": {}}]
    last = {f"eval/{name.partition('/')[2]}": value for name, value in tested.items()}
    verdicts = thresholds.check_thresholds(
        profile.evaluation.thresholds, {**evaluations[-1]["values"], **last, **tested}
    )
    document |= {"thresholds": _describe_verdicts(verdicts), "passed": all(verdict.passed for verdict in verdicts)}
    write_private(run.report, json.dumps(document, ensure_ascii=False, indent=1).encode())
    return verdicts


def _describe_verdicts(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [{"threshold": str(each.threshold), "value": each.value, "passed": each.passed} for each in verdicts]


def _read(run: RunDirectory) -> dict[str, Any]:
    found = json.loads(run.report.read_text(encoding="utf-8")) if run.report.is_file() else {"run": run.id}
    assert isinstance(found, dict)
    return found
