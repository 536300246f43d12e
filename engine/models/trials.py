"""Accelerated paths prove themselves on the user's own device before they are used.

A fast path and the plain one compute the same small work. The fast one is used when its results agree with the plain
ones and it is faster; an error or a difference means the plain path. Verdicts are kept in the home for each device,
driver and set of library versions, one file each: `trials/ENVIRONMENT/NAME.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.hardware.nvidia import read_driver
from engine.models import accelerator
from engine.models.memory import is_out_of_memory
from engine.models.versions import list_versions
from engine.protocol.home import Home, make_private, write_private
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line

ROUNDS = 5
"""Measurements of each path, in turns; their medians are compared."""

Work = Callable[[], Sequence[Any]]
"""Computes the work anew and returns its results as tensors: outputs, losses, gradients."""


@dataclass(frozen=True)
class Verdict:
    """`difference` is relative to the norm of the plain results, `speedup` how many times as fast the fast path is; 0
    where they were not measured."""

    name: str
    used: bool
    reason: str
    difference: float = 0.0
    speedup: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the fast path raised an error or was wrong, rather than only slow."""
        return not self.used and self.speedup == 0.0


class Trials:
    """The verdicts for one device."""

    def __init__(self, home: Home, device: str, label: str, on_verdict: Callable[[Verdict], object] = lambda _: None):
        """`device` is torch's name of the device, `label` the card's name. `on_verdict` is called with each verdict of
        a path that was tried now, rather than read."""
        self._device, self._on_verdict = device, on_verdict
        self.folder = home.root / "trials" / name_environment(device, label)

    def decide(
        self, name: str, plain: Work, fast: Work, *, tolerance: float, faster: float = 1.0, harmless: bool = False
    ) -> Verdict:
        """Whether to use `fast`: the kept verdict, or that of a trial. `tolerance` is the largest relative difference,
        `faster` how many times as fast it must be. A `harmless` path cannot end the process; if the process ends in its
        trial, it is tried again.

        Raises what `plain` raises, and ProblemError when the fast path has made the device unusable for this process;
        then it is not tried again.
        """
        file = self._file(name)
        if kept := self.read(name, faster):
            return kept
        make_private(self.folder)
        if not harmless:  # if the trial ends this process, the next one finds this verdict
            _write(file, Verdict(name, used=False, reason="the process ended during its trial"))
        try:
            verdict = self._try(name, plain, fast, tolerance, faster)
        except ProblemError:
            raise
        except BaseException:  # the plain path has failed, which says nothing about the fast one
            file.unlink(missing_ok=True)
            raise
        if verdict is None:
            file.unlink(missing_ok=True)
            return Verdict(name, used=False, reason="there was not enough memory to try it")
        _write(file, verdict)
        self._on_verdict(verdict)
        return verdict

    def read(self, name: str, faster: float | None = None) -> Verdict | None:
        """The kept verdict. `faster` is how many times as fast the path must be now, if that is not what it was."""
        kept = _read(self._file(name))
        if kept is None or faster is None or not kept.speedup:
            return kept
        return replace(kept, used=kept.speedup >= faster)

    def keep(self, verdict: Verdict) -> None:
        """Keep the verdict of a path that could not even be tried."""
        make_private(self.folder)
        _write(self._file(verdict.name), verdict)
        self._on_verdict(verdict)

    def _file(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"

    def _try(self, name: str, plain: Work, fast: Work, tolerance: float, faster: float) -> Verdict | None:
        """None when memory was not enough: another time it may be."""
        try:
            expected = plain()
        except Exception as error:
            if is_out_of_memory(error):  # whoever needs the plain path will say so
                return None
            raise
        try:
            found = fast()
            difference = measure_difference(found, expected)
            if not difference <= tolerance:  # also when it is not a number
                return Verdict(
                    name, used=False, reason=f"its results differ by {difference:.2g}", difference=difference
                )
            seconds = [(self._time(plain), self._time(fast)) for _ in range(ROUNDS)]
        except Exception as error:  # noqa: BLE001 - whatever a kernel, compiler or driver raises
            if is_out_of_memory(error):
                return None
            inner: BaseException = getattr(error, "inner_exception", error)  # a compiler wraps what went wrong
            verdict = Verdict(name, used=False, reason=f"{type(inner).__name__}: {first_line(inner)}")
            self._check_device(verdict)
            return verdict
        speedup = statistics.median(before for before, _ in seconds) / statistics.median(after for _, after in seconds)
        used = speedup >= faster
        reason = f"{speedup:.2g} times as fast" if used else f"only {speedup:.2g} times as fast"
        return Verdict(name, used, reason, difference, speedup)

    def _time(self, work: Work) -> float:
        began = time.perf_counter()
        work()
        accelerator.synchronize(self._device)
        return time.perf_counter() - began

    def _check_device(self, verdict: Verdict) -> None:
        """Raises ProblemError when the device computes nothing any more, as after an illegal access by a kernel."""
        import torch

        try:
            accelerator.synchronize(self._device)
            torch.ones(1, device=self._device).item()
        except RuntimeError as error:
            _write(self._file(verdict.name), verdict)
            raise ProblemError(
                Problem(
                    code="trial.device_lost",
                    title=f"A trial of {verdict.name} has made the device unusable for this process",
                    cause=f"{verdict.reason}; {first_line(error)}",
                    hint="start it again: it is not tried again, and the plain path is used",
                )
            ) from None


def measure_difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest difference of two tensors of a pair, relative to the norm of the expected one; infinite when their
    shapes differ."""
    if [tuple(tensor.shape) for tensor in found] != [tuple(tensor.shape) for tensor in expected]:
        return math.inf
    pairs = zip(found, expected, strict=True)
    ratios = (
        float((left - right).norm() / right.norm().clamp_min(1e-30))
        for left, right in ((one.detach().double(), two.detach().double()) for one, two in pairs)
    )
    return max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else ratio, default=0.0)


def name_environment(device: str, label: str) -> str:
    """A name for the device's kind, its driver and the versions of the libraries."""
    import torch

    parts: dict[str, Any] = {**list_versions(), "device": label, "kind": device.partition(":")[0]}
    if device.startswith("cuda"):
        parts["capability"] = torch.cuda.get_device_capability(device)
        parts["build"] = torch.version.cuda or torch.version.hip
        parts["driver"] = read_driver()
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', label).strip('-')}-{digest}"


def list_verdicts(home: Home) -> dict[str, list[Verdict]]:
    """All kept verdicts, by the name of their environment."""
    folders = sorted((home.root / "trials").glob("*/"))
    return {
        folder.name: [verdict for file in sorted(folder.glob("*.json")) if (verdict := _read(file))]
        for folder in folders
    }


def forget(home: Home) -> None:
    """Remove all verdicts, so that everything is tried again."""
    shutil.rmtree(home.root / "trials", ignore_errors=True)


def _read(file: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(file: Path, verdict: Verdict) -> None:
    """A verdict that cannot be kept, on a full disk, is found again next time."""
    try:
        write_private(file, json.dumps(asdict(verdict)).encode())
    except OSError:
        pass
