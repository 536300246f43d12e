"""Whatever is in a home costs the run that it belongs to, and nothing else: real engines over damaged files."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.protocol import journal, states
from engine.protocol.client import Client, ensure_engine
from engine.protocol.home import Home
from engine.protocol.messages import ListRuns, ProblemError, Resume, Run, RunRef, SeriesQuery, Set, Shutdown, Stop
from tests.conftest import end_processes_of
from tests.scripted.bench import Engine, wait_for

HUGE = 10**40
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `runs` of a home with a completed, a stopped and a failed run, as their engine left them."""
    home = Home(tmp_path_factory.mktemp("template") / "home").create()
    engine = Engine(home)
    try:
        made = {
            "completed": engine.submit(steps=12, pace=0.001),
            "stopped": engine.submit(steps=5000, pace=0.005),
            "failed": engine.submit("generation.seed=3", steps=12, pace=0.001),
        }
        engine.wait(made["completed"], states.COMPLETED)
        engine.wait_step(made["stopped"], 10)
        engine.client.request("set", Set(run=made["stopped"].id, changes={"training.max_steps": 4000}))
        engine.client.request("stop", Stop(run=made["stopped"].id))
        engine.wait(made["stopped"], states.STOPPED)
        engine.wait(made["failed"], states.FAILED)
    finally:
        engine.close()
    for name, run in made.items():
        (home.runs / run.id).rename(home.runs / name)
    yield home.runs
    shutil.rmtree(home.sockets, ignore_errors=True)


# ── mutations ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WHOLE: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "directory": _directory,
    "pipe": _pipe,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first-line": lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n"),
    "second-line": lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2])),
    "garbage-before": lambda path: path.write_bytes(b"\x00\x01garbage\n" + path.read_bytes()),
    "garbage-after": lambda path: path.write_bytes(path.read_bytes() + b'{"kind": "state", garbage\n'),
    "not-utf8": lambda path: path.write_bytes(b"\xff\xfe\xc3(\n" + path.read_bytes()),
    "deep": lambda path: path.write_bytes(path.read_bytes() + DEEP + b"\n"),
    "deep-field": lambda path: path.write_bytes(path.read_bytes() + b'{"kind": "ledger", "new": ' + DEEP + b"\n"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "nested-900": lambda path: path.write_bytes(
        path.read_bytes()
        + b'{"kind":"ledger","attempt":1,"time":1,"step":1,"name":"x","new":'
        + b"[" * 900 + b"]" * 900 + b"}\n"
    ),
    "poison": lambda path: path.write_bytes(
        path.read_bytes() + b'{"kind":"ledger","attempt":1,"time":1,"step":1,"name":"training.max_steps","new":null}\n'
    ),
}  # fmt: skip


