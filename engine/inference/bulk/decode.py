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

from engine.inference.request import Asked, settings_of
from engine.models import placement, targets
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from engine.inference.loaded_model import Loaded

WORKER = "engine.workers.generate"
_IDLE = 0.95
"""Share of a GPU's memory that is free when nobody uses it."""


@dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together, with their numbers. A row's seed is the first one's plus its number."""

    rows: Sequence[int]
    asked: Sequence[Asked]


Told = Callable[[int, dict[str, Any]], None]
"""Hears a row's number and what became of it: `reply thinking tokens finish`."""


def decode(
    loaded: Loaded, batch: Batch, settings: Mapping[str, Any], seed: int, told: Told, cancelled: Callable[[], bool]
) -> None:
    """Every row of `batch`, but those that are not finished when it is cancelled."""
    sampling = settings_of(settings)

    def finished(place: int, reply: Any) -> None:
        if reply.finish != "cancelled":
            thinking = {"thinking": reply.thinking} if reply.thinking else {}
            found = {"reply": reply.text, **thinking, "tokens": reply.tokens, "finish": reply.finish}
            told(batch.rows[place], found)

    samplings = [replace(sampling, seed=seed + row) for row in batch.rows]
    loaded.batch(batch.asked, samplings, finished, cancelled, len(batch.rows))


def chosen(asked: Sequence[str] | None, needed: int) -> list[str]:
    """Devices by torch's names: those asked for (`0`, `cuda:1`, `cpu`), else all that have room and nobody on them, else the best one.
    Raises ValueError for one that is not here, ProblemError when none has room."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked:
        named = [f"cuda:{each}" if each.isdecimal() else each for each in asked]
        for name in named:
            kind, _, index = name.partition(":")
            if kind not in ("cpu", "cuda") or (kind == "cuda" and int(index or 0) >= count):
                raise ValueError(f"there is no device {name}: this machine has {count} GPUs")
        return named
    free = [torch.cuda.mem_get_info(index) for index in range(count)]
    found = [f"cuda:{index}" for index, (left, total) in enumerate(free) if left > max(needed, _IDLE * total)]
    return found or [placement.choose(needed)]


def each(
    names: Sequence[str],
    arguments: Mapping[str, Any],
    home: Home,
    batches: Sequence[Batch],
    told: Told,
    cancelled: Callable[[], bool],
) -> None:
    """All batches, on as many processes as there are devices. `arguments` are `target directory dtype quantization seed` and the settings.
    Raises ProblemError for a process that fails; the others are ended."""
    waiting: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    for batch in batches:
        waiting.put(batch)
    heard: queue.SimpleQueue[tuple[int, dict[str, Any]] | Problem | None] = queue.SimpleQueue()
    with _processes(names, home, arguments) as processes:
        for process in processes:
            threading.Thread(target=_feed, args=(process, waiting, heard), daemon=True).start()
        working = len(processes)
        while working and not cancelled():
            try:
                found = heard.get(timeout=0.1)
            except queue.Empty:
                continue
            if found is None:
                working -= 1
            elif isinstance(found, Problem):
                raise ProblemError(found)
            else:
                told(*found)


def _feed(process: Any, waiting: queue.SimpleQueue[Batch], heard: queue.SimpleQueue[Any]) -> None:
    """Give batches to a process, one after another, and hand on what it says."""
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
                    heard.put(
                        Problem(
                            code="generation.process_failed",
                            title=f"A process of generation ended with status {process.wait()}",
                            hint="its log says why",
                        )
                    )
                    return
                entry = json.loads(line)
                if "problem" in entry:
                    heard.put(msgspec.convert(entry["problem"], Problem))
                    return
                heard.put((entry["row"], entry["output"]))
    except (OSError, ValueError) as error:
        heard.put(
            Problem(
                code="generation.process_failed", title="A process of generation cannot be reached", cause=str(error)
            )
        )
    finally:
        heard.put(None)


@contextmanager
def _processes(names: Sequence[str], home: Home, arguments: Mapping[str, Any]) -> Iterator[list[Any]]:
    command = [sys.executable, "-P", "-m", WORKER, "--home", str(home.root), "--share", json.dumps(arguments)]
    found = [
        subprocess.Popen([*command, "--device", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.wait()


def share(home: Home, arguments: Mapping[str, Any], device: str) -> None:
    """One of the processes: batches come in by lines, rows go out."""
    from engine.inference.loaded_model import load

    # What libraries print must not come between the lines.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(entry: dict[str, Any]) -> None:
        print(json.dumps(entry), file=told, flush=True)

    try:
        target = targets.resolve(arguments["target"], home, Path(arguments["directory"]))
        loaded = load(
            target, home=home, dtype=arguments["dtype"], quantization=arguments["quantization"], device=device
        )
        for line in sys.stdin:
            batch = Batch(**json.loads(line))
            decode(
                loaded,
                batch,
                arguments["settings"],
                arguments["seed"],
                lambda row, output: say({"row": row, "output": output}),
                lambda: False,
            )
    except ProblemError as error:
        say({"problem": error.problem.document()})
    except (ValueError, RuntimeError, MemoryError) as error:
        cause = str(error).strip().splitlines()[0]
        say(
            {
                "problem": Problem(
                    code="generation.failed", title=f"Generation failed on {device}", cause=cause
                ).document()
            }
        )
