"""Starts the worker of a stage where the profile says: on this host, as a Slurm job, or on several hosts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.config.batch_script import make_script
from engine.config.profile import Profile
from engine.protocol import attempt_fence, journal, stages
from engine.protocol.environment import build_job_environment
from engine.protocol.file_channel import SCHEME, SupervisorFiles
from engine.protocol.home import Home, write_private
from engine.supervisor import processes
from engine.supervisor.ahead import Ahead
from engine.supervisor.devices import Devices
from engine.supervisor.launchers import local, nodes
from engine.supervisor.processes import Leader
from engine.supervisor.run_record import Record
from engine.supervisor.slurm import KEPT, Slurm


def is_elsewhere(profile: Profile, stage: str) -> bool:
    """Whether a stage's worker runs where no socket of this host reaches it. Rows are always prepared here."""
    via = profile.launch.via
    return (via == "slurm" and stage != stages.PREPARE) or (via in ("ssh", "none") and stage == stages.TRAIN)


@dataclass(frozen=True)
class Launcher:
    """`workers` is the package whose modules are started, `address` says where they connect to."""

    home: Home
    workers: str
    address: Callable[[], str]
    devices: Devices
    ahead: Ahead | None = None
    slurm: Slurm = field(default_factory=Slurm)

    def start(self, record: Record, stage: str, profile: Profile) -> Leader:
        """Start the worker of a stage. Raises OSError, and ProblemError where this host has lost its devices."""
        run, launch = record.run, profile.launch
        attempt_fence.claim(record.directory.path, run.attempt)
        elsewhere = is_elsewhere(profile, stage)
        record.files = SupervisorFiles(record.directory.control, run.attempt, fresh=True) if elsewhere else None
        address = f"{SCHEME}{record.directory.control}" if elsewhere else self.address()
        module = f"{self.workers}.{'post_training' if stage in stages.AFTER else stage}"
        arguments = ["--home", str(self.home.root), "--job", run.id, "--address", address]
        arguments += ["--stage", stage] if stage in stages.AFTER else []
        again = ["--from-step", str(record.resume_step)] if record.resume_step is not None else []
        first = again if stage == stages.TRAIN else []
        environment = build_job_environment(record.environment, launch.environment)
        if elsewhere and launch.via == "slurm":
            return self._submit(record, stage, profile, module, arguments, first, environment)
        worker = [module, *arguments, "--attempt", str(run.attempt), *first]
        if elsewhere:
            command = nodes.build_command(worker, launch)
            return processes.start(command, record.directory.log, environment)
        ranks = launch.processes if isinstance(launch.processes, int) else max(1, len(run.devices))
        count = ranks if stage == stages.TRAIN else 1
        restricted = self.devices.restrict(environment, run.devices, count)
        restricted = local.build_rank_environment(restricted, count)
        port = launch.port if isinstance(launch.port, int) else None
        start = self.ahead.start if self.ahead else processes.start
        leader = start(local.build_command(worker, count, port), record.directory.log, restricted)
        alone = stage == stages.PREPARE and ranks == 1 and record.job.kind == "train" and launch.via == "local"
        if self.ahead and alone:
            self.ahead.expect(restricted)  # so that the libraries are imported while the rows are tokenised
        return leader

    def _submit(
        self,
        record: Record,
        stage: str,
        profile: Profile,
        module: str,
        arguments: list[str],
        first: list[str],
        environment: dict[str, str],
    ) -> Leader:
        """Write the batch script into the run's directory, and submit it."""
        launch, directory = profile.launch, record.directory
        training = stage == stages.TRAIN
        count = launch.node_count if training else 1
        name = f"cockpit-{record.run.id}-{stage}-{record.run.attempt}"
        script = make_script(
            launch,
            name=name,
            nodes=count,
            log=directory.log,
            control=directory.control,
            attempt=record.run.attempt,
            result=directory.result(stage),
            environment=_list_exports(environment, profile),
            worker=nodes.build_node_command(
                module, arguments, node="slurm", count=count, launch=launch, processes=None if training else 1
            ),
            first=first,
        )
        path: Path = directory.path / f"{stage}-{record.run.attempt}.sbatch"
        write_private(path, script.encode())
        sent = {key: value for key in KEPT if (value := record.environment.get(key) or os.environ.get(key))}
        record.write_lifecycle(  # the next engine looks for a job of this name, if this one dies in between
            journal.Launched(
                attempt=record.run.attempt,
                pid=0,
                start_time=0.0,
                slurm_name=name,
                slurm_conf=sent.get(KEPT[0], ""),
                stage=stage,
            )
        )
        return self.slurm.submit(name, path, environment | sent, record.run.attempt)


def _list_exports(environment: dict[str, str], profile: Profile) -> dict[str, str]:
    """Variables that the script sets, so that it works from any shell: never secrets, see `check_combinations`."""
    path = {"PYTHONPATH": environment["PYTHONPATH"]} if "PYTHONPATH" in environment else {}
    given = {name: value for name, value in profile.launch.environment.items() if value}
    return processes.WORKER_DEFAULTS | path | given
