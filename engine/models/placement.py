"""Chooses the device for a model: the one with the most free memory, or several GPUs if the model fits none alone.
Raises a problem that says what uses the memory if all of them together have too little."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.hardware import listing, masks
from engine.models.weights import DamagedFile, read_header
from engine.protocol.messages import Device, DeviceProcess, Problem, ProblemError

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.1, "nf4": 0.65}
"""Bytes per parameter, including the parts of a quantised model that are not quantised."""
OVERHEAD = 1.2
"""A factor on the size of the weights for the cache, activations and the allocator."""


def estimate_bytes(folder: Path, kind: str | None) -> int:
    """Bytes that the model in `folder` will take in `kind`, a dtype or quantisation (None: as stored); 0 when
    unknown."""
    total = 0.0
    for path in folder.glob("*.safetensors"):
        try:
            tensors = read_header(path).values()
        except DamagedFile:
            return 0
        for tensor in tensors:
            elements = 1
            for size in tensor.shape:
                elements *= size
            total += elements * BYTES[kind] if kind else tensor.end - tensor.begin
    return int(total * OVERHEAD)


@dataclass(frozen=True)
class Spread:
    """Where a model goes: to `device`, or in parts to several cards, the first of which is `device`."""

    device: str
    room: dict[int, int] | None = None
    """Bytes that the model may take on each card, by torch's numbers; None for one device."""
    note: str = ""
    """How it is spread, in one line."""

    @property
    def load_arguments(self) -> dict[str, Any]:
        """The arguments for `from_pretrained`."""
        if self.room is None:
            return {"device_map": {"": self.device}}
        return {"device_map": "auto", "max_memory": dict(self.room)}


def spread(needed: int) -> Spread:
    """Like `choose`, but a model that does not fit on any single card is spread over all visible ones. Raises
    ProblemError, with figures, if they do not have enough memory together."""
    import torch

    try:
        return Spread(choose(needed))
    except ProblemError as error:
        devices = listing.list_visible()
        if _is_started():
            devices = devices[: torch.cuda.device_count()]
        rooms = {device.index: int(_FILLED * max(0, _measure_or_guess(device))) for device in devices}
        usable = [device for device in devices if rooms[device.index] > _LEAST_PART]
        if len(usable) < 2:
            raise
        if sum(rooms[device.index] for device in usable) < needed:
            raise ProblemError(_describe_full_together(error.problem, [rooms[device.index] for device in usable]))
    order = sorted(usable, key=lambda device: -rooms[device.index])
    if _is_started():
        numbers = {device.index: at for at, device in enumerate(devices)}
    else:
        _put_first([device.index for device in order])
        numbers = {device.index: at for at, device in enumerate(order)}
    parts = ", ".join(f"GPU {device.index} ({rooms[device.index] / 1e9:.1f} GB)" for device in order)
    return Spread(
        f"cuda:{numbers[order[0].index]}",
        {numbers[device.index]: rooms[device.index] for device in order},
        f"spread over {len(order)} GPUs: it needs about {needed / 1e9:.1f} GB, and takes up to {parts}",
    )


def is_spread(model: Any) -> bool:
    """Whether the layers of a model are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def check_spread(model: Any) -> None:
    """Raises ProblemError if parts of a spread model were placed outside the cards."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if outside := places & {"cpu", "disk", "meta"}:
        raise ProblemError(
            Problem(
                code="memory.device_full",
                title="The visible GPUs together have no room for this model",
                cause=f"parts of it would have to stay on {' and '.join(sorted(outside))}",
                hint="stop what holds their memory, or choose a quantisation (nf4 takes a quarter)",
            )
        )


_FILLED = 0.9
"""Share of a card's free memory that the weights of a spread model may take."""
_LEAST_PART = 1 << 30
"""Bytes; a card with less room is left out, since its context alone takes half of that."""


def choose(needed: int) -> str:
    """The device: `cuda:N`, another accelerator's name, or `cpu`. Raises ProblemError, with figures, when no GPU has
    `needed` bytes free.

    The driver's library is asked for free memory, since torch would open a context of half a gigabyte on each card that
    it asks. Before CUDA is started, the chosen card is put first in the mask: `cuda:0` is the device of every thread
    that names none.
    """
    import torch

    if not (torch.version.cuda or torch.version.hip):
        return _name_other()
    devices = listing.list_visible()
    if not devices:
        return _choose_unlisted(needed)
    if _is_started():
        devices = devices[: torch.cuda.device_count()]
    order = sorted(range(len(devices)), key=lambda at: -_measure_or_guess(devices[at]))
    best = devices[order[0]]
    if (free := listing.measure_free(best)) is not None and free < needed:
        raise ProblemError(_describe_full(needed, devices))
    if _is_started():
        return f"cuda:{order[0]}"
    _put_first([devices[at].index for at in order])
    return "cuda:0" if torch.cuda.is_available() else _name_other()


