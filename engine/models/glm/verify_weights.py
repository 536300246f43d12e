"""Checks after loading that every weight comes from the files: transformers fills missing ones with random numbers, and
only logs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.models.glm.generations import Generation
from engine.protocol.messages import Problem, ProblemError


def check(name: str, generation: Generation, report: Mapping[str, Any]) -> None:
    """Raises ProblemError when weights were missing, of another shape, or left over. `report` is what `from_pretrained`
    returns with `output_loading_info`."""
    for kind, words in (
        ("missing_keys", "are missing"),
        ("mismatched_keys", "have another shape than config.json says"),
        ("unexpected_keys", "are in the files and not in this model"),
        ("error_msgs", "could not be converted"),
    ):
        found = sorted(map(str, report.get(kind) or ()))
        if found:
            raise ProblemError(
                Problem(
                    code="model.unloadable",
                    title=f"{name} cannot be loaded as {generation.name}",
                    cause=f"{len(found)} weights {words}, {found[0]} among them",
                    hint=f"cockpit model verify {name}",
                )
            )
