"""The state of sharded training on disk: each rank writes its own shares, with torch.distributed.checkpoint.

Every tensor is stored under its position or name, in parts. So a checkpoint can be read with any number of ranks and by
any strategy. Sharded training can also read the checkpoint of an unsharded strategy (`optimizer.pt`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.training.ranks import Ranks

FOLDER = "shards"
"""Folder in a checkpoint's `trainer/`."""
OPTIMIZER, WEIGHTS, AVERAGES = "optimizer", "weights", "averages"


def local(tensor: Any) -> Any:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def like(weight: Any, whole: Any) -> Any:
    """A copy of `whole`, which has the shape of `weight`, divided as `weight` is, on its device.

    torch's `distribute_tensor` would first move all of it to the device, also for weights that are kept on the host.
    """
    if not hasattr(weight, "device_mesh"):
        return whole.to(weight.device, copy=True)
    from torch.distributed.tensor import DTensor

    mesh, mine = weight.device_mesh, local(weight)
    parts = whole.chunk(mesh.size(), dim=0)
    rank = mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else whole[:0]
    return DTensor.from_local(
        part.to(mine.device, copy=True),
        mesh,
        weight.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.contiguous().stride(),
    )


# ── writing and reading ───────────────────────────────────────────────────────────────────────────────────────────────


def write(folder: Path, state: Mapping[str, Any], ranks: Ranks) -> None:
    """Write `state` (tensors by name); every rank writes its own parts. If one cannot, OSError is raised on all."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    writer = dcp.FileSystemWriter(folder, sync_files=False)  # the checkpoint is synced as a whole
    try:
        dcp.save(dict(state), storage_writer=writer, process_group=ranks.group)
    except CheckpointException as error:  # a BaseException, raised on every rank with the failures of all ranks
        causes = [cause for cause, _ in error.failures.values()]
        raise next((each for each in causes if isinstance(each, OSError)), RuntimeError(str(causes[0]))) from None


def read(folder: Path, state: dict[str, Any], ranks: Ranks, *, alone: bool) -> None:
    """Read the tensors of `state`, sharded or not, in place. With `alone`, the other ranks need not call it."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    if alone:
        dcp.load(state, storage_reader=reader, no_dist=True)
    else:
        dcp.load(state, storage_reader=reader, process_group=ranks.group)


def list_names(folder: Path) -> dict[str, Any]:
    """Names of the tensors in `folder`, each with its size and dtype."""
    import torch.distributed.checkpoint as dcp

    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: (entry.size, entry.properties.dtype) for name, entry in metadata.items() if hasattr(entry, "size")}


def read_named(folder: Path, part: str, weights: Mapping[str, Any], ranks: Ranks, *, alone: bool) -> dict[str, Any]:
    """The stored tensors of a `part` (`WEIGHTS` or `AVERAGES`) under the names of `weights`, divided as those are; {}
    if the checkpoint has none."""
    import torch

    stored = list_names(folder)
    wanted = {f"{part}.{name}": weight for name, weight in weights.items() if f"{part}.{name}" in stored}
    state = {key: torch.zeros_like(weight, dtype=stored[key][1]) for key, weight in wanted.items()}
    read(folder, state, ranks, alone=alone)
    return {key.removeprefix(f"{part}."): value for key, value in state.items()}


# ── the optimiser ─────────────────────────────────────────────────────────────────────────────────────────────────────


def flatten_optimizer(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """The names and tensors of an optimiser's state; a name contains the position of the weight in the optimiser."""
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            yield f"{OPTIMIZER}.{index}.{name}", value


def read_optimizer(folder: Path, optimizer: Any, groups: Any, ranks: Ranks) -> None:
    """Load the shards of an optimiser's state into `optimizer`, whose weights are sharded, with these groups."""
    import torch

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[str, Any] = {}
    for name, index, size, dtype in _list_optimizer(folder):
        weight = weights[index]
        same = size == tuple(weight.shape)
        state[name] = torch.zeros_like(weight, dtype=dtype) if same else torch.zeros(size, dtype=dtype)
    read(folder, state, ranks, alone=False)
    optimizer.load_state_dict({"state": _nest(state), "param_groups": groups})


def read_whole_optimizer(folder: Path) -> dict[int, dict[str, Any]]:
    """The state of each weight, whole, as an unsharded optimiser has it."""
    import torch

    state = {name: torch.zeros(size, dtype=dtype) for name, _, size, dtype in _list_optimizer(folder)}
    read(folder, state, Ranks(), alone=True)
    return _nest(state)


def _list_optimizer(folder: Path) -> Iterator[tuple[str, int, tuple[int, ...], Any]]:
    """Names, positions of their weights, sizes and dtypes of the optimiser's tensors."""
    for name, (size, dtype) in list_names(folder).items():
        part, _, rest = name.partition(".")
        if part == OPTIMIZER:
            yield name, int(rest.partition(".")[0]), tuple(size), dtype


def _nest(state: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        _, index, key = name.split(".", 2)
        found.setdefault(int(index), {})[key] = value
    return found


def divide_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Load a whole state, as an unsharded optimiser has it, into `optimizer`, whose weights are sharded."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        index: {
            name: like(weights[index], value) if getattr(value, "shape", None) == weights[index].shape else value
            for name, value in held.items()
        }
        for index, held in saved["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
