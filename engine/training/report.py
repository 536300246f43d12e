"""report.json: environment, settings and results of a run, from which another machine can repeat it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engine.evaluation.thresholds import Verdict
from engine.protocol.home import write_private
from engine.training.job import Job

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "cockpit")


def versions() -> dict[str, str]:
    """Python's and the libraries' versions; a library that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def write(
    job: Job, status: str, step: int, results: dict[int, dict[str, float]], verdicts: list[Verdict], seconds: float
) -> None:
    """Write report.json beside the journal. Raises OSError."""
    document: dict[str, Any] = {
        "run": job.run.id,
        "status": status,
        "attempt": job.attempt,
        "step": step,
        "seconds": seconds,
        "environment": versions()
        | {"platform": platform.platform(), "device": job.device.label, "processes": job.ranks.world},
        "compute_dtype": str(job.device.compute).removeprefix("torch."),
        "data": {key: job.prepared.get(key) for key in ("hash", "rows", "tokens", "trained_tokens", "rejected")},
        "settings": job.profile.resolved(),
        "evaluations": [{"step": key, "values": values} for key, values in sorted(results.items())],
        "thresholds": [
            {"threshold": str(each.threshold), "value": each.value, "passed": each.passed} for each in verdicts
        ],
        "checkpoints": [{"step": key, "metrics": metrics} for key, metrics in sorted(job.checkpoints.items())],
    }
    write_private(job.run.report, json.dumps(document, ensure_ascii=False, indent=1).encode())
