"""Whether this host can take a run: its devices, its disk, and the folder of its export."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.config.profile import Profile
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.supervisor.devices import Devices


def check_devices(devices: Devices, profile: Profile, environment: dict[str, str]) -> None:
    """Raises ProblemError when this host can never provide the devices that the run needs of it."""
    if profile.launch.via == "local":
        devices.check("", profile, environment)


def check_disk(home: Home, profile: Profile) -> None:
    """Raises ProblemError when the disk is so full that the run would pause at its first step."""
    free, least = shutil.disk_usage(home.root).free / 1e9, profile.limits.disk_free_gb
    if free < least:
        cause = f"{free:.1f} GB are free in {home.root}, and limits.disk_free_gb is {least:g}"
        raise ProblemError(
            Problem(
                code="disk.low",
                title="Too little disk",
                cause=cause,
                hint="free some disk space, or lower limits.disk_free_gb",
            )
        )


def check_export_folder(profile: Profile) -> None:
    """Raises ProblemError when the run could not write its export in the end."""
    if profile.export.kind == "none" or profile.export.output is None:
        return
    out = Path(profile.directory, profile.export.output).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProblemError(
            Problem(
                code="output.not_empty",
                title=f"export.output is not empty: {out}",
                hint="choose a folder that does not exist yet, or empty this one",
            )
        )
