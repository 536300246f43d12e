"""What the engine makes of the answers of Slurm's commands, which are scripts here."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cockpit.verbs.slurm_options import read_slurm_options
from engine.config.profile import ProfileError, find, load
from engine.protocol import attempt_fence
from engine.protocol.client import Client
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import OpenService, Run
from engine.supervisor import slurm
from engine.supervisor.run_monitor import RunMonitor
from engine.supervisor.run_record import Job, Record
from engine.supervisor.slurm import Slurm, SlurmJob, _read_status
from engine.supervisor.slurm_services import SlurmServices
from tests.scripted.bench import wait_for


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a command of Slurm; `calls` has what was run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "PAUSE", 0.05)
    monkeypatch.setattr(slurm, "POLL_SOON", 0.05)

    def write(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $* $SLURM_CONF" >> {tmp_path}/calls\n{body}\n')
        path.chmod(0o755)

    return write


def follow(jobs: Slurm, job: SlurmJob, ready) -> None:
    def look() -> bool:
        jobs.refresh()
        return bool(ready())

    wait_for(look, 10)
    jobs.close()


def test_a_job_that_was_taken_although_sbatch_failed_is_found(stub, tmp_path: Path) -> None:
    stub("squeue", f"[ ! -e {tmp_path}/taken ] || echo 41")
    stub("sbatch", f"touch {tmp_path}/taken; echo 'Socket timed out' >&2; exit 1")
    jobs = Slurm()
    job = jobs.submit("name", tmp_path / "script", os.environ, 1)
    wait_for(lambda: job.job or job.ended)
    jobs.close()
    assert job.job == "41" and job.failure is None


def test_nothing_is_submitted_while_slurm_does_not_say_whether_the_job_is_there(stub, tmp_path: Path) -> None:
    stub("squeue", "echo 'no contact' >&2; exit 1")
    stub("sbatch", "echo 42")
    jobs = Slurm()
    job = jobs.submit("name", tmp_path / "script", os.environ, 1)
    wait_for(lambda: job.ended)
    jobs.close()
    assert job.failure is not None and "no contact" in job.failure.cause
    assert "sbatch" not in (tmp_path / "calls").read_text()


def test_a_cancel_that_fails_is_repeated_on_its_own_cluster(stub, tmp_path: Path) -> None:
    row = "echo '7|RUNNING|None|0|0|2026-01-01T00:00:00'"
    stub("squeue", row)
    stub("scancel", f"[ -e {tmp_path}/once ] && exit 0; touch {tmp_path}/once; echo busy >&2; exit 1")
    jobs = Slurm()
    job, other = SlurmJob(job="7", conf="/a.conf"), SlurmJob(job="8", conf="/b.conf")
    jobs.watch(job)
    jobs.watch(other)
    jobs.cancel(job)
    follow(jobs, job, lambda: not job.cancelling and other.missing)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if call.startswith("scancel")] == ["scancel 7 /a.conf"] * 2
    assert any(call.startswith("squeue") and call.endswith(" /b.conf") for call in calls)


def test_the_restarts_of_a_job_that_ended_meanwhile_are_counted(stub) -> None:
    stub("squeue", "echo '7|COMPLETED|None|3|0|N/A'")
    jobs, job = Slurm(), SlurmJob(job="7")
    jobs.watch(job)
    follow(jobs, job, lambda: job.ended)
    assert (job.restarts, job.exit) == (3, 0)


def test_a_job_known_by_name_alone_is_looked_up(stub) -> None:
    stub("squeue", 'case "$*" in *--name*) ;; *) ;; esac')
    stub("sacct", "echo 'FAILED|1:0'")
    jobs, job = Slurm(), SlurmJob(name="gone")
    jobs.watch(job)
    follow(jobs, job, lambda: job.ended)
    assert job.state == "" and job.exit is None


def test_the_place_in_the_queue_is_looked_up_seldom(stub, tmp_path: Path) -> None:
    waits = "; ".join(f"echo '{number}|PENDING|Resources|0|0|N/A'" for number in (7, 8))
    stub("squeue", f'case "$*" in *--sort*) echo "9|all"; echo "7|all"; echo "3|other";; *) {waits};; esac')
    jobs, job, late = Slurm(), SlurmJob(job="7"), SlurmJob(job="8")
    jobs.watch(job)

    def looks() -> list[str]:
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return ["place" if "--sort" in call else "state" for call in calls]

    def ask(times: int) -> None:
        wait_for(lambda: jobs.refresh() or looks().count("state") >= times, 10)

    ask(3)
    assert job.place == "place 2 of 2 in partition all" and job.place in job.describe_wait()
    assert looks().count("place") == 1
    jobs.watch(late)  # which Slurm does not show
    ask(looks().count("state") + 3)
    jobs.close()
    assert late.place == "" and looks().count("place") == 2


def test_an_engine_that_ends_does_not_wait_for_each_cancel_of_a_slurm_that_is_silent(
    stub, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(slurm, "CLOSING", 0.2)
    stub("scancel", "sleep 0.3; exit 1")
    jobs = Slurm()
    jobs._jobs = [SlurmJob(job=str(number), cancelling=True) for number in range(5)]
    jobs.close()
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_the_stage_after_one_that_slurm_queued_again_unseen_has_its_attempt(tmp_path: Path, monkeypatch) -> None:
    """No engine was there, and the journal of a stage after training does not say so. Under an earlier number the next
    stage's worker would end at once."""
    job = Job(kind="train", name="run", source="x", directory="/", output="", host="here", created=0.0)
    record = Record(run=Run(id="run", state="running", attempt=1), directory=RunDirectory(tmp_path), job=job)
    attempt_fence.claim(tmp_path, 2)
    begun: list[int] = []
    found = {"read_journal": False, "_explain_end": None, "_has_succeeded": True}
    for name, value in found.items():
        monkeypatch.setattr(RunMonitor, name, lambda *_, value=value: value)
    monkeypatch.setattr(RunMonitor, "start_next_stage", lambda _, record: begun.append(record.run.attempt))
    RunMonitor.__new__(RunMonitor)._move_after_exit(record, SlurmJob(job="7", exit=0))
    record.close()
    assert begun == [2] and record.newest_attempt() == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"via": None, "slurm": ["gres=gpu:1"]}, "needs --via slurm"),
        ({"via": "slurm", "hot": True}, "leave out --via"),
        ({"via": "slurm", "slurm": ["gres"]}, "of the form K=V"),
        ({"via": "slurm", "slurm": ["nodes=2"]}, "--slurm nodes is for runs"),
    ],
)
def test_options_of_a_chat_that_would_do_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_slurm_options(Namespace(**{"hot": False, "slurm": [], "target": "run"} | options))


