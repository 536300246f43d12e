"""What one borrowed card shows within ten minutes: the tests of `tests/gpu`, then a ladder of measurements.

On a Llama with the shape of Llama 3 8B and random weights, made on the card: the rate of matrix products; LoRA and
QLoRA at two lengths against trl's defaults and trl with packing, with the forecast of our peak memory beside the
measured one; decoding against transformers' `generate`. Sides alternate in rounds, for which each has a process that
stays. Rounds are repeated while there is time, and medians are reported. Each measurement has a time limit. What fails
is recorded with its error, and the others go on.

`bench/card.sh` is the way to run it. `--cpu` rehearses all of it with a tiny model.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.card_models import LLAMA_8B, TINY, Shape
from bench.card_page import write_page
from bench.report import RESULTS, save
from engine.supervisor.processes import WORKER_DEFAULTS

ROOT = Path(__file__).parents[1]
TESTS = [f"tests/gpu/test_{name}.py" for name in ("losses", "memory", "use", "trials", "cuda")]
"""What takes longest comes last."""
SIDES = ("cockpit", "trl", "trl, packing")
TESTS_SHARE = 0.42
"""Of the time, that the tests may take: four minutes of nine and a half."""
LIMIT = 60.0
STARTING = 45.0
"""Seconds of a measurement, and those that the first of a process has besides, for its imports."""
SPARE = 8.0
"""Seconds that are kept for the page."""


@dataclass
class Worker:
    """A process that measures, one measurement after the other; another takes its place when one has not ended in time
    or has died."""

    command: list[str]
    limit: float = LIMIT
    starting: float = STARTING
    process: subprocess.Popen[str] | None = None
    log: Any = field(default_factory=tempfile.TemporaryFile)

    def ask(self, request: dict[str, Any], until: float) -> dict[str, Any]:
        """Figures, or `error`. It ends by `until` of `time.monotonic`."""
        seconds = min(self.limit, until - time.monotonic())
        if self.process is None or self.process.poll() is not None:
            seconds = min(self.limit + self.starting, until - time.monotonic())
            environment = {**WORKER_DEFAULTS, **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=ROOT,
                env=environment,
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "its process ended as it started"}
        ready, _, _ = select.select([self.process.stdout], [], [], max(seconds, 1.0))
        answer = self.process.stdout.readline() if ready else ""
        if answer:
            found: dict[str, Any] = json.loads(answer)
            return found
        self.close()
        return {"error": f"it had not ended after {seconds:.0f} s" if not ready else "its process died"}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_tests(cpu: bool, seconds: float) -> dict[str, Any]:
    """The tests of `tests/gpu`: how many passed, which failed or were skipped and why, and how long each took."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= {"COCKPIT_GPU_TESTS": "cpu"} if cpu else {}
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "tests.xml")
        command = [sys.executable, "-m", "pytest", *TESTS, "-m", "gpu", "-q", f"--junitxml={report}"]
        # As a test ends late, pytest ends itself and still writes its report: the tests left over are told by name.
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-o", "junit_family=xunit1"]
        began, process = time.monotonic(), subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sys.stderr)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(2)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        found = read_tests(report) if report.exists() else {"error": f"pytest ended with {process.returncode}"}
    late = {"error": f"stopped after {seconds:.0f} s"} if time.monotonic() - began > seconds else {}
    return found | late | {"seconds": time.monotonic() - began}


