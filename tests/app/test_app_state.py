"""The reducer: snapshot, then what follows; selection; bounded memory."""

from __future__ import annotations

from cockpit.state.app_state import HISTORY, KEPT, State, neighbour, reduce, select
from engine.protocol.messages import (
    Problem,
    RunChanged,
    RunDetail,
    RunRemoved,
    Service,
    ServiceChanged,
    Snapshot,
    Telemetry,
    TelemetryHistory,
    Told,
)
from tests.app.fake import demo_run, entries, telemetry


def snapshot(*names: str, **changes: object) -> Snapshot:
    runs = [demo_run(id=name, created=float(at), **changes) for at, name in enumerate(names)]
    return Snapshot(session="s", seq=1, runs=runs)


def test_a_snapshot_attaches_and_selects_the_newest_live_run() -> None:
    told = snapshot("old", "live", "new")
    told.runs[0].state = told.runs[2].state = "completed"
    state = reduce(State(problem=Problem(title="gone")), told)
    assert (state.connection, state.problem, state.selected) == ("attached", None, "live")
    assert [run.id for run in state.listed()] == ["new", "live", "old"]


def test_a_wanted_run_is_selected_as_soon_as_it_is_told_of() -> None:
    state = select(reduce(State(), snapshot("a")), "b")
    assert state.selected == "a"
    state = reduce(state, RunChanged(run=demo_run(id="b", created=9.0)))
    assert (state.selected, state.wanted) == ("b", None)
    # The choice holds: another new run does not take the screen away.
    assert reduce(state, RunChanged(run=demo_run(id="c", created=10.0))).selected == "b"


def test_a_removed_run_leaves_nothing_behind() -> None:
    state = reduce(State(), snapshot("a", "b"))
    state = reduce(state, Told(run="b", entry={"kind": "warning", "message": "hot"}))
    state = reduce(state, RunRemoved(run="b"))
    assert (list(state.runs), state.selected, dict(state.told)) == (["a"], "a", {})


def test_neighbours_stop_at_the_ends() -> None:
    state = reduce(State(), snapshot("a", "b", "c"))
    assert state.selected == "c"
    assert neighbour(state, -1) == "c"
    assert neighbour(state, 1) == "b"
    assert neighbour(State(), 1) is None


def test_show_replaces_what_was_told_and_the_journal_goes_on() -> None:
    run = demo_run()
    state = reduce(State(), Told(run=run.id, entry={"kind": "evaluation", "step": 1, "values": {}}))
    state = reduce(state, RunDetail(run=run, told=entries()))
    state = reduce(state, Told(run=run.id, entry={"kind": "phase", "name": "saving"}))
    told = state.told[run.id]
    assert [entry["step"] for entry in told.evaluations] == [0, 25]
    assert told.start is not None and told.start["rows"] == 400
    assert told.phase == {"kind": "phase", "name": "saving"}
    assert reduce(state, Told(run=run.id, entry={"kind": "from a newer engine"})).told[run.id] == told


def test_memory_is_bounded() -> None:
    state = reduce(State(), TelemetryHistory(samples=[telemetry(2, float(cpu)) for cpu in range(HISTORY + 50)]))
    assert len(state.device_history["host/cpu_percent"]) == HISTORY
    assert state.device_history["host/cpu_percent"][-1] == HISTORY + 49
    assert set(state.device_history) >= {"device/0/utilisation", "device/1/memory_percent"}
    for step in range(KEPT + 10):
        state = reduce(state, Told(run="a", entry={"kind": "warning", "message": str(step)}))
    assert len(state.told["a"].warnings) == KEPT


def test_a_figure_that_a_device_does_not_tell_is_absent() -> None:
    sample: Telemetry = telemetry(1)
    sample.devices[0].utilisation = None
    state = reduce(State(), sample)
    assert "device/0/utilisation" not in state.device_history
    assert state.telemetry is sample


def test_services_are_kept_as_they_are_told() -> None:
    state = reduce(State(), ServiceChanged(service=Service(id="s1", kind="chat")))
    state = reduce(state, ServiceChanged(service=Service(id="s1", kind="chat", state="ready")))
    assert state.services["s1"].state == "ready"
