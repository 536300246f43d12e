"""The `launch` section of a profile: processes, devices and hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

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


ONE_WORD = r"^[^\s]+$"


class SlurmOptions(Options):
    """What the batch script of a run asks Slurm for; each is sbatch's option of that name."""

    partition: str | None = option(None, help="Partition.", pattern=ONE_WORD)
    account: str | None = option(None, help="Account to charge.", pattern=ONE_WORD)
    qos: str | None = option(None, help="Quality of service.", pattern=ONE_WORD)
    time: str | None = option(
        None, help="Time limit, such as 12:00:00 or 2-00:00:00.", pattern=r"^(\d+-)?\d+(:\d+){0,2}$"
    )
    gres: str | None = option(None, help="Generic resources of each node, such as gpu:4.", pattern=ONE_WORD)
    constraint: str | None = option(None, help="Features that the nodes must have.", pattern=ONE_WORD)
    nodes: int | None = option(None, help="Nodes; none: launch.nodes.", ge=1)
    extra: list[Annotated[str, Field(pattern=r"^--?[A-Za-z][^\n\r]*$")]] = option(
        [], help="Further options of sbatch, one each.", examples=[["--mem=64G", "--cpus-per-task=8"]]
    )
    save_before: int = option(
        120, help="How long before the time limit the run saves and queues itself again.", unit="s", ge=0, le=65535
    )
    requeue: bool = option(True, help="Whether Slurm may start the job again: after preemption, or a node's failure.")


class LaunchOptions(Options):
    via: Literal["local", "slurm", "ssh", "none"] = option(
        "local",
        help="What starts the ranks: this host; a Slurm job; ssh to launch.hosts; none: you, with a line that is "
        "printed for each host.",
    )
    processes: Annotated[int, Field(ge=1)] | Literal["all"] = option(
        1, help="Ranks on each host, one per device; all: as many as there are devices."
    )
    devices: list[Annotated[int, Field(ge=0)]] | Literal["auto"] = option(
        "auto", help="Device indices, or auto for the free ones."
    )
    wait_for: WaitOptions | None = option(
        None, help="Wait in the queue until the devices have this much memory free; none: auto takes unused ones."
    )
    priority: int = option(
        0, help="Place in the queue: runs with a higher priority start earlier, whenever they came.", ge=-100, le=100
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
    deepspeed: str | dict[str, Any] | None = option(
        None,
        help="With strategy deepspeed: the file of a ds_config, or its content; none: ZeRO stage 3 with the profile's "
        'settings. "auto" in it is filled in from the profile.',
        examples=["ds_config.json", {"zero_optimization": {"stage": 2}}],
    )
    nodes: int = option(1, help="Hosts.", ge=1, le=1024)
    hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@%-]*$")]] = option(
        [], help="With launch.via ssh: the hosts, as ssh knows them."
    )
    min_nodes: int | None = option(
        None, help="With launch.via ssh: go on with so many hosts when others do not answer; none: with all.", ge=1
    )
    ssh_options: list[str] = option([], help="Further options of ssh.", examples=[["-F", "/home/me/.ssh/cluster"]])
    python: str | None = option(
        None, help="The Python on the other hosts; none: the same path as here.", examples=["/shared/venv/bin/python"]
    )
    slurm: SlurmOptions | None = option(None, help="With launch.via slurm: what the job asks for.")
    port: Annotated[int, Field(ge=1, le=65535)] | Literal["auto"] = option("auto", help="Rendezvous port.")
    restarts: int = option(0, help="Automatic restarts after a failure.", ge=0)
    environment: dict[str, str] = option(
        {}, help="Variables for the job. Never secrets: the profile is written to disk."
    )

    @property
    def node_count(self) -> int:
        """How many hosts the ranks are on."""
        if self.via == "ssh":
            return len(self.hosts)
        return (self.job.nodes or self.nodes) if self.via == "slurm" else self.nodes

    @property
    def job(self) -> SlurmOptions:
        """What a Slurm job asks for."""
        return self.slurm or SlurmOptions()

    @property
    def single(self) -> bool:
        """Whether there is certainly one rank alone."""
        return self.processes == 1 and self.node_count == 1
