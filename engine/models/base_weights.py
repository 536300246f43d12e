"""Whether an adapter's base is the one that it was trained on.

An adapter is a difference from certain weights. Put on others of the same shape, such as a later release of the base at
the same path, it loads without an error and answers badly. So a checkpoint records `identify` of its base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from engine.models.weights import DamagedFile, read_header
from engine.protocol.messages import Problem

KEY = "base_weights"
"""The identity's name in `lock.json`."""
SAMPLE = 4096
"""Bytes read from the middle of each tensor."""
SAMPLES = 256
"""Pieces read from a file whose tensors cannot be found without torch."""


def identify(folder: Path) -> str | None:
    """A SHA-256 over name, dtype, shape and some bytes of each tensor in `folder`; None where there are no weights or
    they cannot be read.

    Training changes a tensor everywhere, so a few bytes of each tell other weights apart, in milliseconds where a hash
    of all bytes takes minutes. It does not depend on how safetensors are distributed over files.
    """
    try:
        pieces = list(_sample_safetensors(folder)) or list(_sample_pickled(folder))
    except (DamagedFile, OSError):
        return None
    total = hashlib.sha256()
    for name, content in sorted(pieces):
        total.update(name.encode() + b"\n" + hashlib.sha256(content).digest())
    return total.hexdigest() if pieces else None


def has_changed(recorded: object, base: Path) -> bool:
    """Whether the weights in `base` are others than those whose identity was `recorded`. False where none was, and
    where the folder has none yet."""
    return isinstance(recorded, str) and base.is_dir() and identify(base) not in (None, recorded)


def explain(label: str, base: str) -> Problem:
    """The problem of an adapter, named by `label`, whose base has changed."""
    return Problem(
        code="model.base_changed",
        title=f"{label} was trained on other weights than those in {base}",
        cause="the folder has changed since: on other weights the adapter's changes mean nothing",
        hint="put the earlier weights back, or name the folder that has them in `base` of the checkpoint's lock.json",
    )


def _sample_safetensors(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            for name, tensor in read_header(path).items():
                length = tensor.end - tensor.begin
                file.seek(tensor.begin + max(0, length - SAMPLE) // 2)
                yield f"{name} {tensor.dtype} {tensor.shape}", file.read(min(length, SAMPLE))


def _sample_pickled(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted((*folder.glob("*.bin"), *folder.glob("*.pt"))):
        size = path.stat().st_size
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(size * number // SAMPLES)
                yield f"{path.name} {size} {number:04}", file.read(min(SAMPLE, size // SAMPLES + 1))
