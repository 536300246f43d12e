"""The `launch` section of a profile: processes and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from engine.options.base import Options, option
from engine.options.tables import AUTO, STRATEGIES

if TYPE_CHECKING:
    Strategy = str
else:
    Strategy = Literal[*STRATEGIES, AUTO]


_UNITS = {"MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30, "s": 1.0, "m": 60.0, "h": 3600.0}


class WaitOptions(Options):
    """What a queued run waits for on each of its devices."""

    free_memory: str | None = option(
        None,
        help="Memory that is free, such as 20GB; none: nobody else holds the device.",
        pattern=r"^\d+(\.\d+)? ?(MB|GB|MiB|GiB)$",
        examples=["20GB"],
    )
    idle: str = option("0s", help="For how long: 60s, 5m, 1h.", pattern=r"^\d+(\.\d+)? ?(s|m|h)$", examples=["60s"])

    @property
    def free_bytes(self) -> float | None:
        return None if self.free_memory is None else _measure(self.free_memory)

    @property
    def seconds(self) -> float:
        return _measure(self.idle)


def _measure(text: str) -> float:
    """The amount of a number with a unit, in bytes or seconds."""
    number = text.rstrip("BGMhims ")
    return float(number) * _UNITS[text[len(number) :].strip()]


class LaunchOptions(Options):
    processes: Annotated[int, Field(ge=1)] | Literal["all"] = option(
        1, help="Ranks on this host, one per device; all: as many as there are devices."
    )
    devices: list[Annotated[int, Field(ge=0)]] | Literal["auto"] = option(
        "auto", help="Device indices, or auto for the free ones."
    )
    wait_for: WaitOptions | None = option(
        None, help="Wait in the queue until the devices have this much memory free; none: auto takes unused ones."
    )
    strategy: Strategy = option(
        "ddp",
        help="How ranks share the optimiser: "
        + "; ".join(f"{name}, {strategy.help}" for name, strategy in STRATEGIES.items())
        + "; auto, the first of these with which the run fits, by its forecast.",
    )
    offload: Literal["none", "cpu"] = option(
        "none",
        help="With strategy fsdp: keep weights, gradients and optimiser states in host memory, and bring each layer's "
        "weights to the device when it computes. Slower, for models that the devices together have no room for.",
    )
    nodes: int = option(1, help="Hosts.", ge=1, le=1)
    port: Annotated[int, Field(ge=1, le=65535)] | Literal["auto"] = option("auto", help="Rendezvous port.")
    restarts: int = option(0, help="Automatic restarts after a failure.", ge=0)
    environment: dict[str, str] = option(
        {}, help="Variables for the job. Never secrets: the profile is written to disk."
    )
