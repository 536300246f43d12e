"""A file of prompts answered: read, put together by length, decoded on one or several devices, written in the file's order.

Which prompts are decoded together follows from the file alone, and each row has a seed of its own. So neither the number of devices nor a
kill on the way shows in the replies: a batch that was not whole is decoded again, and what it had said already is kept.
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
from engine.inference.generate import BATCH, no_room, room
from engine.inference.request import parsed, settings_of
from engine.models import targets
from engine.models.placement import estimate_bytes
from engine.protocol.home import Home

if TYPE_CHECKING:
    from engine.inference.loaded_model import Loaded

Progress = Callable[[str, int, int], None]
OUTPUTS = (".json", ".jsonl")


def generate(asked: Mapping[str, Any], home: Home, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
    """`rows seconds tokens failed template note output`; `failed` counts replies that the task cannot read and prompts that do not fit.

    `asked` has `target directory input output`, may have `task system devices batch_size again dtype quantization`, and settings. `progress` is
    told (stage, done, total); what is done when it is `cancelled` is kept for the next call. Raises ProblemError and ValueError.
    """
    from engine.inference.loaded_model import load

    began = time.perf_counter()
    directory = Path(asked["directory"])
    source, output = ((directory / Path(asked[name]).expanduser()).absolute() for name in ("input", "output"))
    if output.suffix.lower() not in OUTPUTS:
        raise ValueError(f"{output.name} must end in .jsonl, a reply a line, or .json, one list")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent}")
    sampling = settings_of(asked)
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    progress(f"reading {source.name}", 0, 0)
    found = prompts.read(source, asked.get("task"), asked.get("system"))
    target = targets.resolve(asked["target"], home, directory)
    size = asked.get("batch_size") or BATCH
    named = {name: asked.get(name) for name in ("task", "system", "dtype", "quantization")}
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = asdict(sampling) | {"stop": list(sampling.stop)}
    identity = named | {
        "input": digest,
        "target": [target.label, target.base],
        "sampling": settings,
        "batch size": size,
    }
    with Record(output, identity, again=bool(asked.get("again"))) as record:
        kept = len(record.done)
        progress(f"loading {target.label}", 0, 0)
        target = targets.fetch(target, home, progress)
        needed = 0 if target.on_hub else estimate_bytes(Path(target.base), asked.get("dtype") or target.dtype)
        names = decode.chosen(asked.get("devices"), needed)
        loaded = load(
            target,
            home=home,
            dtype=asked.get("dtype"),
            quantization=asked.get("quantization"),
            device=names[0],
            progress=progress,
        )
        template, note = loaded.templated, loaded.note
        batches = _batches(loaded, found, size, record)
        chosen = dict(settings)

        def told(row: int, output: dict[str, Any]) -> None:
            if row not in record.done:
                record.add(row, output | parsed(asked, output["reply"]))
                progress("generating", len(record.done), len(found))

        progress("generating", len(record.done), len(found))
        if len(names) == 1:
            for batch in batches:
                if not cancelled():
                    decode.decode(loaded, batch, chosen, record.seed, told, cancelled)
        elif batches:
            del loaded
            arguments = {
                **{name: asked.get(name) for name in ("target", "directory", "dtype", "quantization")},
                "seed": record.seed,
                "settings": chosen,
            }
            decode.each(names, arguments, home, batches, told, cancelled)
        if len(record.done) == len(found):
            record.finish({**found[row].row, **record.done[row]} for row in range(len(found)))
        rows = record.done.values()
        return {
            "rows": len(record.done),
            "seconds": time.perf_counter() - began,
            "tokens": sum(row["tokens"] for row in rows),
            "failed": sum(_failed(row) for row in rows),
            "kept": kept,
            "total": len(found),
            "template": template,
            "note": note,
            "output": str(output),
        }


def _batches(loaded: Loaded, found: list[prompts.Prompt], size: int, record: Record) -> list[Batch]:
    """Prompts of about one length together, the longest first (what does not fit shows at once); those without room are answered here."""
    lengths = [len(loaded.prompt(prompt.asked)) for prompt in found]
    order = []
    for row in sorted(range(len(found)), key=lambda row: (-lengths[row], row)):
        if room(loaded.model, lengths[row]) > 0 and lengths[row]:
            order.append(row)
        elif row not in record.done:
            error = no_room(loaded.model, lengths[row])
            record.add(row, {"reply": "", "tokens": 0, "finish": "error", "error": error})
    together = [order[start : start + size] for start in range(0, len(order), size)]
    return [
        Batch(rows, [found[row].asked for row in rows])
        for rows in together
        if any(row not in record.done for row in rows)
    ]


def _failed(row: Mapping[str, Any]) -> bool:
    return "error" in row or ("parsed" in row and row["parsed"] is None)
