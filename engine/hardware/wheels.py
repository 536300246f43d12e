"""Which build of torch has kernels for a card. Reads torch's files and imports nothing of it."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

Capability = tuple[int, int]


class Wheel(NamedTuple):
    """A build of torch 2.13 for a version of CUDA, and the compute capabilities from and to which it has kernels."""

    name: str
    first: Capability
    last: Capability


WHEELS = (
    Wheel("cu130", (7, 5), (12, 1)),
    Wheel("cu128", (7, 5), (12, 0)),
    Wheel("cu126", (5, 0), (9, 0)),
)
"""Newest first. https://github.com/pytorch/pytorch/blob/main/RELEASE.md"""
_TOOLKITS = ((13, (7, 5)), (12, (5, 0)), (11, (3, 5)))
"""Major version of CUDA -> the lowest compute capability that its compiler knows."""
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")


def read_capability(text: str) -> Capability | None:
    """`9.0` as numbers."""
    parts = text.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(each.isdecimal() for each in parts) else None


def has_kernels(capability: Capability, architectures: Iterable[str]) -> bool:
    """Whether a build with these architectures (`torch.cuda.get_arch_list()`) runs on a card.

    Machine code (`sm_80`) runs on the same major version from its minor one on, and intermediate code (`compute_80`) on
    everything newer.
    """
    for each in architectures:
        found = _ARCHITECTURE.fullmatch(each)
        if not found:
            continue
        built = int(found[2]), int(found[3])
        exact = each[-1].isalpha() and each[-1] == "a"
        if found[1] == "compute" and built <= capability and not exact:
            return True
        if found[1] == "sm" and (built == capability if exact else built[0] == capability[0] and built <= capability):
            return True
    return False


def suggest(capability: Capability, now: str = "") -> str:
    """What to install for a card that this torch has no kernels for. `now` is the CUDA version of the present build."""
    name = f"cu{now.replace('.', '')}"
    for wheel in WHEELS:
        if wheel.first <= capability <= wheel.last and wheel.name != name:
            return (
                f"install the build of torch for CUDA {wheel.name[2:4]}.{wheel.name[4:]}: pip install "
                f"--force-reinstall torch==2.13.0 from an index whose name ends in {wheel.name}"
            )
    return "no published build of torch 2.13 has kernels for it: use another card, or hide this one by its mask"


def describe_lack(name: str, capability: Capability, cuda: str) -> str:
    dotted = ".".join(map(str, capability))
    return f"{name} has compute capability {dotted}, for which this torch (CUDA {cuda}) has no kernels"


@functools.cache
def read_cuda_version() -> str:
    """The CUDA version that the installed torch was built with, by its file `version.py`; empty where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else ""


def is_impossible(capability: Capability, cuda: str) -> bool:
    """Whether no build with this version of CUDA can run on a card, however it was made."""
    major, _, minor = cuda.partition(".")
    if not major.isdecimal():
        return False
    lowest = next((least for version, least in _TOOLKITS if int(major) >= version), (0, 0))
    newest = capability >= (10, 0) and (int(major), int(minor or 0)) < (12, 8)
    return capability < lowest or newest
