"""The doctor on this machine, and on a damaged folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.protocol.home import Home
from engine.workers import probes


def doctor(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "engine.workers.doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.slow
def test_this_machine_is_checked(home: Home) -> None:
    status, out = doctor("--home", str(home.root), "--json")
    document = json.loads(out)
    checks = {check["name"]: check for check in document["checks"]}
    names = {"python", "libraries", "torch", "driver", "bfloat16", "nf4", "collectives", "disk", "memory", "model"}
    assert names <= set(checks)
    assert document["ok"] == (status == 0) == all(check["ok"] is not False for check in document["checks"])
    assert all(check["mend"] for check in document["checks"] if check["ok"] is False)
    assert checks["nf4"]["ok"] and "gradient are right" in checks["nf4"]["detail"]
    assert checks["collectives"]["ok"] and "gloo with 2 processes" in checks["collectives"]["detail"]


def test_a_folder(smollm2: Path, tmp_path: Path) -> None:
    status, out = doctor(str(smollm2), "--json")
    assert status == 0 and "a turn ends with <|im_end|>" in out
    (tmp_path / "config.json").write_text("{}")
    status, out = doctor(str(tmp_path), "--json")
    assert status == 1 and "there are no weights" in json.loads(out)["checks"][0]["detail"]
    assert doctor(str(tmp_path / "absent"))[0] == 2


def test_a_probe_that_crashes_is_a_result_and_the_others_are_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A module of that name which knows other probes takes the place of the real one."""
    program = """
import os, signal, sys, time
PROBES = {
    "good": lambda: "works: well",
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": lambda: 1 / 0,
    "silent": lambda: time.sleep(60),
}
print("a library's own words: ", os.getpid())
for asked in sys.argv[4:]:
    print(f"{asked}: {PROBES[asked]()}", flush=True)
"""
    interpreter = tmp_path / "python"
    (tmp_path / "program.py").write_text(program)
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/program.py "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(probes, "SECONDS", 0.5)
    found = probes.run_probes(["good", "killed", "raises", "silent", "unknown"])
    assert found == {
        "good": (True, "works: well"),
        "killed": (False, "the process was ended by signal 9"),
        "raises": (False, "ZeroDivisionError: division by zero"),
        "silent": (False, "no answer within 2.0 s"),
        "unknown": (False, "KeyError: 'unknown'"),
    }
