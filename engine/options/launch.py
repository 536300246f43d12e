"""The `launch` section of a profile: processes and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from engine.options.base import Options, option
from engine.options.tables import STRATEGIES

if TYPE_CHECKING:
    Strategy = str
else:
    Strategy = Literal[*STRATEGIES]


class LaunchOptions(Options):
    processes: Annotated[int, Field(ge=1)] | Literal["all"] = option(
        1, help="Ranks on this host, one per device; all: as many as there are devices."
    )
    devices: list[Annotated[int, Field(ge=0)]] | Literal["auto"] = option(
        "auto", help="Device indices, or auto for the free ones."
    )
    strategy: Strategy = option(
        "ddp",
        help="How ranks share the optimiser: "
        + "; ".join(f"{name}, {strategy.help}" for name, strategy in STRATEGIES.items())
        + ".",
    )
    nodes: int = option(1, help="Hosts.", ge=1, le=1)
    port: Annotated[int, Field(ge=1, le=65535)] | Literal["auto"] = option("auto", help="Rendezvous port.")
    restarts: int = option(0, help="Automatic restarts after a failure.", ge=0)
    environment: dict[str, str] = option(
        {}, help="Variables for the job. Never secrets: the profile is written to disk."
    )
