"""Generating a reply to each prompt of a file: read, batch by length, decode on one or several devices, write in the
file's order.

The batches depend on the file alone, and each row has its own seed. So the replies do not depend on the number of
devices, nor on an interruption: an incomplete batch is decoded again, and its rows that were finished are kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.inference.bulk import decode, prompts
from engine.inference.bulk.decode import Batch
from engine.inference.bulk.progress import Record
from engine.inference.generate import BATCH, describe_no_room, room
from engine.inference.request import parse_reply, read_sampling
from engine.models import libraries, targets
from engine.models.placement import estimate_bytes
from engine.protocol.home import Home

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel

Progress = Callable[[str, int, int], None]
OUTPUTS = (".json", ".jsonl")


def generate(
    request: Mapping[str, Any], home: Home, progress: Progress, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Generate replies to a file. Returns `rows seconds tokens failed kept total template note output`; `failed` counts
    replies that the task cannot parse and prompts that do not fit.

    `request` has `target directory input output`, and may have `task system devices batch_size again dtype
    quantization` and the settings of sampling. `progress` is called with (stage, done, total). When it is `cancelled`,
    finished rows are kept for the next call. Raises ProblemError and ValueError.
    """
    libraries.import_all()
    from engine.inference.loaded_model import load

    began = time.perf_counter()
    source, output = _find_files(request)
    settings = asdict(read_sampling(request))
    settings["stop"] = list(settings["stop"])
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    progress(f"reading {source.name}", 0, 0)
    rows = prompts.read(source, request.get("task"), request.get("system"))
    target = targets.resolve(request["target"], home, Path(request["directory"]))
    size = request.get("batch_size") or BATCH
    identity = _identify(request, source, target, settings, size)
    with Record(output, identity, again=bool(request.get("again"))) as record:
        kept = len(record.done)
        progress(f"loading {target.label}", 0, 0)
        target = targets.fetch(target, home, progress)
        loading: dict[str, Any] = {name: request.get(name) for name in ("dtype", "quantization")}
        needed = 0 if target.on_hub else estimate_bytes(Path(target.base), loading["dtype"] or target.dtype)
        names = decode.choose_devices(request.get("devices"), needed)
        loaded = load(target, home=home, device=names[0] if names else None, progress=progress, **loading)
        template, note = loaded.templated, loaded.note
        batches = _batches(loaded, rows, size, record)

        def on_row(row: int, reply: dict[str, Any]) -> None:
            if row not in record.done:
                record.add(row, reply | parse_reply(request, reply["reply"]))
                progress("generating", len(record.done), len(rows))

        progress("generating", len(record.done), len(rows))
        if len(names) <= 1:
            for batch in batches:
                if not cancelled():
                    decode.decode_batch(loaded, batch, settings, record.seed, on_row, cancelled)
        elif batches:
            del loaded
            names_of_target = ("target", "directory", "dtype", "quantization")
            arguments = {name: request.get(name) for name in names_of_target}
            arguments |= {"seed": record.seed, "settings": settings}
            decode.decode_on_devices(names, arguments, home, batches, on_row, cancelled)
        if len(record.done) == len(rows):
            record.finish({**row.row, **record.done[number]} for number, row in enumerate(rows))
        facts = {"kept": kept, "total": len(rows), "template": template, "note": note, "output": str(output)}
        return {"seconds": time.perf_counter() - began, **_count(record), **facts}


def _find_files(request: Mapping[str, Any]) -> tuple[Path, Path]:
    """The input and the output. Raises ValueError for an output that cannot be written."""
    directory = Path(request["directory"])
    source, output = ((directory / Path(request[name]).expanduser()).absolute() for name in ("input", "output"))
    if output.suffix.lower() not in OUTPUTS:
        raise ValueError(f"{output.name} must end in .jsonl, a reply a line, or .json, one list")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent}")
    return source, output


def _identify(
    request: Mapping[str, Any], source: Path, target: targets.Target, settings: Mapping[str, Any], size: int
) -> dict[str, Any]:
    """Everything that the replies depend on."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        **{name: request.get(name) for name in ("task", "system", "dtype", "quantization")},
        "input": digest,
        "target": [target.label, target.base],
        "sampling": settings,
        "batch size": size,
    }


def _batches(loaded: LoadedModel, rows: list[prompts.PromptRow], size: int, record: Record) -> list[Batch]:
    """Prompts of about the same length together, the longest first, so that a lack of memory shows at once. Prompts
    without room are recorded as errors here."""
    lengths = [len(loaded.prompt(row.prompt)) for row in rows]
    order = []
    for number in sorted(range(len(rows)), key=lambda number: (-lengths[number], number)):
        if room(loaded.model, lengths[number]) > 0 and lengths[number]:
            order.append(number)
        elif number not in record.done:
            error = describe_no_room(loaded.model, lengths[number])
            record.add(number, {"reply": "", "tokens": 0, "finish": "error", "error": error})
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return [
        Batch(group, [rows[number].prompt for number in group])
        for group in groups
        if any(number not in record.done for number in group)
    ]


def _count(record: Record) -> dict[str, int]:
    done = record.done.values()
    return {
        "rows": len(done),
        "tokens": sum(row["tokens"] for row in done),
        "failed": sum(_has_failed(row) for row in done),
    }


def _has_failed(row: Mapping[str, Any]) -> bool:
    return "error" in row or ("parsed" in row and row["parsed"] is None)
