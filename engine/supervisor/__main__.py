"""`python -P -m engine.supervisor --home DIR` runs a supervisor, one for each user, host and home. Exit status 3:
another one holds the lock."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path

from engine.protocol.home import Home
from engine.supervisor.operations import HANDLERS
from engine.supervisor.server import Server


class Log:
    """Writes to engine.log. On a full disk a line is dropped: logging must not end the supervisor."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine.supervisor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--workers", default="engine.workers", help="the package whose modules are started as workers")
    arguments = parser.parse_args()
    os.umask(0o077)
    home = Home.locate(arguments.home).create()
    lock = os.open(home.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 3
    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdout = sys.stderr = Log()  # type: ignore[assignment]
    server = Server(home, HANDLERS, arguments.workers)
    # SIGTERM wakes the loop rather than interrupting it: the engine ends in order, and the jobs go on.
    signal.signal(signal.SIGTERM, lambda *_: server.close())
    server.record_connection()
    try:
        server.run()
    finally:
        home.connection.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
