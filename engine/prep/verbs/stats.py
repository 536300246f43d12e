"""`cockpit data stats`: statistics of a file's rows as a model sees them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine.prep import outputs, stats
from engine.prep.rows import Rejects
from engine.prep.stages.standalone import Progress, open_rows
from engine.prep.verbs.tokenize import choose_loss_on, find_kind, find_tokenizer, load_tokenizer
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, tokens, trained_tokens, length: {p50, p95, max, …}, …}` as `stats.measure` returns it; `plot` is the
    picture's path.

    Raises ValueError, ProblemError.
    """
    picture = Path(arguments.plot).expanduser().absolute() if arguments.plot else None
    if picture and picture.suffix.lower() != ".png":
        raise ValueError(f"--plot {arguments.plot}: the plot is a PNG file; give it a name that ends in .png")
    if picture:
        outputs.check_files(home, [picture], getattr(arguments, "force", False))
    tokenizer_folder = find_tokenizer(arguments.model, home, progress)
    arguments.out = None
    with open_rows(home, "stats", arguments, {}, progress) as found:
        formats = set(found.context.formats)
        rejects = Rejects(lambda _: None, count=found.counts["rejected"])
        figures = stats.measure(
            found.rows,
            load_tokenizer(tokenizer_folder),
            find_kind(formats),
            choose_loss_on(arguments.loss_on, formats),
            arguments.max_length,
            arguments.by,
            found.context,
            rejects,
        )
    if picture:
        with outputs.writing(home, picture):
            stats.plot(figures, picture)
        figures["plot"] = str(picture)
    return figures
