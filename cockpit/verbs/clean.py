"""`cockpit clean`: what takes room under the home, and the removal of what nothing needs."""

from __future__ import annotations

import argparse
import sys

from cockpit.language.translate import tr
from cockpit.state.formatting import format_size
from cockpit.verbs.output import console, emit, say, table
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import CleanItem, CleanQuery, CleanReply, RunRef

LISTED = 40
"""Items that a terminal shows."""


def clean(options: argparse.Namespace) -> int:
    """List what can be removed; remove it after a question, or at once with `--yes`."""
    with Client(Home.locate(options.home)) as client:
        if options.run:
            options.run = client.request("show", RunRef(run=options.run)).run.id
        found: CleanReply = client.request("clean", CleanQuery(), 600.0)
        wanted = [item for item in found.items if (item.safe or options.all) and _fits(item, options)]
        if not options.json:
            _print(found, [item for item in found.items if _fits(item, options)], wanted)
        removed: list[CleanItem] = []
        if wanted and (options.yes or (not options.json and _agrees(wanted))):
            message = CleanQuery(remove=[item.path for item in wanted], unsafe=options.all)
            removed = client.request("clean", message, 600.0).removed
    if options.json:
        emit(
            {
                "items": [item for item in found.items if _fits(item, options)],
                "removed": removed,
                "bytes": sum(item.bytes for item in removed),
                "disk_free": found.disk_free,
            }
        )
    elif removed:
        print(tr("{bytes} removed", bytes=format_size(sum(item.bytes for item in removed))))
        if left := len(wanted) - len(removed):
            say(tr("{left} of them could not be removed, or came into use meanwhile", left=left))
    return 0


def _fits(item: CleanItem, options: argparse.Namespace) -> bool:
    return not options.run or item.run == options.run


def _print(found: CleanReply, items: list[CleanItem], wanted: list[CleanItem]) -> None:
    if items:
        rows = [
            (item.path, format_size(item.bytes), "yes" if item.safe else tr("only with --all"), item.why)
            for item in items[:LISTED]
        ]
        table(("WHAT", "SIZE", "SAFE", "WHY"), rows)
    if len(items) > LISTED:
        say(tr("and {items} more, smaller ones", items=len(items) - LISTED))
    total, free = sum(item.bytes for item in wanted), format_size(found.disk_free)
    say(
        tr(
            "{wanted} can be removed, {total}; {free} of the disk are free",
            wanted=len(wanted),
            total=format_size(total),
            free=free,
        )
        if wanted
        else tr("Nothing to remove; {free} of the disk are free", free=free)
    )


def _agrees(wanted: list[CleanItem]) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say(tr("nothing was removed: --yes removes it"))
        return False
    console().print(tr("Remove these {wanted} permanently? [y/N] ", wanted=len(wanted)), end="", markup=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
