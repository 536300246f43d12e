"""Ends a service on another host when no engine asks for it any more."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from engine.protocol import file_channel

LEASE = 120.0
"""Seconds without a sign of an engine. The next one of the same host takes a service over well before."""
LOOK = 5.0


def watch(address: str) -> None:
    """End this process when the engine's sign of life in the channel's folder has not changed for `LEASE` seconds. The
    content counts, and no clock of another host."""
    folder = Path(address.removeprefix(file_channel.SCHEME))
    threading.Thread(target=_watch, args=(folder,), name="lease", daemon=True).start()


def _watch(folder: Path) -> None:
    seen, changed = b"", time.monotonic()
    while time.monotonic() - changed < LEASE:
        time.sleep(LOOK)
        found = file_channel.read_lease(folder)
        if found != seen:
            seen, changed = found, time.monotonic()
    os.write(2, f"no word of an engine for {LEASE:.0f} s: this worker ends\n".encode())
    os._exit(0)