def test_a_chat_has_of_the_runs_job_what_a_service_takes_and_the_command_lines_settings(stub, tmp_path: Path) -> None:
    text = """launch: {via: slurm, nodes: 2, python: /shared/python, environment: {SEEN: "a b", GONE: ""},
                       slurm: {partition: all, time: "2:00:00"}}"""
    client = SimpleNamespace(request=lambda *_: SimpleNamespace(profile_text=text))
    options = Namespace(via="slurm", hot=False, slurm=["time=0:30:00"], target="run@5")
    find = read_slurm_options(options)
    assert find is not None
    launch = find(cast(Client, client))
    stub("sbatch", "echo 42")
    services = SlurmServices(Home(tmp_path / "home").create(), "engine.workers", Slurm())
    message = OpenService(kind="chat", launch=launch, environment={"PATH": os.environ["PATH"]})
    services.submit("chat-1", message, tmp_path / "log")
    (script,) = (tmp_path / "home").glob("engine/**/chat.sbatch")
    lines = script.read_text().splitlines()
    assert {"#SBATCH --partition=all", "#SBATCH --time=0:30:00", "#SBATCH --nodes=1", "export SEEN='a b'"} <= {*lines}
    assert (
        lines[-1].startswith("exec srun /shared/python -P -m engine.workers.node") and "GONE" not in script.read_text()
    )


def test_a_status_names_a_signal() -> None:
    assert [_read_status(text) for text in ("0", "9", "256", "x")] == [0, -9, 1, None]


@pytest.mark.parametrize(
    "extra",
    ["--array=1-3", "--arr=2", "-J x", "-Jx", "--job-name=x", "--output=/x", "--signal=TERM@5", "--ntasks-per-n=2"],
)
def test_options_that_break_the_batch_script_are_refused(extra: str) -> None:
    with pytest.raises(ProfileError, match=r"launch.slurm.extra"):
        load(find("triples-qlora"), (f"launch={{via: slurm, slurm: {{extra: ['{extra}']}}}}",))


@pytest.mark.parametrize(
    "launch", ["{environment: {'A B': x}}", "{environment: {'1A': x}}", "{via: slurm, slurm: {time: 1-2-00:00}}"]
)
def test_names_and_times_are_checked(launch: str) -> None:
    with pytest.raises(ProfileError):
        load(find("triples-qlora"), (f"launch={launch}",))
    load(
        find("triples-qlora"), ("launch={via: slurm, slurm: {time: 1-00:00, extra: ['--account=x', '--nodelist=a']}}",)
    )
