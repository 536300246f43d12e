"""A Slurm cluster of two nodes on this host, of the packages that are installed: a real slurmctld and slurmds on free
ports, with everything they write in one folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.cluster import UnavailableError
from tests.training.warm import find_free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")

NODES = ("one", "two")
READY = 20.0
"""Seconds that the cluster may take to run its first job."""
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/{auth}
{socket}
CryptoType=crypto/{crypto}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=20
MinJobAge=120
InactiveLimit=0
MaxNodeCount=4
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0 GraceTime=0
"""


def find_missing() -> str:
    """Why no cluster can be started here; empty when one can."""
    missing = [name for name in PROGRAMS if find_program(name) is None]
    if missing:
        return f"needs Debian's munge, slurmctld, slurmd and slurm-client ({', '.join(missing)} are missing)"
    return "" if os.getuid() == 0 else "slurmd must be root"


def find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """`environment` has what Slurm's commands need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "state").mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.munge = self._start_munge()
        nodes = (
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={find_free_port()} CPUs=2 State=UNKNOWN"
            for name in NODES
        )
        where = f"AuthInfo=socket={folder}/munge.socket,cred_expire=5"
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, folder=folder, controller=find_free_port(), nodes="\n".join(nodes),
                auth="munge", crypto="munge", socket=where,
            )
        )  # fmt: skip
        self.daemons = [self._start("slurmctld", "-D"), *(self._start("slurmd", "-D", "-N", name) for name in NODES)]
        try:
            self._wait_until_ready()
        except UnavailableError:
            self._end_daemons()
            raise

    def _start_munge(self) -> subprocess.Popen[bytes]:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        command = ["munged", "--foreground", "--force", "--key-file", key, "--socket", self.folder / "munge.socket"]
        command += ["--pid-file", self.folder / "munge.pid", "--log-file", self.folder / "munge.log"]
        command += ["--seed-file", self.folder / "munge.seed"]
        return self._start(*map(str, command))

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.out", "ab") as output:
            return subprocess.Popen(
                [find_program(name) or name, *arguments],
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"  # nothing is no answer
        return done.stdout

    def _wait_until_ready(self) -> None:
        """Until a job runs on all nodes. Raises UnavailableError when that does not come true."""
        deadline, error = time.monotonic() + READY, ""
        while (left := deadline - time.monotonic()) > 0:
            try:
                done = subprocess.run(
                    ["srun", f"--nodes={len(NODES)}", "true"], env=self.environment, capture_output=True, text=True,
                    timeout=left, check=False,
                )  # fmt: skip
                if done.returncode == 0:
                    return
                error = done.stderr
            except (OSError, subprocess.TimeoutExpired) as failed:
                error = str(failed)
            time.sleep(0.3)
        raise UnavailableError(f"Slurm does not run a job here within {READY:.0f} s: {error.strip()[-300:]}")

    def clear(self) -> None:
        """End all jobs."""
        for options in (["--signal=KILL", "--full"], []):
            subprocess.run(
                ["scancel", *options, "--user=root"],
                env=self.environment,
                capture_output=True,
                timeout=30,
                check=False,
            )
        deadline = time.monotonic() + 15
        while self.run("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)

    def close(self) -> None:
        self.clear()
        self._end_daemons()

    def _end_daemons(self) -> None:
        for daemon in (*reversed(self.daemons), self.munge):
            daemon.send_signal(signal.SIGTERM)
        for daemon in (*self.daemons, self.munge):
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
