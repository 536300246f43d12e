"""Hosts that are this one, behind a real sshd on the loopback interface with a key and a configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.cluster import UnavailableError
from tests.training.warm import find_free_port

READY = 15.0
"""Seconds that a host may take to answer for the first time."""
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
        self.folder, self.names = folder, names
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        self.options = ["-F", str(folder / "config")]
        try:
            self._start_all(inside)
            self._wait_until_ready()
        except (OSError, subprocess.SubprocessError, UnavailableError) as error:
            self.close()
            raise UnavailableError(f"sshd cannot be used here: {error}") from error

    def _start_all(self, inside: dict[str, list[str]] | None) -> None:
        folder = self.folder
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        blocks = []
        for name in self.names:
            port = find_free_port()
            where = "127.0.0.1" if inside is None else inside[name][0]
            self._commands[name] = self._configure(name, where, port, [] if inside is None else inside[name][1:])
            self.start(name)
            blocks.append(
                f"Host {name}\n  HostName {where}\n  Port {port}\n  User {getpass.getuser()}\n"
                f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
                f"  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
            )
        (folder / "config").write_text("".join(blocks))

    def _wait_until_ready(self) -> None:
        for name in self.names:
            deadline = time.monotonic() + READY
            while (done := self._ask(name)).returncode != 0:
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{name} does not answer: {done.stderr.strip()[-300:]}")
                time.sleep(0.1)

    def _ask(self, name: str) -> subprocess.CompletedProcess[str]:
        command = ["ssh", *self.options, "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", name, "true"]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=READY, check=False
        )

    def start(self, name: str) -> None:
        """Start the host's sshd, for the first time or after `refuse`."""
        with open(self.folder / f"sshd-{name}.log", "ab") as log:
            self.daemons[name] = subprocess.Popen(self._commands[name], stdout=log, stderr=log)

    def refuse(self, name: str) -> None:
        """Have a host take no further connection. Those that there are stay."""
        self.daemons[name].terminate()
        self.daemons[name].wait(10)

    def _configure(self, name: str, address: str, port: int, inside: list[str]) -> list[str]:
        config = self.folder / f"sshd-{name}"
        config.write_text(
            f"ListenAddress {address}\nPort {port}\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nStrictModes no\nPermitRootLogin yes\n"
            f"PasswordAuthentication no\nPrintMotd no\n"
        )
        assert SSHD is not None
        return [*inside, SSHD, "-D", "-e", "-f", str(config)]

    def close(self) -> None:
        for daemon in self.daemons.values():
            daemon.send_signal(signal.SIGCONT)
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
