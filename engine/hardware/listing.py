"""Lists the accelerators of this host, whoever made them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from engine.hardware import masks, sysfs
from engine.hardware.amd import Amd
from engine.hardware.nvidia import Nvidia
from engine.protocol.messages import Device


class Listing:
    """Samples the devices of one kind: NVIDIA's, else AMD's, else Intel's, else those that only have a device file."""

    def __init__(self, root: Path = Path("/"), *, watch: bool = False) -> None:
        """With `watch`, the errors that cards tell are collected from the first sample on."""
        self.note = ""
        self._root, self._nvidia, self._amd = root, Nvidia(watch=watch), Amd()

    def sample_devices(self) -> list[Device]:
        for source in (self._nvidia, self._amd):
            if devices := source.sample_devices():
                self.note = source.note
                return devices
        self.note = self._nvidia.note
        devices = sysfs.list_cards(self._root)
        kinds = {device.kind for device in devices}
        if kinds == {"amd", "intel"}:  # a process uses one kind
            devices = [device for device in devices if device.kind == "amd"]
            for index, device in enumerate(devices):
                device.index = index
        if devices:
            self.note = ""
            return devices
        for kind, count in sysfs.count_nodes(self._root).items():
            self.note = f"{self.note}; {count} devices by their files alone"
            return [Device(index=at, ordinal=at, kind=kind, name="", processes=None) for at in range(count)]
        return []


def list_visible(environment: Mapping[str, str] = os.environ) -> list[Device]:
    """The devices that a process with this environment sees, in the order in which its libraries count them."""
    cards = Listing().sample_devices()
    by_index = {card.index: card for card in cards}
    return [by_index[index] for index in masks.find_visible(cards, environment)]


def measure_free(device: Device) -> int | None:
    """Bytes that are free on a device; None where it does not report its memory."""
    if device.memory_used is None or device.memory_total is None:
        return None
    return device.memory_total - device.memory_used
