"""`cockpit data stats`: what a file's rows look like to a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine.prep import stats
from engine.prep.read_rows import Rejects
from engine.prep.stages.standalone import Progress, opened
from engine.prep.verbs.tokenize import find_tokenizer, load, loss_on_of, wanted_of
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, tokens, trained_tokens, length: {p50, p95, max, …}, …}` as `stats.measure` tells it; `plot` is the picture's path.

    Raises ValueError, ProblemError.
    """
    picture = Path(arguments.plot).expanduser().absolute() if arguments.plot else None
    if picture and picture.suffix.lower() != ".png":
        raise ValueError(f"--plot {arguments.plot}: the picture is a PNG, name it so")
    tokenizer_folder = find_tokenizer(arguments.model, home, progress)
    arguments.out = None
    with opened(home, "stats", arguments, {}, progress) as found:
        kinds = set(found.context.shapes)
        rejects = Rejects(lambda _: None, count=found.counts["rejected"])
        figures = stats.measure(
            found.rows,
            load(tokenizer_folder),
            wanted_of(kinds),
            loss_on_of(arguments.loss_on, kinds),
            arguments.max_length,
            arguments.by,
            found.context,
            rejects,
        )
    if picture:
        stats.plot(figures, picture)
        figures["plot"] = str(picture)
    return figures
