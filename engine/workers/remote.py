"""A node on another host, started over the user's own ssh: its end, and what comes from it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import deque

from engine.supervisor.crash_report import LAST_LINES
from engine.workers.meeting import WORD

SSH_FAILED = 255
"""ssh's exit status when it has failed itself; any other is the remote command's."""


def say(text: object, *, error: bool = False) -> None:
    """Print, unless the disk of the log is full: that must end nothing."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


class Remote:
    """A node on another host, started over ssh."""

    def __init__(self, host: str, index: int, command: list[str], variables: dict[str, str]) -> None:
        self.host, self.index = host, index
        self.tail: deque[str] = deque(maxlen=LAST_LINES)
        self.ended = 0.0
        self.heard, self.spoken, self.silent = time.monotonic(), False, False
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already, and says why
            self.process.stdin.write(json.dumps(variables).encode() + b"\n")
            self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard = time.monotonic()
            if line == WORD:
                self.spoken = True
                continue
            text = line.decode(errors="replace").rstrip("\r\n")
            self.tail.append(text)
            say(f"[{self.host}] {text}")

    def poll(self) -> int | None:
        status = self.process.poll()
        if status is not None and not self.ended:
            self.ended = time.monotonic()
            self._reader.join(1.0)
        return status

    @property
    def lost(self) -> bool:
        """Whether ssh itself has ended, and not what it started, or is alive and brings nothing from the node."""
        status = self.poll()
        return self.silent or (status is not None and (status == SSH_FAILED or status < 0))

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
