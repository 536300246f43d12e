"""Hosts that are this one, behind a real sshd on the loopback interface with a key and a configuration of its own."""

from __future__ import annotations

import getpass
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.training.warm import find_free_port

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin")


def find_missing() -> str:
    """Why no sshd can be started here; empty when one can."""
    missing = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
    return "needs openssh-server and openssh-client" if SSHD is None or missing else ""


class Hosts:
    """`options` are ssh's for the names in `names`. Each has an sshd of its own, so that one can be cut off.
    `inside` has the address of each, and the command that starts it in a network of its own."""

    def __init__(self, folder: Path, *names: str, inside: dict[str, list[str]] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        self.folder, self.names = folder, names
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        blocks = []
        for name in names:
            port = find_free_port()
            where = "127.0.0.1" if inside is None else inside[name][0]
            self.daemons[name] = self._start(name, where, port, [] if inside is None else inside[name][1:])
            blocks.append(
                f"Host {name}\n  HostName {where}\n  Port {port}\n  User {getpass.getuser()}\n"
                f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
                f"  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
            )
        (folder / "config").write_text("".join(blocks))
        self.options = ["-F", str(folder / "config")]

    def _start(self, name: str, address: str, port: int, inside: list[str]) -> subprocess.Popen[bytes]:
        config = self.folder / f"sshd-{name}"
        config.write_text(
            f"ListenAddress {address}\nPort {port}\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nStrictModes no\nPermitRootLogin yes\n"
            f"PasswordAuthentication no\nPrintMotd no\n"
        )
        assert SSHD is not None
        with open(self.folder / f"sshd-{name}.log", "ab") as log:
            daemon = subprocess.Popen([*inside, SSHD, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
        if not inside:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    socket.create_connection((address, port), 1).close()
                    return daemon
                except OSError:
                    time.sleep(0.05)
        return daemon

    def close(self) -> None:
        for daemon in self.daemons.values():
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(10)
