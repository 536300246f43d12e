"""Hosts that are network namespaces of this machine, on a wire that delays, loses and can be cut. Needs root.

The wire is a thread of the test that passes frames between virtual interfaces (TAP), since not every kernel has netem.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
import uuid
from pathlib import Path

from tests.cluster import UnavailableError

NEW_NETWORK = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def find_missing() -> str:
    """Why no namespaces can be made here; empty when they can."""
    if os.geteuid() != 0 or shutil.which("ip") is None or not Path("/dev/net/tun").exists():
        return "needs root, ip (iproute2) and /dev/net/tun"
    name = f"probe{uuid.uuid4().hex[:6]}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except (OSError, subprocess.SubprocessError):
        return "network namespaces cannot be made here"
    return ""


class Network:
    """This host (`NET.1`) and a namespace for each name, on one wire. `inside` is what `ssh.Hosts` takes. Each way
    takes `delay` seconds, and `loss` is the share of frames that are lost."""

    def __init__(self, *names: str, delay: float = 0.0, loss: float = 0.0) -> None:
        self.tag = uuid.uuid4().hex[:4]
        self.delay, self.loss, self.names = delay, loss, names
        self.net = f"10.{200 + int(self.tag[:1], 16)}.{int(self.tag[1:3], 16)}"
        self.inside: dict[str, list[str]] = {}
        self.lost = 0
        self._cut: set[int] = set()
        own = f"wire{self.tag}"
        self._ends: dict[str, int] = {}
        self._closing = threading.Event()
        self._wire = threading.Thread(target=self._carry, daemon=True)
        try:
            self._connect(own)
        except (OSError, IndexError, subprocess.SubprocessError) as error:
            self.close()
            raise UnavailableError(f"no network of namespaces can be made here: {error}") from error
        self._wire.start()

    def _connect(self, own: str) -> None:
        self._ends[""] = open_tap(own)
        self._configure([], own, 1)
        for index, name in enumerate(self.names, 2):
            ip("netns", "add", self.space(name))
            self._ends[name] = open_tap("eth0", self.space(name))
            self._configure(["-n", self.space(name)], "eth0", index)
            self.inside[name] = [f"{self.net}.{index}", "ip", "netns", "exec", self.space(name)]

    def _configure(self, where: list[str], interface: str, number: int) -> None:
        ip(*where, "addr", "add", f"{self.net}.{number}/24", "dev", interface)
        ip(*where, "link", "set", interface, "up")
        if where:
            ip(*where, "link", "set", "lo", "up")

    def space(self, name: str) -> str:
        return f"{name}{self.tag}"

    def cut(self, name: str) -> None:
        self._cut.add(self._ends[name])

    def mend(self, name: str) -> None:
        self._cut.discard(self._ends[name])

    def close(self) -> None:
        self._closing.set()
        if self._wire.is_alive():
            self._wire.join(5)
        for end in self._ends.values():
            os.close(end)
        for name in self.names:
            ip("netns", "delete", self.space(name), check=False)

    def _carry(self) -> None:
        """Every frame reaches all other ends, as on a hub."""
        chance = random.Random(1)
        underway: list[tuple[float, int, int, bytes]] = []
        count = 0
        selector = selectors.DefaultSelector()
        for end in self._ends.values():
            selector.register(end, selectors.EVENT_READ)
        while not self._closing.is_set():
            wait = max(0.0, underway[0][0] - time.monotonic()) if underway else 0.2
            for key, _ in selector.select(min(wait, 0.2)):
                frame = os.read(key.fd, 65536)
                if key.fd in self._cut:
                    continue
                if chance.random() < self.loss:
                    self.lost += 1
                    continue
                for end in self._ends.values():
                    if end != key.fd:
                        count += 1
                        heapq.heappush(underway, (time.monotonic() + self.delay, count, end, frame))
            while underway and underway[0][0] <= time.monotonic():
                _, _, end, frame = heapq.heappop(underway)
                if end not in self._cut:
                    try:
                        os.write(end, frame)
                    except OSError:
                        continue


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=10)


def open_tap(name: str, space: str = "") -> int:
    """Our end of a new virtual interface, in a namespace where one is named: a thread goes there to make it."""
    made: list[int] = []

    def make() -> None:
        if space:
            target = os.open(f"/var/run/netns/{space}", os.O_RDONLY)
            if ctypes.CDLL(None, use_errno=True).setns(target, NEW_NETWORK) != 0:
                return
            os.close(target)
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
        made.append(end)

    def attempt() -> None:
        with contextlib.suppress(OSError):
            make()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return made[0]
