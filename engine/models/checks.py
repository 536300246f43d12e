"""Does the named base exist, and is it whole? Looks at file names and headers; loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError


def base(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` when `model.base` names nothing that could be loaded. A catalogue name is pulled on first need."""
    model = sections.get("model")
    if model is None:
        return
    try:
        targets.check(targets.resolve(model.base, home or Home.locate(), directory))
    except ProblemError as error:
        problem = error.problem
        yield "model.base", ": ".join(part for part in (problem.title, problem.cause) if part)
