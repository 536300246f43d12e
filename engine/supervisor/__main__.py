"""`python -P -m engine.supervisor --home DIR` runs a supervisor, one for each user, host and home. Exit status 3:
another one holds the lock."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import resource
import signal
import sys
from pathlib import Path

from engine.protocol import sockets
from engine.protocol.home import Home
from engine.supervisor.operations import HANDLERS
from engine.supervisor.server import Server

MANY_FILES = 65536


class Log:
    """Writes to engine.log. On a full disk a line is dropped: logging must not end the supervisor."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""


def allow_many_files() -> None:
    """Raise the limit of open files, of which each client and each worker takes one, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine.supervisor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--workers", default="engine.workers", help="the package whose modules are started as workers")
    arguments = parser.parse_args()
    os.umask(0o077)
    home = Home.locate(arguments.home)
    with contextlib.suppress(OSError):
        home.create()
    allow_many_files()
    if not _lock(home):
        return 3
    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdout = sys.stderr = Log()  # type: ignore[assignment]
    server = Server(home, HANDLERS, arguments.workers)
    # SIGTERM wakes the loop rather than interrupting it: the engine ends in order, and the jobs go on.
    signal.signal(signal.SIGTERM, lambda *_: server.close())
    server.address.write()
    try:
        server.run()
    finally:
        with contextlib.suppress(OSError):
            server.address.remove()
    return 0


def _lock(home: Home) -> bool:
    """Take the lock of this home and host; False when another supervisor has it. Where the home cannot be written, its
    lock is opened to read, or one in the spare directory is taken."""
    for path, flags in (
        (home.lock, os.O_RDWR | os.O_CREAT),
        (home.lock, os.O_RDONLY),
        (sockets.make_spare(home) / home.lock.name, os.O_RDWR | os.O_CREAT),
    ):
        try:
            lock = os.open(path, flags, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    raise SystemExit(f"{home.lock} cannot be written")


if __name__ == "__main__":
    sys.exit(main())
