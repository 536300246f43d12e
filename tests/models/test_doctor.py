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


def test_a_probe_that_crashes_is_a_result() -> None:
    good, told = probes.run_probe("no such probe")
    assert not good and "KeyError" in told
