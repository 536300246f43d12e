"""`cockpit profile new --from FILE`: writes a profile that trains on a file, a folder or a glob."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

from engine.config.profile import parse
from engine.prep import draft, outputs
from engine.prep.browse import Browser
from engine.prep.stages.standalone import Progress
from engine.protocol.home import Home
from engine.protocol.text import name_after


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{profile, rows, rejected, refused, base, method, max_length, split, steps, …, says, next}`: `profile` is the
    file that was written. Raises ValueError, ProblemError."""
    name = arguments.name or name_after(Path(arguments.source.rstrip("/*")).name)
    path = Path(arguments.out).expanduser().absolute() if arguments.out else Path.cwd() / f"{name}.yaml"
    outputs.check_files(home, [path], arguments.force)
    source: dict[str, Any] = {"source": arguments.source, "format": arguments.format or "auto"}
    document = {"data": {"train": [source]}}
    profile = parse(json.dumps(document), "new profile", Path.cwd(), home=home)
    browser = Browser(profile, home, lambda done, total: progress("reading", done, total))
    found = draft.draft_from(browser, home, name, lambda done, total: progress("tokenising", done, total))
    with outputs.writing(home, path):
        path.write_text(found.pop("profile"), encoding="utf-8")
    steps = [f"cockpit forecast {shlex.quote(str(path))}", f"cockpit train {shlex.quote(str(path))}"]
    if found["rejected"]:
        steps.insert(0, f"cockpit data validate {shlex.quote(arguments.source)}")
    if found["refused"]:
        steps[-1] += f" --set data.max_rejected={math.ceil(found['rejected_share'] * 100) / 100:g}"
    return {"profile": str(path), **found, "says": "\n".join(draft.describe(found)), "next": "\n".join(steps)}
