"""Exact resume: a resumed run computes the same numbers as an uninterrupted one, or reports what differs.

Besides weights, optimiser and schedule, a checkpoint holds a snapshot of each rank (`RANKS`: its random generators and
the sums not yet reported) and a fingerprint (`FILE`): digests of all these, a hash of the next batch, and the
environment. A resume computes the fingerprint again after restoring everything, and compares the two.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.models.versions import list_versions
from engine.training.background_writer import copy_to_host
from engine.training.parallel.sharded_state import local

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

RANKS = "ranks.pt"
"""In a checkpoint's `trainer/`: each rank's snapshot, in rank order."""
FILE = "fingerprint.json"
EXACT = "exact"
_SAMPLE = 1024
"""Elements of each tensor that go into a digest: enough to distinguish states, and cheap compared with a step."""
_SECTIONS = ("model", "adapter", "method", "training")
_WITHOUT_EFFECT = {"training.rehearsal", "training.threads", "training.workers"}
"""Settings of these sections that do not affect any result, or are compared separately."""


def get_random_state() -> dict[str, Any]:
    """The states of all random generators of this process."""
    import numpy
    import torch

    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, numpy.ndarray) else part for part in numpy.random.get_state()],
        "torch": torch.get_rng_state(),
    }
    if device := _find_device_generator():
        state["device"] = device.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    import numpy
    import torch

    random.setstate(state["python"])
    numpy.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    device = _find_device_generator()
    if device and "device" in state:
        device.set_rng_state(state["device"])


def _find_device_generator() -> Any:
    """torch's module for the accelerator, if there is one with its own generator; else None."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    module = torch.get_device_module(accelerator) if accelerator else None
    return module if hasattr(module, "get_rng_state") else None


def restore(loop: TrainingLoop, folder: Path) -> str:
    """Restore this rank's generators and sums; returns `exact`, or a description of what differs. Called on every
    rank."""
    import torch

    snapshots = torch.load(folder / RANKS, weights_only=True, map_location="cpu")
    if len(snapshots) == loop.ranks.world:
        loop.checkpointer.restore(snapshots[loop.ranks.rank])
    now = compute_fingerprint(loop, loop.ranks.gather(copy_to_host(loop.checkpointer.snapshot())))
    then = json.loads((folder / FILE).read_text())
    then["settings"] |= {key: value for key, value in loop.job.replayed.items() if key in then["settings"]}
    differences = list(_find_differences(then, json.loads(json.dumps(now))))
    drift: str = loop.ranks.broadcast(f"not exact: {'; '.join(differences)}" if differences else EXACT)
    return drift


def compute_fingerprint(loop: TrainingLoop, snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    """The state that an exact resume must reproduce. Computed on every rank; cheap compared with writing a
    checkpoint."""
    import torch

    job = loop.job
    loop.strategy.settle()
    return {
        "ranks": loop.ranks.world,
        "shards": loop.strategy.layout,
        "next batch": _digest_next_batch(loop),
        "data": job.prepared.get("hash"),
        "weights": _digest_weights(loop),
        "optimiser": _digest_optimizer(loop),
        "schedule": loop.schedule.last_epoch,
        "generators": [digest(snapshot["random"]) for snapshot in snapshots],
        "threads per rank": torch.get_num_threads(),
        "device": job.device.label,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "computing in": str(job.device.compute),
        "versions": list_versions(),
        "settings": _list_settings(loop.profile.to_dict()),
    }


def _digest_next_batch(loop: TrainingLoop) -> str:
    """A hash of the rows of the next global batch."""
    found = hashlib.sha256()
    for row in loop.batches.rows_of(loop.step):
        found.update(json.dumps(loop.method.rows[row], sort_keys=True, default=str).encode())
    return found.hexdigest()


def _digest_weights(loop: TrainingLoop) -> str:
    """A digest of the trained weights, of each rank's shares of them where they are divided."""
    trained = [weight for weight in loop.model.parameters() if weight.requires_grad]
    parts = (loop.strategy.part(weight) for weight in trained)
    return _hash(loop.strategy.weight_pieces([b"".join(_serialize(part)) for part in parts]))


def _digest_optimizer(loop: TrainingLoop) -> str:
    """A digest of the optimiser's state of all weights, in its own order, whichever ranks hold them."""
    pieces = [b"".join(_serialize(state)) for state in loop.strategy.list_states()]
    return _hash(loop.strategy.optimizer_pieces(pieces))


def digest(content: Any) -> str:
    """A short hash of nested states: tensors by shape, dtype and some of their elements, all other values in full."""
    return _hash(_serialize(content))


def _hash(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()[:16]


def _serialize(content: Any) -> Iterator[bytes]:
    import torch

    if isinstance(content, torch.Tensor):
        content = local(content)
        yield f"{tuple(content.shape)}{content.dtype}".encode()
        flat = content.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].cpu().contiguous()
        yield some.view(torch.uint8).numpy().tobytes() if some.numel() else b""
    elif isinstance(content, Mapping):
        for key in sorted(content, key=str):
            yield str(key).encode()
            yield from _serialize(content[key])
    elif isinstance(content, (list, tuple)):
        for each in content:
            yield from _serialize(each)
    elif hasattr(content, "tobytes"):
        yield content.tobytes()
    else:
        yield repr(content).encode()


def _list_settings(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the results depend on, by their full names."""
    flat = {f"{section}.{key}": value for section in _SECTIONS for key, value in (resolved.get(section) or {}).items()}
    return {key: value for key, value in flat.items() if key not in _WITHOUT_EFFECT}


def _find_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield descriptions of what differs, causes first; consequences of another difference are left out."""
    settings = {**then["settings"], **now["settings"]}
    for key in sorted(settings):
        before, after = then["settings"].get(key), now["settings"].get(key)
        if before != after:
            yield f"{key} {before} → {after}"
    for name in sorted({*then["versions"], *now["versions"]}):
        before, after = then["versions"].get(name, "none"), now["versions"].get(name, "none")
        if before != after:
            yield f"{name} {before} → {after}"
    for name in ("ranks", "threads per rank", "device", "processor", "computing in"):
        if then[name] != now[name]:
            yield f"{name} {then[name]} → {now[name]}"
    if then["ranks"] == now["ranks"] and then.get("shards", 1) != now["shards"]:
        yield "launch.strategy divides the weights otherwise"
    if then["data"] != now["data"]:
        yield "other data"
    if then["next batch"] != now["next batch"]:
        yield "the next batch holds other rows"
    # Digests of shares can only be compared with those of the same shares.
    compared = ("weights", "optimiser", "schedule") if then.get("shards", 1) == now["shards"] else ("schedule",)
    for name in compared:
        if then[name] != now[name]:
            yield f"the {name} read back differs" if name != "weights" else "the weights read back differ"
    if then["ranks"] == now["ranks"] and then["generators"] != now["generators"]:
        yield "the random generators are in another state"
