"""`python -m engine.hardware.driver`: which build of torch the NVIDIA driver of this machine runs.

`make setup` calls it before it installs anything, so it needs the standard library alone. Prints nothing where there is
no driver, or where torch's default build runs.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from engine.hardware.wheels import WHEELS, Wheel, read_capability

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
_SECONDS = 20


def advise(run: Callable[..., str]) -> str:
    """What to tell before torch is installed; empty when its default build, the newest of `WHEELS`, is right. `run`
    runs a command and returns its output, empty when it fails."""
    found = re.search(r"CUDA Version:\s*(\d+)\.\d+", run("nvidia-smi"))
    if not found:
        return ""
    major = int(found[1])
    cards = [line.rpartition(",") for line in run(*_QUERY).splitlines() if "," in line]
    capabilities = {name.strip(): read_capability(number.strip()) for name, _, number in cards}
    fitting = [wheel for wheel in WHEELS if _major(wheel) <= major and _has_all(wheel, capabilities)]
    if WHEELS[0] in fitting:
        return ""
    told = f"The driver of {', '.join(capabilities) or 'this machine'} runs CUDA {major}"
    if not fitting:
        return (
            f"{told}, and no build of torch 2.13 is for all these cards and that driver: update the driver, or keep "
            "the torch that you have (make KEEP_TORCH=1)"
        )
    return (
        f"{told}: torch's default build is not for it. The build {fitting[0].name} is: make setup TORCH_INDEX=URL, "
        f"where URL is PyTorch's index of {fitting[0].name} (https://pytorch.org/get-started/locally)"
    )


def _major(wheel: Wheel) -> int:
    """Within a major version of CUDA, every driver runs every build."""
    return int(wheel.name[2:4])


def _has_all(wheel: Wheel, capabilities: dict[str, tuple[int, int] | None]) -> bool:
    return all(each is None or wheel.first <= each <= wheel.last for each in capabilities.values())


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    if advice := advise(_run):
        print(advice)
