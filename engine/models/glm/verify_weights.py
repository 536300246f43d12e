"""After loading: is every weight the file's? transformers fills what is missing with random numbers and only logs
it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.models.glm.generations import Generation
from engine.protocol.messages import Problem, ProblemError


def check(name: str, generation: Generation, told: Mapping[str, Any]) -> None:
    """Raises ProblemError when `told`, what `from_pretrained` tells with `output_loading_info`, says that weights were
    missing, of another shape, or left over."""
    for kind, words in (
        ("missing_keys", "are missing"),
        ("mismatched_keys", "have another shape than config.json says"),
        ("unexpected_keys", "are in the files and not in this model"),
        ("error_msgs", "could not be converted"),
    ):
        found = sorted(map(str, told.get(kind) or ()))
        if found:
            raise ProblemError(
                Problem(
                    title=f"{name} cannot be loaded as {generation.name}",
                    cause=f"{len(found)} weights {words}, {found[0]} among them",
                    hint=f"cockpit model verify {name}",
                )
            )
