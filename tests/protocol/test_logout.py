"""Where systemd ends what a session has left, the engine starts where it stays, or says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.protocol import client as client_module
from engine.protocol import logout
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.logout import Host, build_survivor, find_problem, kills_user_processes

SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
DESKTOP = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-terminal.scope\n"
CRON = "0::/system.slice/cron.service\n"
COMMAND = ["python", "-m", "engine.supervisor"]


class Machine:
    """A host's files and commands, as far as they are looked at."""

    def __init__(self, root: Path) -> None:
        self.root, self.cgroup, self.user = root, SESSION, "ada"
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "bin").mkdir()
        (root / "runtime").mkdir()

    def write(self, path: str, *lines: str, section: str = "[Login]") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text("\n".join([section, *lines, ""]))

    def linger(self) -> None:
        self.write("var/lib/systemd/linger/ada")

    def offer_systemd_run(self, script: str = 'exec "${@:6}"') -> None:
        path = self.root / "bin/systemd-run"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        (self.root / "runtime/bus").touch()

    @property
    def host(self) -> Host:
        environment = {"PATH": str(self.root / "bin"), "XDG_RUNTIME_DIR": str(self.root / "runtime")}
        return Host(self.root, self.user, self.cgroup, environment)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "machine").mkdir()
    return Machine(tmp_path / "machine")


@pytest.mark.parametrize(
    ("files", "killed"),
    [
        ({}, False),
        ({"etc/systemd/logind.conf": ["#KillUserProcesses=no"]}, False),
        ({"etc/systemd/logind.conf": ["#KillUserProcesses=yes"]}, True),  # this system's default, as the file says
        ({"usr/lib/systemd/logind.conf": ["#KillUserProcesses=yes"]}, True),
        ({"etc/systemd/logind.conf": ["KillUserProcesses=yes"]}, True),
        ({"etc/systemd/logind.conf": ["  KillUserProcesses = On "]}, True),
        ({"etc/systemd/logind.conf": ["KillUserProcesses=no", "KillUserProcesses=1"]}, True),
        ({"etc/systemd/logind.conf": ["KillUserProcesses=yes", "KillExcludeUsers=root ada"]}, False),
        ({"etc/systemd/logind.conf": ["KillUserProcesses=yes", "KillOnlyUsers=guest"]}, False),
        ({"etc/systemd/logind.conf": ["KillUserProcesses=yes", "KillOnlyUsers=guest ada"]}, True),
        ({"etc/systemd/logind.conf.d/a.conf": ["KillUserProcesses=yes"]}, True),
        ({"usr/lib/systemd/logind.conf.d/50.conf": ["KillUserProcesses=yes"]}, True),
        (
            {
                "etc/systemd/logind.conf": ["KillUserProcesses=no"],
                "run/systemd/logind.conf.d/50.conf": ["KillUserProcesses=yes"],
            },
            True,
        ),
        (
            {
                "usr/lib/systemd/logind.conf.d/90.conf": ["KillUserProcesses=yes"],
                "etc/systemd/logind.conf.d/10.conf": ["KillUserProcesses=no"],
            },
            True,  # the later name counts
        ),
        (
            {
                "usr/lib/systemd/logind.conf.d/90.conf": ["KillUserProcesses=yes"],
                "etc/systemd/logind.conf.d/90.conf": ["KillUserProcesses=no"],
            },
            False,  # of one name, the one in /etc counts
        ),
    ],
)
def test_what_logind_does_is_read_as_logind_reads_it(machine: Machine, files: dict, killed: bool) -> None:
    for path, lines in files.items():
        machine.write(path, *lines)
    assert kills_user_processes(machine.host) is killed


def test_another_section_and_a_damaged_file_say_nothing(machine: Machine) -> None:
    machine.write("etc/systemd/logind.conf", "KillUserProcesses=yes", section="[Other]")
    assert not kills_user_processes(machine.host)
    (machine.root / "etc/systemd/logind.conf").write_bytes(b"\xff\xfe[Login]\nKillUser")
    assert not kills_user_processes(machine.host)
    machine.user = "root"
    machine.write("etc/systemd/logind.conf", "KillUserProcesses=yes")
    assert not kills_user_processes(machine.host), "root is excluded"


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("lingers", [True, False])
@pytest.mark.parametrize("cgroup", [SESSION, DESKTOP, CRON])
def test_the_engine_stays_or_the_line_to_run_is_said(
    machine: Machine, killed: bool, lingers: bool, cgroup: str
) -> None:
    machine.cgroup = cgroup
    machine.write("etc/systemd/logind.conf", f"KillUserProcesses={'yes' if killed else 'no'}")
    machine.offer_systemd_run()
    if lingers:
        machine.linger()
    in_scope = build_survivor(COMMAND, machine.host) != COMMAND
    problem = find_problem(machine.host)
    assert in_scope == (cgroup == SESSION and killed and lingers)
    ends = not lingers and (cgroup == DESKTOP or (cgroup == SESSION and killed))
    assert (problem is not None) == ends
    if problem is not None:
        assert problem.code == "engine.ends_at_logout" and "loginctl enable-linger ada" in problem.hint


def test_without_a_way_to_the_users_manager_this_is_said(machine: Machine) -> None:
    machine.write("etc/systemd/logind.conf", "KillUserProcesses=yes")
    machine.linger()
    assert build_survivor(COMMAND, machine.host) == COMMAND
    problem = find_problem(machine.host)
    assert problem is not None and "systemd-run" in problem.cause


def test_a_host_without_systemd_needs_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, "ada", "", {})
    assert build_survivor(COMMAND, host) == COMMAND and find_problem(host) is None


@pytest.mark.parametrize("works", [True, False])
def test_the_engine_is_started_in_a_scope_and_all_the_same_where_that_fails(
    machine: Machine, bare_home: Home, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    machine.write("etc/systemd/logind.conf", "KillUserProcesses=yes")
    machine.linger()
    said = machine.root / "said"
    machine.offer_systemd_run(f'echo "$@" > {said}; ' + ('exec "${@:6}"' if works else "exit 1"))
    monkeypatch.setattr(logout, "Host", lambda: machine.host)
    with Client(bare_home) as client:
        assert client.request("hello").home == str(bare_home.root)
        assert client.warning is None
    assert said.read_text().startswith("--user --scope --quiet --collect -- ")


def test_the_first_launch_says_the_line_and_the_next_ones_do_not(
    machine: Machine, bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write("etc/systemd/logind.conf.d/kill.conf", "KillUserProcesses=yes")
    monkeypatch.setattr(logout, "Host", lambda: machine.host)
    with Client(bare_home) as client:
        assert client.warning is not None and "enable-linger" in client.warning.hint
    with Client(bare_home) as client:
        assert client.warning is None
    assert client_module.find_engine(bare_home) is not None
