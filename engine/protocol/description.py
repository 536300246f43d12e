"""What messages say about runs, devices and services."""

from __future__ import annotations

from typing import Any

from engine.protocol.envelope import Message
from engine.protocol.problem import Problem


class Rank(Message, kw_only=True):
    """The state of one rank at its last heartbeat. Memory is in bytes; `device_*` are figures of the worker's
    allocator, 0 without a device."""

    rank: int
    pid: int
    phase: str = ""
    step: int = 0
    time: float = 0.0
    """When the rank last made progress, in seconds since the epoch."""
    resident: int = 0
    device_used: int = 0
    device_reserved: int = 0
    device_peak: int = 0
    waiting: bool = False
    """Whether it waits for the other ranks: a rank that waits does not hang."""
    host: str = ""
    """The host that it is on, where that may be another one than the supervisor's."""


class Holder(Message, kw_only=True):
    """Somebody who holds a device that a queued run waits for: a process, or another run. `memory` is in bytes, null
    where it is not reported; `pid` is 0 and the texts are empty where they are not known."""

    device: int
    pid: int = 0
    user: str = ""
    name: str = ""
    memory: int | None = None
    since: float = 0.0
    """Since when, in seconds since the epoch; 0 where that is not known."""
    job: str = ""
    """The run or service that it is, of this engine."""


class Run(Message, kw_only=True):
    """The summary of a run: enough for a list, a header and a progress bar. Times are seconds since the epoch, 0 where
    there is none."""

    id: str
    kind: str = "train"
    name: str = ""
    state: str = "queued"
    reason: str = ""
    """Why it is paused or lost, or what it waits for in the queue, in words; empty otherwise."""
    code: str = ""
    """The same as one of `codes.CODES`."""
    host: str = ""
    directory: str = ""
    profile: str = ""
    base: str = ""
    method: str = ""
    adapter: str = ""
    attempt: int = 0
    step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    epochs: float = 0.0
    created: float = 0.0
    started: float = 0.0
    """When the present attempt started."""
    ended: float = 0.0
    position: int = 0
    """Position in the queue, from 1; 0 when not queued."""
    priority: int = 0
    """Of waiting runs, those with a higher one start first."""
    devices: list[int] = []
    holders: list[Holder] = []
    """Who holds the devices that it waits for, while it is queued."""
    processes: int = 1
    phase: str = ""
    stage: str = ""
    """The stage that it is in or ended in: `prepare`, `train`, `evaluate` or `export`."""
    stages: list[str] = []
    """All stages that the profile asks for, in order."""
    global_batch: int = 0
    learning_rate: float = 0.0
    """That of the profile: the metric is the schedule's value at the latest step."""
    parameters: int = 0
    trainable_parameters: int = 0
    metrics: dict[str, float] = {}
    """The latest value of each metric."""
    problem: Problem | None = None
    tags: list[str] = []
    note: str = ""
    pinned: bool = False
    group: str = ""
    """`tags`, `note`, `pinned` and `group` are the user's own, see `Label`. The runs of a grid are a group."""


class CheckpointInfo(Message, kw_only=True):
    """A complete checkpoint on disk. `path` is absolute."""

    step: int
    path: str
    metrics: dict[str, float] = {}
    best: bool = False
    bytes: int = 0
    """What its files take on the disk."""


class AttemptEnd(Message, kw_only=True):
    """How an attempt of a run ended. Times are seconds since the epoch."""

    attempt: int
    state: str
    step: int = 0
    time: float = 0.0
    reason: str = ""
    code: str = ""
    problem: Problem | None = None


class LedgerLine(Message, kw_only=True):
    """A ledger entry of the journal."""

    step: int
    name: str
    old: Any = None
    new: Any = None
    time: float = 0.0
    code: str = ""


class RunDetail(Message, kw_only=True):
    """Everything that `show` returns about one run."""

    run: Run
    profile_text: str = ""
    checkpoints: list[CheckpointInfo] = []
    pids: list[int] = []
    ranks: list[Rank] = []
    ledger: list[LedgerLine] = []
    warnings: list[str] = []
    told: list[dict[str, Any]] = []
    """The latest journal entries other than metrics, oldest first, as JSON objects: the entries of earlier `told`
    events."""
    facts: dict[str, Any] = {}
    attempts: list[AttemptEnd] = []
    """How earlier attempts ended, oldest first: a resume clears the reason and the problem of `run`."""
    hosts: list[Telemetry] = []
    """The latest samples of the hosts that the run is on, where these are others than the engine's."""


