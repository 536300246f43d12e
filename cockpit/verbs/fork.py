"""`cockpit fork`: a new profile from that of a run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cockpit.language.translate import tr
from cockpit.verbs.output import emit, say
from engine.config.profile import parse
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError, RunDetail, RunRef


def fork(options: argparse.Namespace) -> int:
    """Write the run's profile, with changes, to a file that does not exist yet, or print it."""
    home = Home.locate(options.home)
    with Client(home) as client:
        detail: RunDetail = client.request("show", RunRef(run=options.run))
    text = detail.profile_text
    if options.overrides:
        profile = parse(text, f"{detail.run.id}/profile.yaml", Path.cwd(), options.overrides, home)
        for remark in profile.remarks:
            say(remark)
        text = profile.to_yaml()
    head = f"# from the run {detail.run.id}\n"
    text = head + text.removeprefix(head)
    if options.file is None:
        emit({"run": detail.run.id, "text": text}) if options.json else sys.stdout.write(text)
        return 0
    path = Path(options.file).expanduser().absolute()
    path = path if path.suffix else path.with_suffix(".yaml")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ProblemError(
            Problem(
                code="output.not_empty",
                title=tr("{path} exists", path=path),
                hint=tr("name a file that does not exist yet"),
            )
        ) from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    emit({"run": detail.run.id, "file": str(path)}) if options.json else print(path)
    return 0
