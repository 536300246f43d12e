"""Batches of prompts decoded on one device in this process, or on several in one process each."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.hardware.listing import measure_free
from engine.inference.request import Prompt, read_sampling
from engine.models import libraries, placement, targets
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel

WORKER = "engine.workers.generate"
_IDLE = 0.95
"""Share of a GPU's memory that is free when nobody uses it."""


@dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together, with their rows' numbers. A row's seed is the first seed plus its number."""

    rows: Sequence[int]
    asked: Sequence[Prompt]


OnRow = Callable[[int, dict[str, Any]], None]
"""Called with a row's number and its output: `reply thinking tokens finish`."""


def decode_batch(
    loaded: LoadedModel,
    batch: Batch,
    settings: Mapping[str, Any],
    seed: int,
    on_row: OnRow,
    cancelled: Callable[[], bool],
) -> None:
    """Generate the replies of a batch. `on_row` is called for each finished row; cancelled rows are left out."""
    sampling = read_sampling(settings)

    def on_reply(place: int, reply: Any) -> None:
        if reply.finish != "cancelled":
            thinking = {"thinking": reply.thinking} if reply.thinking else {}
            output = {"reply": reply.text, **thinking, "tokens": reply.tokens, "finish": reply.finish}
            on_row(batch.rows[place], output)

    samplings = [replace(sampling, seed=seed + row) for row in batch.rows]
    loaded.batch(batch.asked, samplings, on_reply, cancelled, len(batch.rows))


def choose_devices(requested: Sequence[str] | None, needed: int) -> list[str]:
    """Devices by torch's names: the requested ones (`0`, `cuda:1`, `cpu`), else all unused ones with `needed` bytes
    free if there are several; else none, and the model is placed as any other. Raises ValueError for a device that does
    not exist."""
    seen = placement.list_gpus()
    if requested:
        named = [f"cuda:{each}" if each.isdecimal() else each for each in requested]
        for name in named:
            kind, _, index = name.partition(":")
            if kind not in ("cpu", "cuda") or (kind == "cuda" and int(index or 0) >= len(seen)):
                raise ValueError(f"there is no device {name}: this machine has {len(seen)} GPUs")
        return named
    unused = []
    for place, device in enumerate(seen):
        left, total = measure_free(device), device.memory_total
        if left is not None and total is not None and left > max(needed, _IDLE * total):
            unused.append(f"cuda:{place}")
    return unused if len(unused) > 1 else []


def decode_on_devices(
    names: Sequence[str],
    arguments: Mapping[str, Any],
    home: Home,
    batches: Sequence[Batch],
    on_row: OnRow,
    cancelled: Callable[[], bool],
) -> None:
    """Generate the replies of all batches, with one process for each device.

    `arguments` are `target directory dtype quantization seed settings`. Raises ProblemError when a process fails; the
    others are ended.
    """
    waiting: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    for batch in batches:
        waiting.put(batch)
    results: queue.SimpleQueue[tuple[int, dict[str, Any]] | Problem | None] = queue.SimpleQueue()
    with _start_processes(names, home, arguments) as processes:
        for process in processes:
            threading.Thread(target=_feed, args=(process, waiting, results), daemon=True).start()
        working = len(processes)
        while working and not cancelled():
            try:
                result = results.get(timeout=0.1)
            except queue.Empty:
                continue
            if result is None:
                working -= 1
            elif isinstance(result, Problem):
                raise ProblemError(result)
            else:
                on_row(*result)


def _feed(process: Any, waiting: queue.SimpleQueue[Batch], results: queue.SimpleQueue[Any]) -> None:
    """Send batches to a process, one after another, and put its rows on `results`."""
    try:
        while True:
            try:
                batch = waiting.get_nowait()
            except queue.Empty:
                return
            process.stdin.write(json.dumps({"rows": batch.rows, "asked": batch.asked}) + "\n")
            process.stdin.flush()
            for _ in batch.rows:
                line = process.stdout.readline()
                if not line:
                    results.put(
                        Problem(
                            code="generation.process_failed",
                            title=f"A process of generation ended with status {process.wait()}",
                            hint="its log says why",
                        )
                    )
                    return
                entry = json.loads(line)
                if "problem" in entry:
                    results.put(msgspec.convert(entry["problem"], Problem))
                    return
                results.put((entry["row"], entry["output"]))
    except (OSError, ValueError) as error:
        results.put(
            Problem(
                code="generation.process_failed", title="A process of generation cannot be reached", cause=str(error)
            )
        )
    finally:
        results.put(None)


@contextmanager
def _start_processes(names: Sequence[str], home: Home, arguments: Mapping[str, Any]) -> Iterator[list[Any]]:
    command = [sys.executable, "-P", "-m", WORKER, "--home", str(home.root), "--share", json.dumps(arguments)]
    processes = []
    for name in names:
        device, environment = placement.isolate(name)
        processes.append(
            subprocess.Popen(
                [*command, "--device", device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_process(home: Home, arguments: Mapping[str, Any], device: str) -> None:
    """The work of one process: read batches from stdin, a line each, and write rows to stdout."""
    libraries.import_all()
    from engine.inference.loaded_model import load

    # What libraries print must not come between the rows.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def write(entry: dict[str, Any]) -> None:
        print(json.dumps(entry), file=output, flush=True)

    try:
        target = targets.resolve(arguments["target"], home, Path(arguments["directory"]))
        loaded = load(
            target, home=home, dtype=arguments["dtype"], quantization=arguments["quantization"], device=device
        )
        for line in sys.stdin:
            batch = Batch(**json.loads(line))
            decode_batch(
                loaded,
                batch,
                arguments["settings"],
                arguments["seed"],
                lambda row, found: write({"row": row, "output": found}),
                lambda: False,
            )
    except ProblemError as error:
        write({"problem": error.problem.document()})
    except (ValueError, RuntimeError, MemoryError) as error:
        cause = str(error).strip().splitlines()[0]
        write(
            {
                "problem": Problem(
                    code="generation.failed", title=f"Generation failed on {device}", cause=cause
                ).document()
            }
        )
