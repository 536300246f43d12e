"""Groups of runs as the list shows them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from cockpit.language.translate import tr
from cockpit.state.formatting import counted
from engine.protocol.messages import Run


def group_key(name: str) -> str:
    """Stands for the group where a run's id stands for a run. No id has a space in it."""
    return f"group {name}"


@dataclass
class RunGroup:
    """A heading in the list, with the group's runs in the list's order."""

    name: str
    runs: list[Run] = field(default_factory=list)
    folded: bool = False

    @property
    def key(self) -> str:
        return group_key(self.name)

    def lowest(self, metric: str) -> float | None:
        return min((run.metrics[metric] for run in self.runs if metric in run.metrics), default=None)

    def count_states(self) -> dict[str, int]:
        """State -> how many runs are in it."""
        counts: dict[str, int] = {}
        for run in self.runs:
            counts[run.state] = counts.get(run.state, 0) + 1
        return counts


def arrange(runs: Iterable[Run], folded: Collection[str]) -> list[Run | RunGroup]:
    """Each group with its runs below it where its first run is, unless it is folded; other runs where they are."""
    groups: dict[str, RunGroup] = {}
    order: list[Run | RunGroup] = []
    for run in runs:
        if not run.group:
            order.append(run)
            continue
        if run.group not in groups:
            order.append(groups.setdefault(run.group, RunGroup(run.group, folded=run.group in folded)))
        groups[run.group].runs.append(run)
    lines: list[Run | RunGroup] = []
    for each in order:
        lines.append(each)
        if isinstance(each, RunGroup) and not each.folded:
            lines += each.runs
    return lines


def list_groups(runs: Iterable[Run]) -> list[str]:
    """The names of all groups, the one with the newest run first."""
    return list(dict.fromkeys(run.group for run in sorted(runs, key=lambda run: -run.created) if run.group))


def shared_group(runs: Sequence[Run]) -> str:
    """The group that all of them are in; empty without one."""
    names = {run.group for run in runs}
    return names.pop() if len(names) == 1 else ""


def describe_list(runs: Sequence[Run], shown: int | None, groups: int, sort: str, chosen: int) -> str:
    """The line above the list. `shown` is how many pass the filter; None without a filter."""
    count = str(len(runs)) if shown is None else tr("{shown} of {everything}", shown=shown, everything=len(runs))
    return tr(
        "{count} run{plural}{groups} · {live} live · sorted by {sort}{chosen}",
        count=count,
        plural="" if len(runs) == 1 else "s",
        groups=tr(" in {groups}", groups=counted(groups, "group")) if groups else "",
        live=sum(run.state in ("preparing", "running", "paused", "stopping") for run in runs),
        sort=tr(sort),
        chosen=tr(" · {chosen} chosen", chosen=chosen) if chosen else "",
    )
