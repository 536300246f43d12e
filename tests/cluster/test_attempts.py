"""What is left of an attempt when the next one has begun."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.protocol import attempt_fence, file_channel, journal
from engine.protocol.file_channel import Beat, WorkerFiles
from engine.protocol.home import write_private
from engine.protocol.journal import Metrics
from engine.protocol.messages import Answered, Rank
from engine.storage.atomic import write_folder
from engine.storage.row_losses import RowLossWriter
from engine.workers import meeting
from engine.workers.meeting import Lead
from tests.scripted.bench import wait_for
from tests.training.harness import Supervised, make_model, prepare

ROOT = Path(__file__).parents[2]
SCRIBE = """
import itertools, pathlib, time
for line in itertools.count():
    with pathlib.Path("scribbled").open("a") as file:
        file.write(f"{line}\\n")
    time.sleep(0.02)
"""


def test_a_node_that_wakes_up_in_the_next_attempt_ends_its_ranks_and_leaves_the_files_alone(tmp_path: Path) -> None:
    """As a host that was suspended, or cut off for long: the next attempt has begun without it."""
    control = tmp_path / "control"
    control.mkdir()
    (tmp_path / "scribe.py").write_text(SCRIBE)
    meeting.write(meeting.lead_file(control), Lead(attempt=1))
    agent = subprocess.Popen(
        [sys.executable, "-P", "-m", "engine.workers.node", "--worker", "scribe", "--node", "0", "--nodes", "1",
         "--processes", "1", "--lead", "files", "--attempt", "1", "--address", f"file:{control}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    scribbled = tmp_path / "scribbled"
    try:
        wait_for(lambda: scribbled.is_file() and (node := meeting.read_node(control, 0, 1)) and node.state == "running")
        (rank,) = psutil.Process(agent.pid).children()
        for pid in (agent.pid, rank.pid):
            os.kill(pid, signal.SIGSTOP)
        meeting.write(meeting.lead_file(control), Lead(attempt=2))
        meeting.write(meeting.node_file(control, 0), meeting.introduce(0, 2))
        before = meeting.node_file(control, 0).read_bytes()
        for pid in (rank.pid, agent.pid):  # a rank that is still stopped when the agent ends it would not get SIGTERM
            os.kill(pid, signal.SIGCONT)
        while agent.poll() is None:
            assert meeting.node_file(control, 0).read_bytes() == before
            time.sleep(0.005)
        assert agent.returncode == 128 + signal.SIGTERM
        assert meeting.node_file(control, 0).read_bytes() == before
        wait_for(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE)
        written = scribbled.read_bytes()
        time.sleep(0.1)
        assert scribbled.read_bytes() == written
    finally:
        agent.kill()
        agent.wait()


def read_tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, with its time and content. Hidden names are of what is not complete yet."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def make_journal(run: Path) -> Callable[[], object]:
    writer = journal.Writer(run / "events.jsonl")
    return lambda: writer.write(Metrics(attempt=1, step=1, values={}))


def make_ledger(run: Path) -> Callable[[], object]:
    writer = RowLossWriter(run / "row_losses", 1, 0)
    return lambda: writer.rewind(3)


def make_folder(run: Path) -> Callable[[], object]:
    """A checkpoint that takes long: the next attempt begins while it is written."""

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"weights")
        attempt_fence.claim(run, 2)

    return lambda: write_folder(run / "checkpoints" / "step-00000001", fill, {"step": 1})


WRITERS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "journal": make_journal,
    "ledger": make_ledger,
    "folder": make_folder,
    "private": lambda run: lambda: write_private(run / "report.json", b"{}"),
    "heartbeat": lambda run: lambda: WorkerFiles(run / "control", 1, 0).beat(Beat(attempt=1, rank=Rank(rank=0, pid=1))),
    "answer": lambda run: lambda: WorkerFiles(run / "control", 1, 0).reply(Answered(id="1")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_writes_into_a_runs_folder_looks_whether_its_attempt_is_the_newest(tmp_path: Path, name: str) -> None:
    for attempt, status in ((2, 0), (1, attempt_fence.STATUS)):
        run = tmp_path / str(attempt)
        (run / "control").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        file_channel.replies_file(run / "control", 1).touch()
        child = os.fork()
        if child == 0:
            try:
                attempt_fence.hold(run, attempt)
                write = WRITERS[name](run)
                attempt_fence.claim(run, 2)
                write()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - nothing of pytest may run in this process
                traceback.print_exc()
                os._exit(9)
        _, ended = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended) == status
        written = [path.name for path in run.rglob("*") if path.is_file() and path.stat().st_size]
        assert (written == [attempt_fence.FILE]) == bool(status), written


def test_no_attempt_takes_the_place_of_a_later_one(tmp_path: Path) -> None:
    assert attempt_fence.claim(tmp_path, 3) and attempt_fence.claim(tmp_path, 3)
    assert not attempt_fence.claim(tmp_path, 2) and attempt_fence.read(tmp_path) == 3
    for damaged in ("?", "", "9" * 30, "-1"):  # nobody is locked out
        (tmp_path / attempt_fence.FILE).write_text(damaged)
        assert attempt_fence.claim(tmp_path, 4) and attempt_fence.read(tmp_path) == 4
    (tmp_path / attempt_fence.FILE).unlink()
    os.mkfifo(tmp_path / attempt_fence.FILE)
    assert attempt_fence.read(tmp_path) == 0 and attempt_fence.claim(tmp_path, 4) and attempt_fence.read(tmp_path) == 4
    (tmp_path / attempt_fence.FILE).unlink()
    (tmp_path / attempt_fence.FILE).mkdir()
    assert attempt_fence.claim(tmp_path, 5) and [path.name for path in tmp_path.iterdir()] == [attempt_fence.FILE]
    program = (
        f"from engine.protocol import attempt_fence as f; from pathlib import Path; f.hold(Path({str(tmp_path)!r}), 4)"
    )
    (tmp_path / attempt_fence.FILE).rmdir()
    attempt_fence.claim(tmp_path, 5)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == attempt_fence.STATUS and b"attempt 5 has begun" in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_rank_that_wakes_up_in_the_next_attempt_writes_nothing(bare_home, tmp_path: Path, processes: int) -> None:
    """Stopped at any moment, for it does nothing but write: a checkpoint at every step."""
    base = make_model(tmp_path / "tiny")
    settings = ("training.max_steps=1000000", "training.rehearsal=false", "checkpoint={every_steps: 1, keep: 2}")
    settings += (f"launch={{processes: {processes}}}", "logging.tensorboard=true")
    run = Supervised.create(bare_home, "woken", prepare(tmp_path / "data", base), *settings)
    moments = random.Random(processes)
    try:
        for _ in range(3 if processes == 1 else 1):
            known = len(run.entries(Metrics))
            run.start(processes=processes)
            run.until(lambda known=known: len(run.entries(Metrics)) > known + 1)
            time.sleep(moments.uniform(0.0, 0.1))
            assert run.process is not None
            tree = [psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)]
            for each in tree:
                each.suspend()
            run.attempts += 1
            attempt_fence.claim(run.run.path, run.attempts)  # as an engine does that goes on elsewhere
            before = read_tree(run.run.path)
            for each in tree:
                each.resume()
            assert run.wait() != 0
            after = read_tree(run.run.path)
            changed = {name for name in before | after if before.get(name) != after.get(name)}
            # TensorBoard's own thread may write what it was given of finished steps, into the old attempt's file.
            changed = {name for name in changed if not name.startswith("tensorboard/")}
            assert changed <= {"log.txt"}, changed  # torchrun's lines, or one that a rank had begun to print
            if processes == 1:
                assert run.process.returncode == attempt_fence.STATUS
    finally:
        run.close()
