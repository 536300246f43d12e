"""Which devices a queued run may have: those that its masks leave visible, that no run holds, and that are really free,
by the latest sample of the host's devices. It says who holds the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from engine.config.profile import Profile
from engine.hardware import masks, wheels
from engine.options.launch import WaitOptions
from engine.protocol.environment import build_job_environment
from engine.protocol.messages import Device, Holder, Problem, ProblemError, Run
from engine.supervisor import scheduler
from engine.supervisor.runs import HOST

SMALL = 500_000_000
"""Bytes that processes may hold on a device that is free all the same: a context without a model in it."""
UNUSED_SHARE, UNUSED_BYTES = 0.1, 2 << 30
"""The memory of a device in use, whichever is more, up to which it is free where processes say nothing: screens need
some."""


class Assigned(NamedTuple):
    """`devices` are the run's, None while it must wait; then `holders` hold those that it waits for, and `words` say
    so."""

    devices: list[int] | None
    holders: list[Holder]
    words: str


class Devices:
    """`sample` returns the latest sample of the host's devices; `own` is the engine's environment."""

    def __init__(self, sample: Callable[[], Sequence[Device]], own: Mapping[str, str] = os.environ) -> None:
        self._sample, self._own = sample, own
        self._free_since: dict[tuple[str, int], float] = {}
        """When a device became free for a run, by `time.monotonic()`."""
        self._taken_since: dict[int, float] = {}
        """When a device was first seen in use, in seconds since the epoch."""
        self._had_any = False
        """Whether this engine has seen devices: when they vanish, queued runs do not start on the CPU."""

    def list_visible(self, environment: Mapping[str, str]) -> list[Device]:
        """The devices that a job with this environment may use. Raises ProblemError when the engine's masks and its own
        have none in common: it would quietly compute on the CPU."""
        cards = self._sample()
        self._had_any = self._had_any or bool(cards)
        by_index = {card.index: card for card in cards}
        visible = [by_index[index] for index in masks.find_visible(cards, self._own, environment)]
        alone = [masks.find_visible(cards, each) for each in (self._own, environment)]
        if not visible and all(alone):
            raise ProblemError(_describe_disjoint(*alone))
        return visible

    def restrict(
        self, environment: Mapping[str, str], chosen: Sequence[int] | None = None, count: int | None = None
    ) -> dict[str, str]:
        """The environment of a job that may use the chosen devices, or all that are visible to it. Raises ProblemError
        as `list_visible` does."""
        if chosen is None:
            self.list_visible(environment)
        cards = self._sample()
        known = [index for index in chosen or () if any(card.index == index for card in cards)]
        return masks.restrict(environment, self._own, cards, None if chosen is None else known, count)

    def check(self, run: str, profile: Profile, submitted: Mapping[str, str]) -> scheduler.Demand:
        """What a run needs, in the environment that its submitter sent. Raises ProblemError when this host can never
        provide it."""
        launch = profile.launch
        seen = self.list_visible(build_job_environment(submitted, launch.environment, self._own))
        visible = [card for card in seen if not _lacks_kernels(card)]
        demand = scheduler.Demand(
            run,
            launch.processes if isinstance(launch.processes, int) else None,
            tuple(launch.devices) if isinstance(launch.devices, list) else None,
        )
        spare = len(demand.devices or ()) - (demand.processes or len(demand.devices or ()))
        if spare > 0:
            raise ProblemError(_describe_spare(demand))
        if seen and not visible:
            raise ProblemError(_describe_kernels(seen[0]))
        try:
            scheduler.assign(demand, [card.index for card in visible], (), False, _list_instances(visible))
        except ValueError as error:
            if lacking := [card for card in seen if card not in visible]:
                raise ProblemError(_describe_kernels(lacking[0]))
            names = ", ".join(str(card.index) for card in visible) or "none"
            hidden = "; masks hide the others" if len(visible) < len(self._sample()) else ""
            raise ProblemError(
                Problem(
                    code="profile.host",
                    title="This host cannot run it",
                    cause=f"the profile {error} (devices that it may use: {names}{hidden})",
                    hint="set launch.processes and launch.devices",
                )
            )
        return demand

    def assign(self, run: str, profile: Profile, submitted: Mapping[str, str], busy: Mapping[int, str]) -> Assigned:
        """Devices for a run. `busy` are devices that runs hold, and which runs those are. Raises ProblemError as
        `check` does."""
        if self._had_any and not self._sample():
            return Assigned(None, [], "waits for the host's devices, which do not answer any more")
        demand = self.check(run, profile, submitted)
        environment = build_job_environment(submitted, profile.launch.environment, self._own)
        self._free_since = {key: since for key, since in self._free_since.items() if key[0] == demand.run}
        visible = [card for card in self.list_visible(environment) if not _lacks_kernels(card)]
        wanted = [card for card in visible if demand.devices is None or card.index in demand.devices]
        holders = {card.index: self._find_holders(card, demand, profile.launch.wait_for) for card in wanted}
        waiting = self._measure_wait(demand.run, holders, profile.launch.wait_for)
        indices, instances = [card.index for card in visible], _list_instances(visible)
        taken = {index for index in holders if holders[index]} | waiting.keys() | busy.keys()
        found = scheduler.assign(demand, indices, taken, HOST in busy, instances)
        if found is not None:
            return Assigned(found, [], "")
        relevant = holders if visible else (HOST,)
        of_runs = [Holder(device=index, job=busy[index]) for index in busy if index in relevant]
        of_others = [holder for index in holders if index not in busy for holder in holders[index]]
        return Assigned(None, of_runs + of_others, _describe_wait(of_runs + of_others, waiting, bool(visible)))

    def find_taken(self, run: Run, profile: Profile) -> list[Holder]:
        """Who has taken devices that the run was given, before its processes use them. A device that has vanished has
        nobody's name."""
        chosen = profile.launch.devices
        demand = scheduler.Demand(run.id, None, tuple(chosen) if isinstance(chosen, list) else None)
        cards = {card.index: card for card in self._sample()}
        gone = [Holder(device=index) for index in run.devices if index not in cards]
        there = [cards[index] for index in run.devices if index in cards]
        return gone + [each for card in there for each in self._find_holders(card, demand, profile.launch.wait_for)]

    def _find_holders(self, card: Device, demand: scheduler.Demand, wait: WaitOptions | None) -> list[Holder]:
        """Who keeps a device from being free for this run, largest first; empty when it is. Devices that the profile
        names are the user's choice: without `wait_for` nobody else counts on them."""
        if wait is None and demand.devices is not None:
            return []
        others = [each for each in card.processes or () if each.job != demand.run]
        used = card.memory_used
        if wait is not None and wait.free_bytes is not None and used is not None and card.memory_total is not None:
            free = card.memory_total - used >= wait.free_bytes
        elif sum(each.memory or 0 for each in others) > SMALL:
            free = False
        elif used is not None and card.memory_total is not None:
            mine = sum(each.memory or 0 for each in card.processes or () if each.job == demand.run)
            free = used - mine <= max(UNUSED_SHARE * card.memory_total, UNUSED_BYTES)
        else:
            free = not any(each.memory is None for each in others)
        if free:
            self._taken_since.pop(card.index, None)
            return []
        since = self._taken_since.setdefault(card.index, time.time())
        return [
            Holder(
                device=card.index,
                pid=each.pid,
                user=each.user,
                name=each.name,
                memory=each.memory,
                since=each.since or since,
                job=each.job,
            )
            for each in sorted(others, key=lambda each: each.memory or 0, reverse=True)
        ] or [Holder(device=card.index, memory=used, since=since)]

    def _measure_wait(
        self, run: str, holders: Mapping[int, list[Holder]], wait: WaitOptions | None
    ) -> dict[int, float]:
        """Seconds that devices must stay free until the run may have them; without those that it may have now."""
        now, left = time.monotonic(), {}
        for index, found in holders.items():
            if found:
                self._free_since.pop((run, index), None)
            else:
                since = self._free_since.setdefault((run, index), now)
                rest = (wait.seconds if wait else 0.0) - (now - since)
                if rest > 0:
                    left[index] = rest
        return left


