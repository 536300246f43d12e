"""The connection file, which tells everybody else where the supervisor's sockets are."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from engine.protocol import process, wire
from engine.protocol.home import Home, host_name
from engine.protocol.messages import PROTOCOL
from engine.supervisor.sockets import Sockets


class AddressRecord:
    """The record that this supervisor keeps while it runs. `session` is that of its clients."""

    def __init__(self, home: Home, sockets: Sockets, session: str) -> None:
        self._home, self._sockets, self._session = home, sockets, session
        self._connection: wire.Connection | None = None
        self._path: Path | None = None

    def write(self) -> None:
        """Raises OSError, ProblemError."""
        pid = os.getpid()
        self._connection = wire.Connection(
            pid=pid,
            start_time=process.read_start_time(pid),
            identity=process.read_identity(pid),
            protocol=PROTOCOL,
            session=self._session,
            host=host_name(),
            control=self._sockets.address("control"),
            workers=self._sockets.address("workers"),
        )
        self._path = wire.write_connection(self._home, self._connection)

    def keep(self) -> None:
        """Bind the sockets anew when their files are gone, and write the record when it is not ours."""
        self._sockets.renew()
        try:
            recorded = wire.read_connection(self._home)
            if recorded and recorded == self._connection and recorded.control == self._sockets.address("control"):
                return
            if recorded and recorded.pid != os.getpid() and wire.is_running(recorded):
                return  # the home was replaced, and has another engine now
            self.write()
        except (OSError, psutil.Error) as error:
            print(f"{self._home.connection}: {error}", flush=True)

    def remove(self) -> None:
        """Remove the record. Raises OSError."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
