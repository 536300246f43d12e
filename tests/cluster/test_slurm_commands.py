"""What the engine makes of the answers of Slurm's commands, which are scripts here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.config.profile import ProfileError, find, load
from engine.supervisor import slurm
from engine.supervisor.slurm import Slurm, SlurmJob, _read_status
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
