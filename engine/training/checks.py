"""Combinations of settings that cannot work, each refused by name before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.evaluation import TASKS

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)


def combinations(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` for each combination refused. Sections that did not validate are missing and pass."""
    model, adapter, data = (sections.get(name) for name in ("model", "adapter", "data"))
    if model and adapter and adapter.kind == "none" and model.quantization != "none":
        yield (
            "model.quantization",
            f"a {model.quantization} base cannot be trained in full: choose adapter.kind lora, or quantization none",
        )
    evaluation = sections.get("evaluation")
    if evaluation and evaluation.task is not None:
        if evaluation.task not in TASKS:
            yield "evaluation.task", f"must be one of {', '.join(TASKS)}, not {evaluation.task!r}"
        elif data and not data.validation:
            yield "evaluation.task", "needs data.validation: replies are generated for held-out rows"
    launch = sections.get("launch")
    if launch:
        if (
            isinstance(launch.devices, list)
            and isinstance(launch.processes, int)
            and 0 < len(launch.devices) < launch.processes
        ):
            yield "launch.devices", f"names {len(launch.devices)} devices for {launch.processes} processes"
        for name in launch.environment:
            if _SECRET.search(name):
                yield (
                    f"launch.environment.{name}",
                    "looks like a secret, and the profile is written to disk: set it in the shell that submits the run",
                )
