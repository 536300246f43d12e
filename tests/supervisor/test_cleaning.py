"""What the cleaner lists and removes is what nothing needs; it refuses everything else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cockpit.cli import main
from engine.protocol import journal, states
from engine.protocol.home import Home, host_name
from engine.protocol.messages import CleanQuery, CleanReply, Label, ProblemError, Resume, Run, Stop
from engine.supervisor import cleaning
from engine.supervisor.run_record import Job, Record
from tests.scripted.bench import Engine

OLD = time.time() - 3 * 24 * 3600


def fill(folder: Path, size: int = 1000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(bytes(size))
    for path in (folder / "weights", folder):
        os.utime(path, (OLD, OLD))
    return folder


def ask(engine: Engine, **query: object) -> CleanReply:
    reply: CleanReply = engine.client.request("clean", CleanQuery(**query))  # type: ignore[arg-type]
    return reply


def test_only_what_nothing_needs_is_removed(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    home = engine.home
    done, stopped = engine.submit(steps=3), engine.submit(steps=5000, pace=0.002)
    engine.wait(done, states.COMPLETED)
    engine.wait_step(stopped, 3)
    engine.client.request("stop", Stop(run=stopped.id))
    engine.wait(stopped, states.STOPPED)
    for step in (1, 2, 3):
        fill(home.run(done.id).checkpoint(step))
    for step in (1, 2):
        fill(home.run(stopped.id).checkpoint(step))
    named, unused, fresh = (fill(home.cache / (letter * 32)) for letter in "abc")
    inner = fill(home.cache / ("d" * 32))
    (named / "prepared.json").write_text(json.dumps({"made_of": inner.name}))
    os.utime(fresh / "weights")
    prepared = home.run(stopped.id).prepared
    prepared.write_text(json.dumps({"folder": str(named)}))
    expensive = fill(home.cache / f"expand-{'e' * 32}")
    gone = fill(home.runs / ".deleted-x")
    (home.root / "profiles").mkdir()
    (home.root / "profiles" / "next.yaml").write_text(f"model: {{base: {done.id}@2}}\n")
    listed = {Path(item.path): item for item in ask(engine).items}
    safe = {path for path, item in listed.items() if item.safe}
    assert safe == {home.run(done.id).checkpoint(1), unused, gone}
    assert {path.name for path in set(listed) - safe if path.parent == home.cache} == {fresh.name}
    newest = home.run(stopped.id).checkpoint(home.run(stopped.id).checkpoint_steps()[-1])
    assert not listed[newest].safe and "a resume goes on" in listed[newest].why
    for refused in (named, expensive, newest, home.run(done.id).checkpoint(3), home.runs, Path("/etc")):
        with pytest.raises(ProblemError) as raised:
            ask(engine, remove=[str(unused), str(refused)])
        assert raised.value.problem.code == "clean.refused" and refused.exists() and unused.exists()
    engine.client.request("label", Label(run=done.id, pinned=True))
    assert home.run(done.id).checkpoint(1) not in {Path(item.path) for item in ask(engine).items}
    engine.client.request("label", Label(run=done.id, pinned=False))
    assert main(["--home", str(home.root), "clean", "--run", "nothing-like-it"]) == 2
    assert main(["--home", str(home.root), "--json", "clean", "--run", stopped.id[:-1]]) == 0
    assert {item["run"] for item in json.loads(capsys.readouterr().out)["items"]} == {stopped.id}
    assert main(["--home", str(home.root), "--json", "clean"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [] and unused.exists()
    assert main(["--home", str(home.root), "--json", "clean", "--yes"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(item["path"]) for item in told["removed"]} == safe and told["bytes"] >= 3000
    assert not any(path.exists() for path in safe) and inner.exists() and fresh.exists() and expensive.exists()
    assert not list(home.run(done.id).checkpoints.glob(".removed*"))
    resumed = engine.client.request(
        "resume", Resume(run=stopped.id, changes={"training.max_steps": stopped.step + 5000})
    )
    assert engine.wait(resumed, states.RUNNING).attempt == 2
    assert not [item for item in ask(engine).items if item.run == stopped.id], "it is running again"


def write(path: Path, *entries: journal.AnyEntry) -> None:
    writer = journal.Writer(path)
    for entry in entries:
        writer.write(entry)  # type: ignore[arg-type]
    writer.close()


def completed(home: Home, host: str = "") -> Record:
    """A completed run with checkpoints 1 to 4, of which 2 and then 3 were the best; 3 has gone since."""
    run = home.run("poems-0612")
    for step in (1, 2, 4):
        fill(run.checkpoint(step))
    saved = [journal.Checkpoint(attempt=1, step=step, path="", best=step in (2, 3)) for step in (1, 2, 3, 4)]
    write(run.events, *saved)
    write(run.lifecycle, journal.State(attempt=1, state=states.COMPLETED))
    job = Job(kind="train", name="", source="", directory="", output="", host=host or host_name(), created=0.0)
    return Record(run=Run(id=run.id, state=states.COMPLETED), directory=run, job=job)


def list_safe(home: Home, *records: Record, in_use: tuple[str, ...] = ()) -> set[str]:
    items = cleaning.list_items(home, {record.run.id: record for record in records}, in_use)
    return {Path(item.path).name for item in items if item.safe}


def test_the_best_that_is_left_stays_and_so_does_all_where_it_is_unknown(tmp_path: Path) -> None:
    record = completed(home := Home(tmp_path).create())
    assert list_safe(home, record) == {"step-00000001"}
    whole = record.directory.events.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damage in (b"".join([lines[0], lines[1][:40] + b"\n", *lines[2:]]), None):
        record.directory.events.write_bytes(damage) if damage else record.directory.events.unlink()
        assert list_safe(home, record) == set()


@pytest.mark.parametrize(
    "text", ["base: poems-0612@1", "base: poe@1", "base: last@1", "base: /x/{run}/checkpoints/{step}"]
)
def test_a_checkpoint_that_anything_names_stays(tmp_path: Path, text: str) -> None:
    record = completed(home := Home(tmp_path).create())
    text = text.format(run=record.run.id, step=record.directory.checkpoint(1).name)
    assert list_safe(home, record, in_use=(text,)) == set(), "a server has loaded it"
    (home.root / "profiles").mkdir()
    (home.root / "profiles" / "next.yaml").write_text(f"model: {{{text}}}\n")
    assert list_safe(home, record) == set()


def test_what_another_host_or_a_moment_changes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = completed(home := Home(tmp_path).create(), host="another")
    entry = fill(home.cache / ("a" * 32))
    assert list_safe(home, record) == {"step-00000001", entry.name}
    record.directory.labels.write_text('{"pinned": true}')
    assert list_safe(home, record) == {entry.name}
    record.directory.labels.unlink()
    chosen = [str(record.directory.checkpoint(1)), str(entry)]
    measure = cleaning.measure_folder

    def resume(folder: Path) -> int:
        """It takes long; meanwhile the other host resumes the run, and another run begins to prepare."""
        write(record.directory.lifecycle, journal.State(attempt=2, state=states.PREPARING))
        return measure(folder)

    monkeypatch.setattr(cleaning, "measure_folder", resume)
    reply = cleaning.answer(home, {record.run.id: record}, CleanQuery(remove=chosen))
    assert reply.removed == [] and all(Path(path).is_dir() for path in chosen)
    assert list_safe(home, record) == set()
