"""A real sshd on the loopback interface, and an ssh that knows it: keys, known hosts and configuration of their own.

Each name of `HOSTS` is an alias with a COCKPIT_HOME of its own, so that one machine is several hosts.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.scripted.bench import ROOT, wait_for

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
HOSTS = ("alpha", "beta")


class Loopback:
    """Use `environment` for whatever shall reach the hosts; `close` when done."""

    def __init__(self, folder: Path, far: Mapping[str, str]) -> None:
        """`far` are environment variables of the cockpit there."""
        assert SSHD
        self.folder = folder
        self.port = _find_port()
        for name in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "client.pub", folder / "authorized")
        key = (folder / "host.pub").read_text(encoding="utf-8").split()
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {key[0]} {key[1]}\n", encoding="utf-8")
        self._write_configurations()
        self.cockpit = self._write_script(
            "cockpit",
            *(f"export {name}='{value}'" for name, value in far.items()),
            "cd / || exit 1",
            f"exec '{sys.executable}' -I -S '{Path(__file__).with_name('far_cockpit.py')}' \"$@\"",
        )
        self.ssh = self._write_script("ssh", f"exec ssh -F '{folder / 'ssh_config'}' \"$@\"")
        self.environment = {"COCKPIT_SSH": str(self.ssh), "COCKPIT_REMOTE": str(self.cockpit)}
        self._server = self._launch()

    def find_refusal(self) -> str:
        """Why nobody can log in; empty when that works."""
        wait_for(lambda: self._is_listening() or self._server.poll() is not None, 10.0, "sshd")
        if self._server.poll() is not None:
            return (self.folder / "sshd.log").read_text(errors="replace").strip() or "it has ended"
        login = [str(self.ssh), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "alpha", "true"]
        done = subprocess.run(login, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        return f"{done.stderr.strip()} (status {done.returncode})" if done.returncode else ""

    def home(self, host: str) -> Path:
        return self.folder / host

    def _write_configurations(self) -> None:
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host'}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder / 'authorized'}\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\nAcceptEnv COCKPIT_HOME\n",
            encoding="utf-8",
        )
        every = (
            f"Host *\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder / 'client'}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder / 'known'}\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )
        own = "".join(f"Host {host}\n  SetEnv COCKPIT_HOME={self.home(host)}\n" for host in HOSTS)
        # As a user's own configuration may be, for sessions of the user's own.
        busy = "Host beta\n  RemoteCommand false\n  LocalForward 127.0.0.1:1 127.0.0.1:1\n  ExitOnForwardFailure yes\n"
        stranger = "Host stranger\n  UserKnownHostsFile /dev/null\nHost nowhere\n  Port 1\n"
        (self.folder / "ssh_config").write_text(own + busy + stranger + every, encoding="utf-8")

    def _write_script(self, name: str, *lines: str) -> Path:
        script = self.folder / f"{name}.sh"
        script.write_text("\n".join(("#!/bin/sh", *lines)) + "\n", encoding="utf-8")
        script.chmod(0o755)
        return script

    def _launch(self) -> subprocess.Popen[bytes]:
        if os.getuid() == 0:  # where sshd insists on it
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        command = [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with open(self.folder / "sshd.log", "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End the server and every connection: the host cannot be reached any more."""
        self.kill_sessions()
        self._server.kill()
        self._server.wait()

    def restart(self) -> None:
        self._server = self._launch()
        wait_for(self._is_listening, 10.0, "sshd")

    def kill_sessions(self) -> None:
        """kill -9 of what the server runs for its connections; the server goes on."""
        for process in self.find_sessions():
            process.send_signal(signal.SIGKILL)

    def find_sessions(self) -> list[psutil.Process]:
        """What the server runs for its connections."""
        try:
            children = psutil.Process(self._server.pid).children(recursive=True)
        except psutil.NoSuchProcess:  # it could not start
            return []
        return [each for each in children if each.name().startswith("sshd")]

    def find_clients(self) -> list[psutil.Process]:
        """The ssh processes that use this configuration."""
        marker = str(self.folder / "ssh_config")
        return [each for each in psutil.process_iter(["cmdline"]) if marker in (each.info["cmdline"] or [])]

    def close(self) -> None:
        self.stop()
        for client in self.find_clients():
            client.kill()


def _find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def far_environment() -> dict[str, str]:
    """Variables of a cockpit there, which is that of this checkout."""
    return {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