def _put_first(indices: list[int]) -> None:
    """Make these cards, in this order, the ones that this process sees, before CUDA is started."""
    os.environ.update(masks.restrict(os.environ, os.environ, listing.Listing().sample_devices(), indices))
    _placed.append(indices[0])


def list_gpus() -> list[Device]:
    """The GPUs that this torch can use, in the order in which it counts them."""
    import torch

    if not (torch.version.cuda or torch.version.hip):
        return []
    devices = listing.list_visible()
    if devices and not _is_started():
        os.environ.setdefault(masks.NVML_CHECK, "1")  # so that the next line starts nothing
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    return devices[:count] or [Device(index=index, name="", processes=None) for index in range(count)]


def isolate(name: str) -> tuple[str, dict[str, str]]:
    """The device's name in a child process, and the environment of a child that sees this process's device `name`
    alone."""
    kind, _, index = name.partition(":")
    if kind != "cuda":
        return name, dict(os.environ)
    place, cards = int(index or 0), listing.Listing().sample_devices()
    visible = list(masks.find_visible(cards, os.environ))
    if visible:
        return "cuda:0", masks.restrict(os.environ, os.environ, cards, [visible[place]])
    mask = os.environ.get(masks.CUDA)
    token = masks.read_tokens(mask)[place] if mask is not None else str(place)
    return "cuda:0", {**os.environ, masks.CUDA: token, masks.ORDER: "PCI_BUS_ID"}


_placed: list[int] = []
"""Devices that models of this process were placed on before CUDA was started. Their numbers must no longer change."""


def _is_started() -> bool:
    """Whether this process may no longer change its mask: CUDA has read it, or a model was placed by it."""
    import torch

    return bool(_placed) or torch.cuda.is_initialized() or _has_read_mask()


def _has_read_mask() -> bool:
    """Whether CUDA's driver has been started in this process, by whatever library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)
    except (OSError, AttributeError):
        return False


_NOT_INITIALIZED = 3
"""CUDA_ERROR_NOT_INITIALIZED."""


def _name_other() -> str:
    """The accelerator of a torch without CUDA, or the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return str(accelerator) if accelerator else "cpu"


def _measure_or_guess(device: Device) -> int:
    """Free bytes; -1, which sorts after all others, if the device does not report them."""
    free = listing.measure_free(device)
    return -1 if free is None else free


def _choose_unlisted(needed: int) -> str:
    """The first card that has room, for cards that no library lists. Asking a card opens a context on it, so the cards
    after the first with room are not asked."""
    import torch

    if not torch.cuda.is_available():
        return _name_other()
    rooms = []
    for index in range(torch.cuda.device_count()):
        rooms.append(torch.cuda.mem_get_info(index)[0])
        if rooms[-1] >= needed:
            return f"cuda:{index}"
    cause = "; ".join(f"GPU {index} has {room / 1e9:.1f} GB free" for index, room in enumerate(rooms))
    raise ProblemError(_make_full(needed, cause))


def _describe_full(needed: int, devices: Sequence[Device]) -> Problem:
    rooms = (
        f"GPU {device.index} has {(listing.measure_free(device) or 0) / 1e9:.1f} GB free ({_describe_holders(device)})"
        for device in devices
    )
    return _make_full(needed, "; ".join(rooms))


def _make_full(needed: int, rooms: str) -> Problem:
    return Problem(
        code="memory.device_full",
        title="No device has room for this model",
        cause=f"it needs about {needed / 1e9:.1f} GB; {rooms}",
        hint=(
            "stop one of these processes, choose a quantisation (nf4 takes a quarter), "
            "or use the CPU with CUDA_VISIBLE_DEVICES="
        ),
    )


def _describe_full_together(alone: Problem, rooms: Sequence[int]) -> Problem:
    return Problem(
        code="memory.device_full",
        title=f"{len(rooms)} GPUs together have no room for this model",
        cause=f"{alone.cause}; together {sum(rooms) / 1e9:.1f} GB can be used",
        hint=alone.hint,
    )


def _describe_holders(device: Device) -> str:
    """Describe the processes on a GPU, largest first, for a message."""
    if device.processes is None:
        return "used by processes that cannot be listed"
    largest = sorted(device.processes, key=lambda process: process.memory or 0, reverse=True)[:3]
    return ", ".join(map(_describe_process, largest)) or "used by no visible process"


def _describe_process(process: DeviceProcess) -> str:
    size = "memory –" if process.memory is None else f"{process.memory / 1e9:.1f} GB"
    owner = f"{process.name} of {process.user}, " if process.name else ""
    return f"{owner}pid {process.pid}: {size}"
