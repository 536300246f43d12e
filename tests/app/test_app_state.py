"""The reducer: snapshot, then what follows; selection; bounded memory."""

from __future__ import annotations

from cockpit.state.app_state import MAX_ENTRIES, MAX_SAMPLES, AppState, adjacent_run, reduce, select_run
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
    initial = snapshot("old", "live", "new")
    initial.runs[0].state = initial.runs[2].state = "completed"
    state = reduce(AppState(problem=Problem(title="gone")), initial)
    assert (state.connection, state.problem, state.selected) == ("attached", None, "live")
    assert [run.id for run in state.sorted_runs()] == ["new", "live", "old"]


def test_a_requested_run_is_selected_as_soon_as_it_is_reported() -> None:
    state = select_run(reduce(AppState(), snapshot("a")), "b")
    assert state.selected == "a"
    state = reduce(state, RunChanged(run=demo_run(id="b", created=9.0)))
    assert (state.selected, state.requested) == ("b", None)
    # The choice holds: another new run does not take the screen away.
    assert reduce(state, RunChanged(run=demo_run(id="c", created=10.0))).selected == "b"


def test_a_removed_run_leaves_nothing_behind() -> None:
    state = reduce(AppState(), snapshot("a", "b"))
    state = reduce(state, Told(run="b", entry={"kind": "warning", "message": "hot"}))
    state = reduce(state, RunRemoved(run="b"))
    assert (list(state.runs), state.selected, dict(state.histories)) == (["a"], "a", {})


def test_neighbours_stop_at_the_ends() -> None:
    state = reduce(AppState(), snapshot("a", "b", "c"))
    assert state.selected == "c"
    assert adjacent_run(state, -1) == "c"
    assert adjacent_run(state, 1) == "b"
    assert adjacent_run(AppState(), 1) is None


def test_show_replaces_the_history_and_the_journal_continues_it() -> None:
    run = demo_run()
    state = reduce(AppState(), Told(run=run.id, entry={"kind": "evaluation", "step": 1, "values": {}}))
    state = reduce(state, RunDetail(run=run, told=entries()))
    state = reduce(state, Told(run=run.id, entry={"kind": "phase", "name": "saving"}))
    history = state.histories[run.id]
    assert [entry["step"] for entry in history.evaluations] == [0, 25]
    assert history.start is not None and history.start["rows"] == 400
    assert history.phase == {"kind": "phase", "name": "saving"}
    assert reduce(state, Told(run=run.id, entry={"kind": "from a newer engine"})).histories[run.id] == history


def test_memory_is_bounded() -> None:
    state = reduce(AppState(), TelemetryHistory(samples=[telemetry(2, float(cpu)) for cpu in range(MAX_SAMPLES + 50)]))
    assert len(state.device_history["host/cpu_percent"]) == MAX_SAMPLES
    assert state.device_history["host/cpu_percent"][-1] == MAX_SAMPLES + 49
    assert set(state.device_history) >= {"device/0/utilisation", "device/1/memory_percent"}
    for step in range(MAX_ENTRIES + 10):
        state = reduce(state, Told(run="a", entry={"kind": "warning", "message": str(step)}))
    assert len(state.histories["a"].warnings) == MAX_ENTRIES


def test_a_value_that_a_device_does_not_report_is_absent() -> None:
    sample: Telemetry = telemetry(1)
    sample.devices[0].utilisation = None
    state = reduce(AppState(), sample)
    assert "device/0/utilisation" not in state.device_history
    assert state.telemetry is sample


def test_services_are_stored_as_they_are_reported() -> None:
    state = reduce(AppState(), ServiceChanged(service=Service(id="s1", kind="chat")))
    state = reduce(state, ServiceChanged(service=Service(id="s1", kind="chat", state="ready")))
    assert state.services["s1"].state == "ready"