def _field_mutations(path: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Each field of the first entry of each kind as null, as a huge number, and as text with half a surrogate."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    seen: set[str] = set()
    for index, line in enumerate(lines):
        entry = json.loads(line)
        if not isinstance(entry, dict) or (kind := str(entry.get("kind")) + str(entry.get("state", ""))) in seen:
            continue
        seen.add(kind)
        for field in entry:
            for label, value in (("null", None), ("huge", HUGE), ("half", "\ud800")):

                def change(target: Path, index: int = index, field: str = field, value: Any = value) -> None:
                    changed = json.dumps(json.loads(lines[index]) | {field: value}).encode()
                    end = b"\n" if path.suffix == ".jsonl" else b""
                    target.write_bytes(b"".join(each + end for each in (*lines[:index], changed, *lines[index + 1 :])))

                yield f"{kind}-{field}-{label}", change


def _mutate_all(template: Path, runs: Path) -> dict[str, str]:
    """A copy of the run for each mutation of each file; the name of each copy with what it was made from."""
    made: dict[str, str] = {}
    for source in ("completed", "stopped", "failed"):
        files = [path for path in sorted((template / source).iterdir()) if path.is_file()]
        assert {"events.jsonl", "lifecycle.jsonl", "job.json", "profile.yaml"} <= {path.name for path in files}
        for path in files:
            chosen = list(WHOLE.items())
            if path.suffix in (".json", ".jsonl") and source != "failed":
                chosen += _field_mutations(path)
            for number, (label, change) in enumerate(chosen):
                name = f"{source}-{path.stem}-{number}-{label}"[:120]
                shutil.copytree(template / source, runs / name)
                change(runs / name / path.name)
                made[name] = source
    return made


def _odd_names(template: Path, runs: Path) -> int:
    names = [b"run-\xff\xfe", b"run\nnewline", b"-rf", b"run \x1b]52;c;aGk=\x07", "长".encode() * 80, b"a" * 255]
    for name in names:
        shutil.copytree(template / "completed", runs / os.fsdecode(name))
    (runs / "a-file").write_text("no run")
    (runs / "loop").symlink_to(runs / "loop")
    (runs / "nothing").mkdir()
    return len(names)


def _journal_bytes(runs: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in runs.glob("*/events.jsonl") if path.is_file()}


@pytest.mark.slow
def test_every_mutation_of_every_file_costs_its_own_run_at_most(template: Path, bare_home: Home) -> None:
    made = _mutate_all(template, bare_home.runs)
    odd = _odd_names(template, bare_home.runs)
    for good in ("completed", "stopped", "failed"):
        shutil.copytree(template / good, bare_home.runs / f"good-{good}")
    assert len(made) > 400
    before = _journal_bytes(bare_home.runs)
    for attempt in ("without a registry", "with one"):
        engine = Engine(bare_home)
        try:
            found = {run.id: run for run in engine.client.request("runs", ListRuns(), timeout=60.0).runs}
            time.sleep(3.0 if attempt == "without a registry" else 0.5)  # whatever would be started is started by now
            engine.client.request("attach", timeout=30.0)
            found = {run.id: run for run in engine.client.request("runs", ListRuns(), timeout=60.0).runs}
            lost = {name for name in made if name not in found}
            assert not lost, sorted(lost)
            assert len(found) >= len(made) + 3 + odd
            for good in ("completed", "stopped", "failed"):
                run = _await_description(engine, f"good-{good}")
                assert (run.state == good and run.problem is None) or good == "failed"
            live = {name: run.state for name, run in found.items() if run.state in states.LIVE}
            assert not live, f"{attempt}: started again"
            asked = list(found.values())[:: 1 if "COCKPIT_LONG_TESTS" in os.environ else 4]
            for run in asked if attempt == "with one" else ():
                detail = engine.client.request("show", RunRef(run=run.id))
                assert detail.run.id == run.id
            assert engine.process.poll() is None
        finally:
            engine.close()
        assert _journal_bytes(bare_home.runs) == before, f"{attempt}: a worker wrote"
    log = bare_home.engine_log.read_text()
    assert "engine.bug" not in log and "RecursionError" not in log
    damaged = [run for run in found.values() if run.problem is not None and run.problem.code == "run.damaged"]
    assert len(damaged) > 50 and all(run.problem and run.problem.cause for run in damaged)


def _await_description(engine: Engine, run: str) -> Run:
    found: Run = wait_for(lambda: _described(engine, run), 60.0, f"{run} to be read")
    return found


def _described(engine: Engine, run: str) -> Run | None:
    shown: Run = engine.client.request("show", RunRef(run=run)).run
    return shown if shown.method and shown.step else None


def test_a_completed_run_without_lifecycle_is_not_trained_again(template: Path, bare_home: Home) -> None:
    for name, source in (("done", "completed"), ("half", "stopped"), ("new", "completed")):
        shutil.copytree(template / source, bare_home.runs / name)
        (bare_home.runs / name / "lifecycle.jsonl").unlink()
    for path in (bare_home.runs / "new").iterdir():  # the engine died right after it had made this one
        if path.name not in ("job.json", "profile.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    engine = Engine(bare_home)
    try:
        assert engine.wait(Run(id="new"), states.COMPLETED).step == 12, "one that was never queued is"
        done, half = (engine.show(Run(id=name)).run for name in ("done", "half"))
        assert (done.state, done.step, done.attempt) == (states.COMPLETED, 12, 1)
        assert (half.state, half.code) == (states.LOST, "run.damaged")
        assert "lifecycle.jsonl is missing" in half.reason and half.problem and "resume" in half.problem.hint
        engine.client.request("resume", Resume(run="half", changes={"training.max_steps": half.step + 3}))
        again = engine.wait(Run(id="half"), states.COMPLETED)
        assert (again.attempt, again.step) == (2, half.step + 3)
    finally:
        engine.close()


# ── the registry ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _other_schema(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE runs (id TEXT, colour TEXT)")


def _garbage_rows(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE runs SET summary = ?", (b"\xff garbage",))


def _garbage_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = os.urandom(64)
    path.write_bytes(content)


REGISTRY: dict[str, Callable[[Path], Any]] = {
    "garbage": lambda path: path.write_bytes(os.urandom(8192)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:4096]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "directory": _directory,
    "schema": _other_schema,
    "rows": _garbage_rows,
    "pages": _garbage_page,
}


@pytest.mark.slow
def test_a_damaged_registry_is_set_aside_and_rebuilt(template: Path, bare_home: Home) -> None:
    for good in ("completed", "stopped"):
        shutil.copytree(template / good, bare_home.runs / good)
    engine = Engine(bare_home)
    wait_for(lambda: _described(engine, "completed"), what="the first index")
    engine.close()
    for label, damage in REGISTRY.items():
        for journal_file in bare_home.engine.glob("registry.db-*"):
            journal_file.unlink()
        damage(bare_home.registry)
        before = set(bare_home.engine.glob("registry.db.damaged-*"))
        engine = Engine(bare_home)
        try:
            _await_index(engine, label)
            aside = set(bare_home.engine.glob("registry.db.damaged-*")) - before
            assert bool(aside) == (label not in ("empty", "rows")), label
        finally:
            engine.close()


def _await_index(engine: Engine, label: str) -> None:
    wait_for(lambda: _described(engine, "completed"), what=f"{label}: the summary")
    query = SeriesQuery(run="completed", names=["train/loss"], points=100)
    wait_for(lambda: engine.client.request("series", query).series[0].total == 12, what=f"{label}: the curve")


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_an_engine_shows_what_a_full_or_read_only_disk_holds(template: Path, tmp_path: Path, how: str) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    home = Home(place / "home").create()
    try:
        shutil.copytree(template / "completed", home.runs / "completed")
        if how == "full":
            with pytest.raises(OSError), open(place / "balloon", "wb", buffering=0) as balloon:
                while True:
                    balloon.write(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        ensure_engine(home)
        with Client(home, start=False) as client:
            notes = client.request("hello").notes
            assert notes and any("cannot be written" in note for note in notes)
            assert [run.id for run in client.request("runs", ListRuns()).runs] == ["completed"]
            detail = client.request("show", RunRef(run="completed"))
            assert detail.run.state == states.COMPLETED and [each.step for each in detail.checkpoints] == [12]
            query = SeriesQuery(run="completed", names=["train/loss"], points=100)
            wait_for(lambda: client.request("series", query).series[0].total == 12, what="the curve")
            with pytest.raises(ProblemError) as raised:
                client.request("resume", Resume(run="completed", changes={"training.max_steps": 20}))
            assert raised.value.problem.code in ("file.unwritable", "disk.low"), raised.value.problem
            client.request("shutdown", Shutdown(force=True))
    finally:
        time.sleep(0.3)
        end_processes_of(home)
        subprocess.run(["umount", "-l", str(place)], check=False)
        shutil.rmtree(home.sockets, ignore_errors=True)


def test_a_garbage_line_is_told_in_show_and_changes_no_state(template: Path, bare_home: Home) -> None:
    shutil.copytree(template / "completed", bare_home.runs / "completed")
    events = bare_home.runs / "completed" / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join([*lines[:3], b"\x00garbage\n", *lines[3:]]))
    engine = Engine(bare_home)
    try:
        wait_for(lambda: _described(engine, "completed"), what="the journal")
        detail = engine.show(Run(id="completed"))
        assert detail.run.state == states.COMPLETED and detail.run.problem is None
        assert any("events.jsonl" in text and f"byte {sum(map(len, lines[:3]))}" in text for text in detail.warnings)
        assert isinstance(journal.decode(b"\x00garbage"), journal.Unknown)
    finally:
        engine.close()
