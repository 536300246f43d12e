"""Engines, verbs and workers that are forked from the processes of `tests.training.warm`.

A worker that an engine starts imports the training libraries for some eight seconds of a core, and a run of the tiny
model has two such workers; a supervisor or a verb imports for most of the second that it takes to start. A forked
process has the command line, session, environment, output and exit status that it would have. `environment` and
`light_environment` are for processes that may start an engine or are one: the first forks workers as well. They put
tests/sitecustomize on the path, which replaces what the supervisor starts workers with. Torchrun's ranks are started
cold.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.training import warm

ROOT = Path(__file__).parents[1]
TRAINING, LIGHT = "TESTS_WARM", "TESTS_WARM_LIGHT"
"""Environment variables: where processes are asked for."""


def light_environment() -> dict[str, str]:
    """Variables with which supervisors and scripted workers are forked. They replace PYTHONPATH."""
    if not warm.LIGHT_AVAILABLE:
        return {"PYTHONPATH": str(ROOT)}
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'sitecustomize'}"
    return {"PYTHONPATH": path, LIGHT: warm.listen(warm.LIGHT)}


def environment() -> dict[str, str]:
    """Variables with which an engine has its real workers forked, too."""
    return light_environment() | ({TRAINING: warm.listen()} if warm.AVAILABLE else {})


def run(
    command: list[str], *, env: dict[str, str], cwd: str | Path, timeout: float, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with `capture_output`, `text` and no input, of a command line that starts a module."""
    if LIGHT not in env:
        return subprocess.run(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, open(os.devnull, "rb") as nothing:
        process = warm.fork_at(env[LIGHT], _describe(command, env, str(cwd)), nothing, output, errors)
        try:
            process.wait(timeout)
        finally:
            process.kill()
            for file in (output, errors):
                file.seek(0)
            told = [file.read().decode() for file in (output, errors)]
    done = subprocess.CompletedProcess(command, process.wait(), *told)
    if check:
        done.check_returncode()
    return done


# ── in an engine or a verb ─────────────────────────────────────────────────────────────────────────────────────────


def install(module: str) -> None:
    """Have this process, if it is a supervisor or a verb, fork what it starts."""
    if module == "engine.supervisor":
        from engine.supervisor import processes as starts
    elif module.startswith("cockpit"):
        from engine.protocol import client as starts  # type: ignore[no-redef]
    else:
        return
    starts.subprocess = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]


def popen(command: list[str], **how: Any) -> Any:
    """As `subprocess.Popen` of a supervisor, a worker or a job: in a session of its own."""
    module = command[3] if command[1:3] == ["-P", "-m"] else ""
    address = how["env"].get(_find_family(module)) or os.environ.get(_find_family(module))
    if not address:
        return subprocess.Popen(command, **how)
    request = _describe(command, how["env"], how.get("cwd", "/")) | {"session": True}
    with open(os.devnull, "rb") as nothing:
        return warm.fork_at(address, request, nothing, how["stdout"], how["stdout"])


def _find_family(module: str) -> str:
    if module == "engine.supervisor" or module.startswith("tests.scripted."):
        return LIGHT
    return TRAINING if module.startswith("engine.workers.") and module != "engine.workers.launch" else ""


def _describe(command: list[str], environment: dict[str, str], folder: str) -> dict[str, Any]:
    start = command.index("-m") + 1
    os.umask(mask := os.umask(0o077))
    return {
        "module": command[start],
        "arguments": command[start + 1 :],
        "environment": environment,
        "folder": folder,
        "line": command,
        "umask": mask,
    }
