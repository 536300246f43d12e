"""What the list of hosts says about one engine, as lines of marked words. Pure."""

from __future__ import annotations

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.state.app_state import AppState
from cockpit.state.formatting import STATES, format_number, format_percent, format_size
from engine.protocol.messages import Device, Run, Telemetry
from engine.protocol.states import LIVE, QUEUED

MOST_RUNS = 4
"""Runs that are listed for each host; the rest are counted."""
BAR = 10
"""Cells of a bar."""


def describe_host(name: str, mark: tuple[str, str], link: str, state: AppState, here: bool) -> Content:
    """A host: its name and link, a line for each card, and its live and queued runs. `here`: its screens are shown."""
    runs = [run for run in state.sorted_runs() if run.state in LIVE]
    queued = sorted((run for run in runs if run.state == QUEUED), key=lambda run: run.position)
    live = [run for run in runs if run.state != QUEUED]
    counts = tr("{live} live · {queued} queued", live=len(live), queued=len(queued))
    if state.connection != "attached":
        counts = tr("last seen: {counts}", counts=counts) if state.runs else ""
    head = Content.assemble(
        (f"{mark[0]} ", mark[1]),
        (f"{name:<28} ", "bold $accent" if here else "bold $text"),
        (f"{link}  ", mark[1]),
        (counts, "$text-muted"),
    )
    lines = [head]
    if state.problem is not None and state.connection == "lost":
        hint = state.problem.hint and f"→ {tr_engine(state.problem.hint)}"
        texts = filter(None, (tr_engine(state.problem.title), tr_engine(state.problem.cause), hint))
        lines += [Content.styled(f"    {line}", "$text-error") for text in texts for line in text.splitlines()]
    if state.telemetry is not None and state.connection == "attached":
        lines += _describe_devices(state.telemetry)
    shown = [*live, *queued][:MOST_RUNS]
    lines += [_describe_run(run) for run in shown]
    if more := len(live) + len(queued) - len(shown):
        lines.append(Content.styled(tr("    and {more} more", more=more), "$text-muted"))
    return Content("\n").join(lines)


def _describe_devices(sample: Telemetry) -> list[Content]:
    """A line for each accelerator; without any, one for the processor."""
    if sample.devices:
        return [_describe_card(device) for device in sample.devices]
    host = sample.host
    return [
        _figures(
            "CPU",
            host.cpu_percent,
            host.memory_used,
            host.memory_total,
            tr("{cpu_count} cores", cpu_count=host.cpu_count),
        )
    ]


def _describe_card(device: Device) -> Content:
    return _figures(
        tr("GPU {index}", index=device.index), device.utilisation, device.memory_used, device.memory_total, device.name
    )


def _figures(title: str, busy: float | None, used: int | None, total: int | None, name: str) -> Content:
    share = 0.0 if busy is None else min(1.0, busy / 100)
    full = round(share * BAR)
    memory = "–" if used is None or not total else f"{format_size(used)}/{format_size(total)}"
    return Content.assemble(
        (f"    {title:<7}", "$text"),
        ("━" * full, "$accent"),
        ("─" * (BAR - full), "$primary 50%"),
        ("    –" if busy is None else f"{busy:4.0f}%", "bold $text"),
        (f"  {memory:<14}", "$text"),
        (name, "$text-muted"),
    )


def _describe_run(run: Run) -> Content:
    mark, colour = STATES.get(run.state, ("·", "$text"))
    place = f" {run.position}" if run.state == QUEUED and run.position else ""
    steps = f"{run.step:,}/{run.max_steps:,} {format_percent(run.step / run.max_steps)}" if run.max_steps else ""
    loss = (
        tr("loss {train_loss}", train_loss=format_number(run.metrics["train/loss"]))
        if "train/loss" in run.metrics
        else ""
    )
    reason = tr_engine(run.reason)
    facts = reason if run.state == QUEUED else "  ".join(filter(None, (steps, loss, reason)))
    return Content.assemble((f"    {mark} {tr(run.state)}{place}  ", colour), f"{run.id}  ", (facts, "$text-muted"))
