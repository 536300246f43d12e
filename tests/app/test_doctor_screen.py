"""The doctor screen runs the real doctor."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from cockpit.screens.doctor import DoctorScreen, describe, replace
from engine.protocol.home import Home
from tests.app.fake import FakeEngine
from tests.app.screen import LOW, assert_fits, run_app, screen_text, until


def test_each_verdict_has_its_mark_and_its_mend() -> None:
    checks = [
        {"name": "python", "ok": True, "detail": "3.11", "mend": ""},
        {"name": "nf4", "ok": False, "detail": "does not load [x]", "mend": "pip install bitsandbytes"},
        {"name": "driver", "ok": None, "detail": "none"},
    ]
    lines = [" ".join(line.split()) for check in checks for line in describe(check).plain.splitlines()]
    assert lines == ["✓ python 3.11", "✗ nf4 does not load [x]", "→ pip install bitsandbytes", "– driver none"]


def test_checks_are_replaced_in_their_places() -> None:
    def check(name: str, detail: str) -> dict[str, Any]:
        return {"name": name, "ok": True, "detail": detail}

    old = [check("disk", "1"), check("model", "a"), check("model", "b"), check("path", "p")]
    fresh = [check("model", "c"), check("health", "h")]
    assert [each["detail"] for each in replace(old, {"model"}, fresh)] == ["1", "c", "p", "h"]
    assert replace(old, {"disk"}, []) == old[1:]


async def test_keys_run_the_check_under_the_cursor_again_and_mend_it(
    bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor's process is another here: it says what it is asked, and the model is there once it was mended."""
    asked: list[tuple[str, ...]] = []
    disk = {"name": "disk", "ok": True, "detail": "60 GB free"}
    driver = {"name": "driver", "ok": False, "detail": "too old", "mend": "install NVIDIA driver 580", "fix": []}

    async def answer(screen: DoctorScreen, *arguments: str) -> dict[str, Any]:
        asked.append(arguments)
        mended = any("--fix" in each for each in asked)
        detail, fix = ("whole", []) if mended else ("not here", ["model", "pull", "smollm2"])
        model = {"name": "model", "ok": True if mended else None, "detail": detail, "mend": "pull it", "fix": fix}
        checks = [disk, model, driver] if not arguments else [model] if arguments[0] == "model" else [disk]
        return {"checks": checks, "ok": True}

    monkeypatch.setattr(DoctorScreen, "_ask_doctor", answer)
    async with run_app(FakeEngine(), LOW, home=bare_home, first="doctor") as pilot:
        await until(pilot, lambda: "too old" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: len(asked) == 2)
        assert asked[1] == ("disk",) and "Mend" not in screen_text(pilot)
        await pilot.press("j")
        await until(pilot, lambda: "Mend" in screen_text(pilot))
        await pilot.press("m")
        await until(pilot, lambda: "cockpit model pull smollm2" in screen_text(pilot))
        assert len(asked) == 2
        await pilot.press("y")
        await until(pilot, lambda: "whole" in screen_text(pilot) and "not here" not in screen_text(pilot))
        assert asked[2] == ("model", "--fix", "--yes")
        await pilot.press("j", "m")
        await until(pilot, lambda: "left to you" in screen_text(pilot))
        await pilot.press("escape", "t", "y")
        await until(pilot, lambda: asked[-1] == ("--stress=30",))
        assert len(asked) == 4
        assert_fits(pilot)


async def test_a_question_that_is_declined_ends_no_examination(
    bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = asyncio.Event()

    async def answer(screen: DoctorScreen, *arguments: str) -> dict[str, Any]:
        await examined.wait()
        return {"checks": [{"name": "disk", "ok": True, "detail": "60 GB free"}], "ok": True}

    monkeypatch.setattr(DoctorScreen, "_ask_doctor", answer)
    async with run_app(FakeEngine(), LOW, home=bare_home, first="doctor") as pilot:
        await pilot.press("t")
        await until(pilot, lambda: "Test the cards" in screen_text(pilot))
        await pilot.press("escape")
        examined.set()
        await until(pilot, lambda: "60 GB free" in screen_text(pilot))
    async with run_app(FakeEngine(), LOW, home=bare_home, first="doctor", readonly=True) as pilot:
        await until(pilot, lambda: "60 GB free" in screen_text(pilot))
        assert "Test cards" not in screen_text(pilot)


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
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    interpreter.write_text(f'#!/bin/sh\n{wait}\nexec {sys.executable} {tmp_path}/doctor.py "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    async with run_app(FakeEngine(), LOW, home=bare_home, first="doctor") as pilot:
        await until(pilot, lambda: "examining" in screen_text(pilot))
        (tmp_path / "go").touch()
        await until(pilot, lambda: "libraries" in screen_text(pilot), 120)
        assert "✓ python" in screen_text(pilot) and "Run again" in screen_text(pilot)
        assert_fits(pilot)
