"""The health of each rank's card in the run's metrics: the hottest, those that are ill, and the slowest rank's own.

NVML is asked in a thread, since it may hang with a card that is broken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from engine.config import card_health
from engine.training.ranks import Ranks

PERIOD = 5.0


class CardWatch:
    """The temperature and the faults of this rank's card; 0 of each for what reports nothing."""

    def __init__(self, device: Any, ranks: Ranks, *, simulated: bool = False) -> None:
        self._ranks = ranks
        self._latest = (0.0, 0.0)
        self._stop = threading.Event()
        self._has_cards = device.kind == "cuda" and not simulated
        if self._has_cards:
            threading.Thread(target=self._run, args=(_make_reader(device),), name="card", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def take(self) -> list[float]:
        """For the sum over all ranks: this rank's temperature and faults, in their own places."""
        found = [0.0] * (2 * self._ranks.world if self._has_cards else 0)
        if found:
            found[2 * self._ranks.rank : 2 * self._ranks.rank + 2] = self._latest
        return found

    def describe(self, summed: Sequence[float], slowest: float | None) -> dict[str, float | None]:
        """The metrics of the ranks' sum of `take`. `slowest` is the rank that the others wait for."""
        temperatures, faults = summed[::2], summed[1::2]
        if not any(temperatures) and not any(faults):
            return {}
        ill = [rank for rank, flags in enumerate(faults) if flags]
        flags = 0
        for each in faults:
            flags |= int(each)
        values: dict[str, float | None] = {
            "card/temperature": max(temperatures),
            "card/faults": float(flags),
            "card/ill": float(len(ill)),
        }
        if ill:
            values["card/ill_rank"] = float(max(ill, key=lambda rank: int(faults[rank]) & card_health.BROKEN))
        if slowest is not None:
            rank = int(slowest)
            values |= {"time/slowest_temperature": temperatures[rank], "time/slowest_faults": faults[rank]}
        return values

    def _run(self, read: Callable[[], tuple[float, float]]) -> None:
        while True:
            self._latest = read()
            if self._stop.wait(PERIOD):
                return


def _make_reader(device: Any) -> Callable[[], tuple[float, float]]:
    """Reads the card that torch computes on; finds it by its UUID, whatever masks there are."""
    import torch

    from engine.hardware.nvidia import Nvidia

    properties = torch.cuda.get_device_properties(torch.device(device.name))
    uuid = str(getattr(properties, "uuid", ""))
    names = [uuid] if not uuid or uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
    nvml = Nvidia(watch=True)

    def read() -> tuple[float, float]:
        card = next((card for name in names if name and (card := nvml.sample_named(name))), None)
        return (card.temperature or 0.0, float(card_health.encode(card))) if card else (0.0, 0.0)

    return read
