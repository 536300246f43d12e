"""The export service: a target becomes a folder for others. Questions: `export {target, out, directory?, adapter_only?, dtype?, gguf?, converter?}`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.worker_link import Link
from engine.workers.questions import Cancelled, Wording, attend, parser

_EVERY = 0.2
"""Seconds between two words on one stage."""
DTYPES = ("bfloat16", "float16", "float32")


class Export:
    """`cancelled` holds the names of requests that were given up."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled

    def export(self, asked: dict[str, Any]) -> dict[str, Any]:
        """`directory kind agreement`, and `gguf` where one was asked for. Raises ProblemError, OSError and Cancelled."""
        from engine.export.request import ExportRequest
        from engine.export.run import export

        wanted = msgspec.convert(
            {name: value for name in ExportRequest.__dataclass_fields__ if (value := asked.get(name)) is not None},
            ExportRequest,
        )
        if wanted.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {wanted.dtype!r}")
        directory = Path(asked.get("directory") or self.home.root)
        target = targets.resolve(asked["target"], self.home, directory)
        self.link.status("busy", target=target.label, detail="exporting")
        request, stage, told = asked["request"], "", 0.0

        def check() -> None:
            if request in self.cancelled:
                raise Cancelled

        def progress(name: str, done: int, total: int) -> None:
            nonlocal stage, told
            check()
            now = time.monotonic()
            if name != stage or now - told >= _EVERY:
                stage, told = name, now
                share = f" {done / total:.0%}" if total else ""
                self.link.status("busy", target=target.label, detail=f"{name}{share}")
                self.link.say(request, "progress", stage=name, done=done, total=total)

        out = (directory / Path(asked["out"]).expanduser()).absolute()
        made = export(target, out, wanted, self.home, progress, check)
        return {
            "directory": str(made.directory),
            "kind": made.kind,
            "agreement": made.agreement,
            **({"gguf": made.gguf} if made.gguf else {}),
        }


def main() -> None:
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is half written is removed on the way out
    cancelled: set[str] = set()
    link = Link(arguments.address, arguments.job, arguments.attempt, on_cancel=cancelled.add)
    service = Export(link, Home.locate(arguments.home), cancelled)
    attend(link, cancelled, {"export": service.export}, Wording("This cannot be exported", "The export failed"))


if __name__ == "__main__":
    main()
