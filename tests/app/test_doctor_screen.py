"""The doctor screen runs the real doctor."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cockpit.screens.doctor import report
from engine.protocol.home import Home
from tests.app.fake import FakeEngine
from tests.app.screen import LOW, assert_fits, run_app, screen_text, until


def test_each_verdict_has_its_mark_and_its_mend() -> None:
    console = Console(width=60, file=io.StringIO())
    console.print(
        report(
            [
                {"name": "python", "ok": True, "detail": "3.11", "mend": ""},
                {"name": "nf4", "ok": False, "detail": "does not load [x]", "mend": "pip install bitsandbytes"},
                {"name": "driver", "ok": None, "detail": "none"},
            ]
        )
    )
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == ["✓ python 3.11", "✗ nf4 does not load [x]", "→ pip install bitsandbytes", "– driver none"]


WITHOUT_PROBES = """
import sys
from engine.workers import doctor
assert sys.argv[1:4] == ["-P", "-m", "engine.workers.doctor"]
doctor.CHECKS = [doctor.check_python, doctor.check_libraries, doctor.check_disk]
sys.argv = ["doctor", *sys.argv[4:]]
sys.exit(doctor.main())
"""


@pytest.mark.slow
async def test_the_doctor_examines_this_machine(
    bare_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the checks that load torch, which tests/models/test_doctor.py runs."""
    (tmp_path / "doctor.py").write_text(WITHOUT_PROBES)
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/doctor.py "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    async with run_app(FakeEngine(), LOW, home=bare_home, first="doctor") as pilot:
        assert "examining" in screen_text(pilot)
        await until(pilot, lambda: "libraries" in screen_text(pilot), 120)
        assert "✓ python" in screen_text(pilot) and "Run again" in screen_text(pilot)
        assert_fits(pilot)