def read_tests(report: Path) -> dict[str, Any]:
    """The content of a report of pytest in JUnit's format."""
    tests: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}[wrong.tag] if wrong is not None else ""
        entry: dict[str, Any] = {"outcome": outcome or "passed", "seconds": float(case.get("time", 0))}
        if wrong is not None:
            entry["reason"] = (wrong.get("message") or "").splitlines()[0][:200]
        tests[f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"] = entry
    counts = {kind: sum(each["outcome"] == kind for each in tests.values()) for kind in ("passed", "failed", "skipped")}
    return counts | {"tests": tests}


def list_measurements(shape: Shape) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of one round: the name, the side, and the request to its process."""
    for length in reversed(shape.lengths):
        for quantization in ("none", "nf4"):
            kind = "NF4 QLoRA" if quantization == "nf4" else "bf16 LoRA"
            for side in SIDES:
                request = {"measure": "training", "side": side, "quantization": quantization, "length": length}
                yield f"{kind}, rows of up to {length} tokens", side, {**request, "more": []}


def list_decoding() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, adapter, rows in (("one stream", False, 1), ("one stream, adapter", True, 1), ("8 rows", False, 8)):
        yield f"decoding, {name}", "cockpit", {"measure": "decoding", "adapter": adapter, "rows": rows}


@dataclass
class Ladder:
    """Measurements until the time is over. `found` holds every figure of every round, and errors."""

    shape: Shape
    cpu: bool
    until: float
    """By `time.monotonic`."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    forecasts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the request in JSON: `forecast_gb`, or `forecast_error`."""

    def run(self, rounds: int) -> None:
        command = [sys.executable, "-m", "bench.card_worker", *(["--cpu"] if self.cpu else [])]
        workers = {side: Worker(command) for side in ("cockpit", "trl")}
        try:
            self._measure(workers["cockpit"], "peak of matrix products", "cockpit", {"measure": "peak"})
            for name, side, request in list_decoding():  # it alternates its sides by itself
                self._measure(workers["cockpit"], name, side, request)
            for _ in range(rounds):
                for name, side, request in list_measurements(self.shape):
                    if not any("error" in each for each in self.found.get(name, {}).get(side, [])):
                        self._measure(workers["cockpit" if side == "cockpit" else "trl"], name, side, request)
            name, side, request = next(list_measurements(self.shape))
            self._measure(workers["cockpit"], f"{name}, compiled", side, {**request, "more": ["training.compile=true"]})
        finally:
            for worker in workers.values():
                worker.close()

    def _measure(self, worker: Worker, name: str, side: str, request: dict[str, Any]) -> None:
        left = self.until - time.monotonic()
        told = self.found.setdefault(name, {}).setdefault(side, [])
        if left < 5:
            if not told:
                told.append({"error": "no time was left"})
            return
        figures = worker.ask(request, self.until)
        if "OutOfMemory" in figures.get("error", "") and side == "cockpit" and request.get("more") == []:
            request = {**request, "more": ["training.gradient_checkpointing=true"]}
            figures = worker.ask(request, self.until) | {"gradient_checkpointing": True}
        if side == "cockpit" and request["measure"] == "training" and "error" not in figures:
            figures |= self._forecast(worker, request)
        told.append(figures)
        print(f"{name} · {side}: {figures}", file=sys.stderr)

    def _forecast(self, worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
        """The forecast of a measurement, made once for all rounds."""
        key = json.dumps(request)
        if key not in self.forecasts:
            if self.until - time.monotonic() < 5:
                return {"forecast_error": "no time was left"}
            told = worker.ask({**request, "measure": "forecast"}, self.until)
            self.forecasts[key] = {"forecast_error": told["error"]} if "error" in told else told
        return self.forecasts[key]


def summarize(found: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Medians over the rounds of each side, shares of the measured peak (MFU), and ratios to each other side in the
    same round."""
    peaks = [each["tflops"] for each in found.get("peak of matrix products", {}).get("cockpit", []) if "tflops" in each]
    summary: dict[str, Any] = {}
    for name, sides in found.items():
        summary[name] = {}
        for side, rounds in sides.items():
            good = [each for each in rounds if "error" not in each]
            if not good:
                summary[name][side] = rounds[-1]
                continue
            entry = {
                key: statistics.median(each[key] for each in good) if type(value) in (int, float) else value
                for key, value in good[0].items()
            }
            entry["rounds"] = len(good)
            if "forecast_gb" in entry and "peak_gb" in entry:
                entry["forecast_error_percent"] = (entry["forecast_gb"] / entry["peak_gb"] - 1) * 100
            if failed := [each["error"] for each in rounds if "error" in each]:
                entry["failed_rounds"] = failed
            if peaks and "tokens_per_second" in entry:
                entry |= {"mfu": entry["tflops"] / peaks[0], "mfu_palm": entry["tflops_palm"] / peaks[0]}
            ours = [each for each in sides.get("cockpit", []) if "tokens_per_second" in each]
            if side != "cockpit" and ours and "tokens_per_second" in entry:
                pairs = zip(ours, good, strict=False)
                ratios = [one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs]
                entry["cockpit_is_times"] = statistics.median(ratios)
            summary[name][side] = entry
    return summary


def describe_card() -> dict[str, Any]:
    """The card, its memory and driver; empty without one."""
    from engine.hardware.nvidia import Nvidia, read_driver

    cards = Nvidia().sample_devices()
    if not cards:
        return {}
    total = cards[0].memory_total
    return {
        "card": cards[0].name,
        "capability": cards[0].capability,
        "card_memory_gb": round(total / 2**30) if total else None,
        "driver": read_driver(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="rehearse it here, with a tiny model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of card.json and card.md")
    parser.add_argument("--seconds", type=float, default=570.0, help="the time for all of it")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of training, at most")
    parser.add_argument("--without-tests", action="store_true", help="measure only")
    arguments = parser.parse_args()
    began = time.monotonic()
    until = began + arguments.seconds - SPARE
    shape = TINY if arguments.cpu else LLAMA_8B
    results: dict[str, Any] = {"rehearsal": arguments.cpu, "model": shape.name, "card": {}}
    if not arguments.cpu:
        results["card"] = describe_card()
    if not arguments.without_tests:
        results["tests"] = run_tests(arguments.cpu, TESTS_SHARE * arguments.seconds)
    ladder = Ladder(shape, arguments.cpu, until)
    ladder.run(arguments.rounds)
    results["ladder"] = summarize(ladder.found)
    results["seconds"] = time.monotonic() - began
    name = "card_rehearsal" if arguments.cpu else "card"
    document = save(name, results, arguments.out)
    page = arguments.out / f"{name}.md"
    page.write_text(write_page(document))
    print(page, file=sys.stderr)


if __name__ == "__main__":
    main()