def _list_instances(cards: Sequence[Device]) -> set[int]:
    return {card.index for card in cards if card.parent is not None}


def _lacks_kernels(card: Device) -> bool:
    """Whether the installed torch certainly cannot compute on a card. A worker checks it against the kernels that are
    really there."""
    capability = wheels.read_capability(card.capability)
    return capability is not None and wheels.is_impossible(capability, wheels.read_cuda_version())


def _describe_kernels(card: Device) -> Problem:
    capability, cuda = wheels.read_capability(card.capability) or (0, 0), wheels.read_cuda_version()
    return Problem(
        code="device.no_kernels",
        title=f"This torch cannot compute on GPU {card.index}",
        cause=wheels.describe_lack(card.name, capability, cuda),
        hint=wheels.suggest(capability, cuda),
    )


def _describe_disjoint(own: Mapping[int, str], sent: Mapping[int, str]) -> Problem:
    return Problem(
        code="device.masks_disjoint",
        title="The masks of the engine and of this shell have no device in common",
        cause=f"the engine was started with {', '.join(own.values())}, and this shell has {', '.join(sent.values())}",
        hint=(
            "change the mask of this shell, or start the engine from a shell without one: "
            "cockpit engine stop, then cockpit engine start"
        ),
    )


def _describe_spare(demand: scheduler.Demand) -> Problem:
    devices, processes = list(demand.devices or ()), demand.processes or 1
    first = devices[:processes]
    return Problem(
        code="launch.devices_unused",
        title=f"{len(devices)} devices for {processes} process{'es' if processes > 1 else ''}",
        cause=f"launch.devices is {devices}, and launch.processes is {processes}: a process computes on one device",
        hint=f"set launch.processes to {len(devices)} (or all) to use them all, or launch.devices to {first}",
    )


def _describe_wait(holders: Sequence[Holder], waiting: Mapping[int, float], has_devices: bool) -> str:
    """What a run waits for, in words."""
    if not has_devices:
        return "waits for " + ", ".join(holder.job for holder in holders if holder.job)
    parts = [f"GPU {holder.device}: {_describe_holder(holder)}" for holder in holders[:3]]
    if len(holders) > 3:
        parts.append(f"{len(holders) - 3} more")
    if waiting:
        parts.append(f"GPU {', '.join(map(str, waiting))}: free, and must stay so for launch.wait_for.idle")
    return "waits for " + "; ".join(parts)


def _describe_holder(holder: Holder) -> str:
    memory = f" holds {holder.memory / 1e9:.1f} GB" if holder.memory is not None else ""
    since = f" since {time.strftime('%H:%M', time.localtime(holder.since))}" if holder.since else ""
    if holder.job:
        return f"{holder.job}{memory}"
    if not holder.pid:
        return f"somebody{memory or ' has it'}{since}"
    name = f"{holder.name} of {holder.user}, pid {holder.pid}" if holder.name else f"unknown, pid {holder.pid}"
    return f"{name}{memory or ' has it'}{since}"
