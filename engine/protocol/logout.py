"""Whether the engine outlives the last logout, and what it takes where systemd would end it.

systemd-logind ends what is left of a session where `KillUserProcesses=yes` (logind.conf(5)). A scope of the user's own
manager is not part of the session; that manager itself ends with the last session unless the user lingers
(`loginctl enable-linger`, loginctl(1)).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.protocol.problem import Problem

_FOLDERS = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
"""Where systemd looks for its configuration; of files with one name the first counts."""
_TRUE = ("1", "yes", "y", "true", "t", "on")
_OPTION = re.compile(r"\s*(#?)\s*(KillUserProcesses|KillOnlyUsers|KillExcludeUsers)\s*=\s*(.*?)\s*$")


@dataclass(frozen=True)
class Host:
    """What is looked at; tests give other values. `root` is where the files of the system are."""

    root: Path = Path("/")
    user: str = field(default_factory=lambda: _user_name())
    cgroup: str = field(default_factory=lambda: _read(Path("/proc/self/cgroup")))
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def has_logind(self) -> bool:
        return (self.root / "run/systemd/system").is_dir()

    @property
    def lingers(self) -> bool:
        return (self.root / "var/lib/systemd/linger" / self.user).exists()

    @property
    def in_session(self) -> bool:
        """Whether this process belongs to a login session."""
        return bool(re.search(r"/session-[^/]*\.scope", self.cgroup))

    @property
    def in_user_manager(self) -> bool:
        """Whether this process belongs to the user's manager, as those started from a desktop do."""
        return bool(re.search(r"/user@\d+\.service", self.cgroup))

    def find_systemd_run(self) -> str | None:
        """`systemd-run`, where the user's manager can be reached."""
        runtime = self.environment.get("XDG_RUNTIME_DIR", "")
        if not runtime or not (Path(runtime) / "bus").exists():
            return None
        return shutil.which("systemd-run", path=self.environment.get("PATH"))


def kills_user_processes(host: Host) -> bool:
    """Whether logind ends the processes of this user's sessions at logout."""
    settings = {"KillUserProcesses": "no", "KillOnlyUsers": "", "KillExcludeUsers": "root"}
    commented, main = _read_options(_find_main(host.root))
    settings |= commented  # "entries in this file show the compile time defaults"
    settings |= main
    for drop_in in _list_drop_ins(host.root):
        settings |= _read_options(drop_in)[1]
    if settings["KillUserProcesses"].lower() not in _TRUE or host.user in settings["KillExcludeUsers"].split():
        return False
    only = settings["KillOnlyUsers"].split()
    return not only or host.user in only


def build_survivor(command: list[str], host: Host | None = None) -> list[str]:
    """The command line that starts `command` so that it outlives the session: in a scope of the user's manager, where
    it would end otherwise and that manager stays."""
    host = host or Host()
    if not (host.has_logind and host.in_session and host.lingers and kills_user_processes(host)):
        return command
    systemd_run = host.find_systemd_run()
    return [systemd_run, "--user", "--scope", "--quiet", "--collect", "--", *command] if systemd_run else command


def find_problem(host: Host | None = None) -> Problem | None:
    """Why an engine that is started now would end at the last logout, with the line that mends it; None where it would
    not."""
    host = host or Host()
    if not host.has_logind:
        return None
    killed = host.in_session and kills_user_processes(host)
    if killed and not host.lingers:
        cause = "logind ends the processes of a session (KillUserProcesses=yes), and this user does not linger"
    elif killed and host.find_systemd_run() is None:
        return Problem(
            code="engine.ends_at_logout",
            title="The engine and its runs would end when you log out",
            cause="logind ends the processes of a session (KillUserProcesses=yes), and there is no way to your own "
            "systemd from here: no systemd-run, or XDG_RUNTIME_DIR names no folder with its bus",
            hint="log in by ssh or on a console rather than by su or sudo, and start the engine there",
        )
    elif host.in_user_manager and not host.lingers:
        cause = "it belongs to your own systemd, which ends with your last session, and this user does not linger"
    else:
        return None
    return Problem(
        code="engine.ends_at_logout",
        title="The engine and its runs would end when you log out",
        cause=cause,
        hint=f"loginctl enable-linger {host.user}, then `cockpit engine stop`: the next engine stays",
    )


def _find_main(root: Path) -> Path | None:
    found = (root / folder / "systemd/logind.conf" for folder in _FOLDERS)
    return next((path for path in found if path.is_file()), None)


def _list_drop_ins(root: Path) -> Iterator[Path]:
    """In the order in which they count: by their names, whichever folder they are in."""
    named: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in (root / folder / "systemd/logind.conf.d").glob("*.conf"):
            named.setdefault(path.name, path)
    yield from (named[name] for name in sorted(named))


def _read_options(path: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """The options that are commented out and those that are set, in the section `[Login]`."""
    found: tuple[dict[str, str], dict[str, str]] = ({}, {})
    section = ""
    for line in _read(path).splitlines() if path else ():
        if line.strip().startswith("["):
            section = line.strip()
        elif section == "[Login]" and (match := _OPTION.match(line)):
            found[0 if match[1] else 1][match[2]] = match[3]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