class DeviceProcess(Message, kw_only=True):
    """A process that uses a device. `memory` is in bytes, null where it is not reported; `user` and `name` are empty
    where they cannot be known: the driver counts processes of other containers too."""

    pid: int
    user: str = ""
    name: str = ""
    memory: int | None = None
    since: float = 0.0
    """When it was started, in seconds since the epoch; 0 where that is not known."""
    job: str = ""
    """The run or service that it belongs to."""


class Health(Message, kw_only=True):
    """What a card says of its own health; null for a figure that it or its driver does not have. Clocks in MHz; errors
    are those since the driver was loaded."""

    clock: float | None = None
    clock_max: float | None = None
    throttled: list[str] | None = None
    """What slows it down now: `heat`, `power_brake`, `slowdown`, or `power_cap`, which is usual under full load."""
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    retired_pages: int | None = None
    remapped_rows: int | None = None
    reset_pending: bool | None = None
    """Whether memory with errors is replaced only once the card has been reset."""
    remap_failed: bool | None = None
    link_width: int | None = None
    """Lanes of the PCIe link; `link_generation` is its speed, which cards lower while they are idle."""
    link_width_max: int | None = None
    link_generation: int | None = None
    link_generation_max: int | None = None
    xids: list[int] = []
    """The numbers of the Xid errors that were seen since the engine was started."""


class Device(Message, kw_only=True):
    """One accelerator, or an instance of one that is divided by MIG. Memory in bytes, utilisation in percent,
    temperature in °C, power in watts; null where the device does not report it."""

    index: int
    """The number by which profiles and screens name it: the driver's for a card, from their count on for instances."""
    name: str
    kind: str = "nvidia"
    """`nvidia`, `amd`, `intel` or `ascend`."""
    uuid: str = ""
    ordinal: int | None = None
    """The number by which CUDA counts it without a mask; null for an instance, and for a card that cannot be
    reached."""
    parent: int | None = None
    """The index of the card that it is an instance of."""
    parent_uuid: str = ""
    capability: str = ""
    """CUDA's compute capability, such as `9.0`."""
    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    processes: list[DeviceProcess] | None = []
    """Null where the driver does not list them."""
    address: str = ""
    """Where it is on the PCI bus, such as `0000:3b:00`."""
    health: Health | None = None
    """Null where nothing is known of it."""


class Host(Message, kw_only=True):
    """The host. Memory and disk in bytes, temperature in °C, rates in bytes per second since the previous sample."""

    name: str = ""
    cpu_percent: float = 0.0
    cpu_count: int = 0
    per_cpu: list[float] = []
    load: list[float] = []
    memory_used: int = 0
    memory_total: int = 0
    disk_free: int = 0
    disk_total: int = 0
    disk_read: float = 0.0
    disk_write: float = 0.0
    network_in: float = 0.0
    network_out: float = 0.0
    temperature: float | None = None


class Telemetry(Message, tag="telemetry", kw_only=True):
    """A sample of the host and its devices, published once a second. `backend` is the kind of its devices, or
    `cpu`."""

    time: float
    host: Host
    devices: list[Device] = []
    backend: str = "cpu"
    visible: str = ""
    """The masks of devices that the engine inherited (`CUDA_VISIBLE_DEVICES=4,5`); empty when there are none."""
    note: str = ""
    """Why figures of devices are missing: no driver, or a query that it refuses."""


class Service(Message, kw_only=True):
    """A worker that answers requests rather than finishing a job. `kind`: `chat`, `data`, `evaluate`, `export`,
    `generate` or `serve`."""

    id: str
    kind: str
    state: str = "starting"
    """`starting`, `ready`, `busy` or `ended`."""
    pid: int = 0
    target: str = ""
    device: str = ""
    detail: str = ""
    address: str = ""
    """The URL of a server once it listens; empty for every other kind."""
    figures: dict[str, float] = {}
    """Counters of a server: requests, tokens …"""
    problem: Problem | None = None


class CleanItem(Message, kw_only=True):
    """Something under the home. `kind`: `checkpoint` (intermediate, of a completed run), `resume` (a checkpoint that a
    resume may need), `cache` (prepared rows that no run refers to), `deleted` (the rest of a deleted run or
    checkpoint)."""

    path: str
    kind: str
    run: str = ""
    step: int = 0
    bytes: int = 0
    safe: bool = True
    """Whether nothing needs it any more."""
    why: str = ""
