"""Services that run as Slurm jobs: submitted with a script of their own, reached by files, found again by the next
engine.

Each has a folder in the engine's own: `record.json` names its job, `chat.sbatch` is the script, and `control/` has the
files by which it is asked (`engine.protocol.file_channel`). The folder goes when the job has ended.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
from pydantic import ValidationError

from engine.config.batch_script import make_service_script
from engine.options.launch import LaunchOptions
from engine.options.launch_checks import check_launch
from engine.protocol.environment import build_job_environment
from engine.protocol.file_channel import SCHEME, SupervisorFiles
from engine.protocol.home import Home, make_private, write_private
from engine.protocol.messages import OpenService, Problem, ProblemError
from engine.supervisor import processes
from engine.supervisor.launchers import nodes
from engine.supervisor.slurm import KEPT, Slurm, SlurmJob

KINDS = ("chat",)
"""Services whose workers end when no engine is left, so that no job holds a node for nobody."""
SETTINGS = ("slurm", "python", "environment")
"""Those of `launch` that a service's job has."""
FIXED = {"nodes": 1, "save_before": 0, "requeue": False}
"""Settings of a run's job that mean nothing for a service."""


class Record(msgspec.Struct, kw_only=True):
    """`record.json`."""

    kind: str
    name: str
    conf: str = ""
    job: str = ""
    closing: bool = False
    """Whether the job is to be cancelled: the engine may end before Slurm has done it."""


class SlurmServices:
    """The jobs of services. `workers` is the package whose modules are started."""

    def __init__(self, home: Home, workers: str, slurm: Slurm) -> None:
        self._folder, self._home, self._workers, self._slurm = home.engine / "services", home, workers, slurm
        self._closing: list[tuple[str, SlurmJob]] = []

    def submit(self, service: str, message: OpenService, log: Path) -> tuple[SlurmJob, SupervisorFiles]:
        """Write the script of a service and submit it. Raises ProblemError, and OSError."""
        launch = _read_launch(message)
        folder = make_private(self._folder / service)
        control = folder / "control"
        environment = build_job_environment(message.environment, launch.environment)
        arguments = ["--home", str(self._home.root), "--job", service, "--address", f"{SCHEME}{control}"]
        arguments += ["--attempt", "1", "--options", json.dumps(message.options)]
        module = f"{self._workers}.{message.kind}"
        given = {key: value for key, value in launch.environment.items() if value}
        if "PYTHONPATH" in environment:
            given = {"PYTHONPATH": environment["PYTHONPATH"]} | given
        name = f"cockpit-{service}"
        script = make_service_script(
            launch,
            name=name,
            log=log,
            environment=processes.WORKER_DEFAULTS | given,
            worker=nodes.build_node_command(module, arguments, node="slurm", count=1, launch=launch, processes=1),
        )
        place = folder / f"{message.kind}.sbatch"
        write_private(place, script.encode())
        sent = {key: value for key in KEPT if (value := message.environment.get(key) or os.environ.get(key))}
        self._write(service, Record(kind=message.kind, name=name, conf=sent.get(KEPT[0], "")))
        files = SupervisorFiles(control, 1, fresh=True)
        return self._slurm.submit(name, place, environment | sent, 1), files

    def adopt(self) -> Iterator[tuple[str, SlurmJob, SupervisorFiles]]:
        """Follow the jobs that an earlier engine has submitted, and cancel those that it was about to."""
        for path in sorted(self._folder.glob("*/record.json")):
            service = path.parent.name
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
                files = SupervisorFiles(path.parent / "control", 1, fresh=False)
            except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
                continue
            job = SlurmJob(name=record.name, conf=record.conf, job=record.job, recorded=bool(record.job))
            self._slurm.watch(job)
            if record.closing:
                self._cancel(service, job)
            else:
                yield service, job, files

    def note(self, service: str, job: SlurmJob) -> None:
        """Record the job's id when Slurm has given it."""
        if job.job and not job.recorded:
            job.recorded = True
            self._write(service, Record(kind=service.partition("-")[0], name=job.name, conf=job.conf, job=job.job))

    def close(self, service: str, job: SlurmJob) -> None:
        """Cancel a service's job, whatever becomes of this engine."""
        self._write(
            service,
            Record(kind=service.partition("-")[0], name=job.name, conf=job.conf, job=job.job, closing=True),
        )
        self._cancel(service, job)

    def clear(self) -> None:
        """Remove the folders of jobs that were cancelled and have ended."""
        for service, job in [each for each in self._closing if each[1].ended]:
            self._closing.remove((service, job))
            self.remove(service)

    def remove(self, service: str) -> None:
        shutil.rmtree(self._folder / service, ignore_errors=True)

    def _cancel(self, service: str, job: SlurmJob) -> None:
        self._closing.append((service, job))
        self._slurm.cancel(job)

    def _write(self, service: str, record: Record) -> None:
        try:
            write_private(self._folder / service / "record.json", msgspec.json.encode(record))
        except OSError as error:  # the worker ends by itself when no engine asks for it any more
            print(f"{service}: the record of its job cannot be written: {error}", flush=True)


def _read_launch(message: OpenService) -> LaunchOptions:
    """What a service's job asks Slurm for. Raises ProblemError."""
    asked = message.launch or {}
    causes = [f"{key}: is not among {', '.join(SETTINGS)}" for key in asked if key not in SETTINGS]
    launch = LaunchOptions(via="slurm")
    if message.kind not in KINDS:
        causes.append(f"a {message.kind} worker cannot be a Slurm job, only {' or '.join(KINDS)}")
    try:
        job = asked.get("slurm") or {}
        job = job | FIXED if isinstance(job, dict) else job
        launch = LaunchOptions.model_validate(asked | {"via": "slurm", "slurm": job})
        causes += [f"{key}: {text}" for key, text in check_launch({"launch": launch}, Path("/"), None)]
    except ValidationError as error:
        causes += [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    if causes:
        raise ProblemError(
            Problem(
                code="request.invalid",
                title="Slurm cannot be asked for this",
                cause="; ".join(causes),
                hint="the settings are those of launch.slurm in a profile",
            )
        )
    return launch
