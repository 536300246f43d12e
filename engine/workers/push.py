"""`cockpit push`: uploads a model to a hub, in a process that the command line starts.

A run or checkpoint is exported first, into the home's cache, where an interrupted push finds it again, until it has
arrived. Exit status: 0 done, 1 the hub was not reached or refused, 2 a wrong request.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from engine.export import push
from engine.models import embedded, targets
from engine.models.targets import Target
from engine.protocol.console import GuardedConsole
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, to_json

ERR = GuardedConsole(stderr=True)
KNOWN = {embedded.NAME: "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Catalogue models, and what they are called on the hub."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="cockpit push")
    parser.add_argument("target")
    parser.add_argument("repository")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--hub", default="huggingface")
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--merged", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--message", default="Upload with cockpit")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        done = _push(Home(arguments.home), arguments)
    except (ProblemError, OSError) as error:
        problem = error.problem if isinstance(error, ProblemError) else _unwritable(error)
        ERR.print(": ".join(filter(None, (problem.title, problem.cause))), style="bold red", soft_wrap=True)
        if problem.hint:
            ERR.print(f"→ {problem.hint}", style="cyan", soft_wrap=True)
        if arguments.json:
            print(to_json({"error": problem.document()}))
        return 1 if problem.code == "push.failed" else 2
    print(to_json(done) if arguments.json else _describe(done))
    return 0


def _push(home: Home, arguments: argparse.Namespace) -> dict[str, Any]:
    push.check(arguments.repository, arguments.hub)
    target = targets.resolve(arguments.target, home, Path.cwd())
    folder = _find_folder(home, target, arguments.merged)
    uploads = push.list_uploads(folder, _hub_name(target))
    told = {"repository": arguments.repository, "folder": str(folder), "bytes": sum(each.size for each in uploads)}
    if arguments.dry_run:
        rows = {each.name: each.size for each in uploads}
        return told | {"private": not arguments.public, "files": rows, "dry_run": True}
    done = push.push(
        uploads,
        arguments.repository,
        hub=arguments.hub,
        public=arguments.public,
        message=arguments.message,
        progress=lambda line: ERR.print(f"sending {line}", soft_wrap=True),
    )
    if folder.is_relative_to(home.root / "cache" / "push"):
        shutil.rmtree(folder.parents[1], ignore_errors=True)  # an export of weights takes as much room as the model
    return told | done


def _find_folder(home: Home, target: Target, merged: bool) -> Path:
    """The target's own folder if it is no run and has a card, as exports do; else an export in the home's cache.

    An export is found again while nothing that it was made from has changed: a checkpoint may be written again, under
    the same name, by a run that was resumed from an earlier one, and a deleted run's name may be taken.
    """
    if target.run is None and (target.folder / push.CARD).is_file() and not merged:
        return target.folder
    from engine.export.request import ExportRequest
    from engine.export.run import export

    alone = target.adapter is not None and not merged
    made = home.root / "cache" / "push" / _hash(f"{target.folder}:{alone}")
    sources = {target.folder} if alone or target.on_hub else {target.folder, Path(target.base)}
    out = made / _hash("\n".join(map(_describe_files, sorted(sources)))) / target.label.replace("/", "-")
    if not out.exists():  # an export is complete or absent
        shutil.rmtree(made, ignore_errors=True)  # one of earlier weights
        ERR.print(f"exporting {target.label}", soft_wrap=True)
        export(target, out, ExportRequest(adapter_only=alone), home)
    return out


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe_files(folder: Path) -> str:
    """The files of a folder, with what changes when they are written."""
    found = [(path.name, path.stat()) for path in sorted(folder.glob("*")) if path.is_file()]
    return "\n".join(f"{name} {status.st_size} {status.st_mtime_ns} {status.st_ino}" for name, status in found)


def _unwritable(error: OSError) -> Problem:
    return Problem(
        code="file.unwritable",
        title="The export that is pushed cannot be written",
        cause=error.strerror or str(error),
        hint="make room in the home's cache, or export to another place and push that folder",
    )


def _hub_name(target: Target) -> str | None:
    """The hub's name of the target's base, where it is known."""
    if target.on_hub:
        return target.base
    return KNOWN.get(target.catalogue or Path(target.base).name)


def _describe(done: dict[str, Any]) -> str:
    if done.get("dry_run"):
        lines = [f"{size / 1e6:10.2f} MB  {name}" for name, size in done["files"].items()]
        what = "private" if done["private"] else "PUBLIC"
        return "\n".join([*lines, f"would go to {done['repository']} ({what}); nothing was sent"])
    what = "private" if done["private"] else "public"
    return f"{done['url']} ({what}): {len(done['sent'])} files sent, {len(done['kept'])} were there"


if __name__ == "__main__":
    guard()
    sys.exit(main())
