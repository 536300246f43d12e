"""The export service: it writes a target as a folder for use elsewhere. Request: `export {target, out, directory?,
adapter_only?, dtype?, gguf?, converter?}`."""

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
from engine.workers.service_loop import Cancelled, ErrorTexts, build_parser, serve_requests

_EVERY = 0.2
"""Seconds between two progress events of one stage."""
DTYPES = ("bfloat16", "float16", "float32")


class Export:
    """`cancelled` holds the ids of cancelled requests."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled

    def export(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`directory kind agreement`, and `gguf` where one was requested. Raises ProblemError, OSError and
        Cancelled."""
        from engine.export.request import ExportRequest
        from engine.export.run import export

        wanted = msgspec.convert(
            {name: value for name in ExportRequest.__dataclass_fields__ if (value := arguments.get(name)) is not None},
            ExportRequest,
        )
        if wanted.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {wanted.dtype!r}")
        directory = Path(arguments.get("directory") or self.home.root)
        target = targets.resolve(arguments["target"], self.home, directory)
        self.link.send_status("busy", target=target.label, detail="exporting")
        request, stage, sent = arguments["request"], "", 0.0

        def check_cancelled() -> None:
            if request in self.cancelled:
                raise Cancelled

        def progress(name: str, done: int, total: int) -> None:
            nonlocal stage, sent
            check_cancelled()
            now = time.monotonic()
            if name != stage or now - sent >= _EVERY:
                stage, sent = name, now
                share = f" {done / total:.0%}" if total else ""
                self.link.send_status("busy", target=target.label, detail=f"{name}{share}")
                self.link.send_event(request, "progress", stage=name, done=done, total=total)

        out = (directory / Path(arguments["out"]).expanduser()).absolute()
        made = export(target, out, wanted, self.home, progress, check_cancelled)
        return {
            "directory": str(made.directory),
            "kind": made.kind,
            "agreement": made.agreement,
            **({"gguf": made.gguf} if made.gguf else {}),
        }


def main() -> None:
    arguments = build_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the export removes what is half written
    cancelled: set[str] = set()
    home = Home.locate(arguments.home)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home, on_cancel=cancelled.add)
    service = Export(link, home, cancelled)
    serve_requests(
        link, cancelled, {"export": service.export}, ErrorTexts("This cannot be exported", "The export failed")
    )


if __name__ == "__main__":
    main()
