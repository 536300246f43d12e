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
        target = targets.resolve(model.base, home or Home.locate(), directory)
        targets.check(target)
        if target.adapter is not None:
            # Its adapter would be left out without a word, and another model be trained than the one named.
            yield (
                "model.base",
                f"{model.base} is an adapter on {target.base}; training goes on from a whole model: name that base",
            )
    except ProblemError as error:
        problem = error.problem
        yield "model.base", ": ".join(part for part in (problem.title, problem.cause) if part)
