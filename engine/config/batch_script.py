"""The batch script with which a run goes to Slurm. It is kept in the run's directory, and can be submitted by hand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.options.launch import LaunchOptions

OPTIONS = ("partition", "account", "qos", "time", "gres", "constraint")


def list_options(launch: LaunchOptions, nodes: int) -> list[str]:
    """sbatch's options for what `launch.slurm` asks for."""
    job = launch.job
    asked = [f"--{name}={value}" for name in OPTIONS if (value := getattr(job, name)) is not None]
    asked += [f"--nodes={nodes}", "--ntasks-per-node=1", "--requeue" if job.requeue else "--no-requeue"]
    if job.save_before:
        asked.append(f"--signal=B:USR1@{job.save_before}")
    return asked + list(job.extra)


def make_script(
    launch: LaunchOptions,
    *,
    name: str,
    nodes: int,
    log: Path,
    control: Path,
    attempt: int,
    result: Path,
    environment: Mapping[str, str],
    worker: Sequence[str],
    first: Sequence[str] = (),
) -> str:
    """The script. `worker` is the command that srun starts on each node, without `--attempt`, and `first`
    what is added to it when the job has not been queued again; `result` the file that is there once the stage is
    done."""
    options = [f"--job-name={name}", f"--output={log}", "--open-mode=append", *list_options(launch, nodes)]
    lines = ["#!/bin/bash", *(f"#SBATCH {escape(option)}" for option in options), "", INTRODUCTION.strip(), ""]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(environment.items())]
    lines += [
        f"control={shlex.quote(str(control))}",
        f"result={shlex.quote(str(result))}",
        f"attempt=$(( {attempt} + ${{SLURM_RESTART_COUNT:-0}} ))",
        f'worker=({shlex.join(worker)} --attempt "$attempt")',
        *([f'[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] || worker+=({shlex.join(first)})'] if first else ()),
        BODY.strip().replace("@CPUS@", CPUS),
    ]
    return "\n".join(lines) + "\n"


def make_service_script(
    launch: LaunchOptions, *, name: str, log: Path, environment: Mapping[str, str], worker: Sequence[str]
) -> str:
    """The script of a service: `worker` on one node, until it is cancelled."""
    options = [f"--job-name={name}", f"--output={log}", "--open-mode=append", *list_options(launch, 1)]
    lines = ["#!/bin/bash", *(f"#SBATCH {escape(option)}" for option in options), ""]
    lines += ["# Made and submitted by cockpit for a service, which ends with whoever has opened it.", ""]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(environment.items())]
    return "\n".join([*lines, CPUS, f"exec srun {shlex.join(worker)}"]) + "\n"


def escape(option: str) -> str:
    """An option as a line of a batch script takes it."""
    return option if not any(mark in option for mark in " \t'\"\\#") else shlex.quote(option)


INTRODUCTION = """
# Made by cockpit for one stage of a run, and submitted by it. `sbatch` of this file by hand does the same work; the
# engine that made it does not follow a job that it has not submitted itself.
"""

CPUS = (
    '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
    "  # srun does not take it from sbatch"
)

BODY = """
# Slurm sends SIGUSR1 before the time limit: the run saves and ends at its next step, and is queued again.
ending=
save_and_end() { ending=yes; : > "$control/stop-$attempt"; }
trap save_and_end USR1
mkdir -p "$control"
@CPUS@
rm -f "$control/stop-$attempt"  # another stage's

srun --kill-on-bad-exit=1 "${worker[@]}" &
step=$!
while :; do  # a signal interrupts `wait`
    wait "$step"; status=$?
    kill -0 "$step" 2>/dev/null || break
done
if [ -n "$ending" ] && [ ! -e "$result" ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$status"
"""
