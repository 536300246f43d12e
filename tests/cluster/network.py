"""Two hosts that are network namespaces of this machine, joined by a bridge with delay and loss. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid


def find_missing() -> str:
    """Why no namespaces can be made here; empty when they can."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs root, and ip and tc (iproute2)"
    name = f"probe{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return ""


class Network:
    """A bridge on this host, and a namespace for each name. `inside` is what `Hosts` takes."""

    def __init__(self, *names: str) -> None:
        self.tag = uuid.uuid4().hex[:4]
        self.bridge = f"bt{self.tag}"
        self.names = names
        self.inside: dict[str, list[str]] = {}
        self.net = f"10.{200 + int(self.tag[:1], 16)}.{int(self.tag[1:3], 16)}"
        self._ip("link", "add", self.bridge, "type", "bridge")
        self._ip("addr", "add", f"{self.net}.1/24", "dev", self.bridge)
        self._ip("link", "set", self.bridge, "up")
        for index, name in enumerate(names, 2):
            space, outer = self.space(name), self.cable(name)
            self._ip("netns", "add", space)
            self._ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", outer, "master", self.bridge)
            self._ip("link", "set", outer, "up")
            self._ip("-n", space, "addr", "add", f"{self.net}.{index}/24", "dev", "eth0")
            self._ip("-n", space, "link", "set", "eth0", "up")
            self._ip("-n", space, "link", "set", "lo", "up")
            self.inside[name] = [f"{self.net}.{index}", "ip", "netns", "exec", space]

    def space(self, name: str) -> str:
        return f"{name}{self.tag}"

    def cable(self, name: str) -> str:
        return f"v{name[:4]}{self.tag}"

    def disturb(self, name: str, *how: str) -> bool:
        """Delay, lose: as `tc netem` says. False where the kernel has no netem."""
        command = ["tc", "qdisc", "replace", "dev", self.cable(name), "root", "netem", *how]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def cut(self, name: str, state: str = "down") -> None:
        self._ip("link", "set", self.cable(name), state)

    def close(self) -> None:
        for name in self.names:
            self._ip("netns", "delete", self.space(name), check=False)
        self._ip("link", "delete", self.bridge, check=False)

    def _ip(self, *arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=True)
