"""Gives every rank a model that only rank 0 has loaded: first its structure, then its weights, one part at a time.

The model is built once, in rank 0's host memory, by the same code as for a single process. The structure that the other
ranks receive contains all layers that this code has quantised, replaced or adapted. So the host holds one whole model
and the shares of the ranks, never one whole model for each rank.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import pickle
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line
from engine.training.ranks import Ranks


def share_structure(model: Any, ranks: Ranks) -> Any:
    """On rank 0 `model` itself; on the others its structure, with weights and buffers on the meta device. Tensors that
    are neither, such as the scales of quantised weights, are copied. Raises ProblemError for a model that cannot be
    copied."""
    content = ranks.broadcast(_dump(model) if ranks.first else None)
    found, wrong = model, content if isinstance(content, str) else ""
    if not wrong and not ranks.first:
        try:
            found = _load(content)
        except (ImportError, AttributeError, TypeError, pickle.UnpicklingError) as error:
            wrong = f"its structure cannot be read on another rank: {first_line(error)}"
    if wrong := next(filter(None, ranks.gather(wrong)), ""):
        raise unshardable(wrong)
    return found


def unshardable(cause: str, hint: str = "set launch.strategy to ddp or zero1") -> ProblemError:
    return ProblemError(
        Problem(code="launch.unshardable", title="This model cannot be divided among ranks", cause=cause, hint=hint)
    )


@contextmanager
def first_alone(ranks: Ranks) -> Iterator[None]:
    """Context in which rank 0 works with all cores, however long it takes; the other ranks wait at the end until rank 0
    is done."""
    import torch
    from torch.distributed import distributed_c10d

    store, key = distributed_c10d._get_default_store(), f"first-alone-{next(_counter)}"
    if ranks.first:
        threads = torch.get_num_threads()
        torch.set_num_threads(os.cpu_count() or 1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
        store.set(key, "done")
        return
    yield
    with ranks.waiting():
        # Polled, since a collective would give up after `ranks.TIMEOUT`. If rank 0 dies, the launcher ends all ranks.
        while not store.check([key]):
            time.sleep(_ROUND)


_ROUND = 0.05
"""Seconds between two checks whether rank 0 is done."""
_counter = itertools.count()


def _dump(model: Any) -> bytes | str:
    """The pickled structure of `model`, or a message that says what cannot be pickled."""
    places = {id(tensor): index for index, tensor in enumerate(_list_tensors(model))}
    shapes = [(tuple(t.shape), t.dtype, _is_weight(t), t.requires_grad) for t in _list_tensors(model)]
    file = io.BytesIO()
    try:
        pickle.dump(shapes, file)
        _Pickler(file, places).dump(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return f"its structure cannot be sent to the other ranks: {first_line(error)}"
    return file.getvalue()


def _load(content: bytes) -> Any:
    from transformers.dynamic_module_utils import init_hf_modules

    init_hf_modules()  # makes the folder importable into which rank 0 has put the code that comes with a model
    importlib.invalidate_caches()
    file = io.BytesIO(content)
    return _Unpickler(file, pickle.load(file)).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, places: dict[int, int]) -> None:
        super().__init__(file)
        self._places = places

    def persistent_id(self, content: Any) -> int | None:
        return self._places.get(id(content))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, shapes: list[Any]) -> None:
        super().__init__(file)
        import torch

        self._tensors: list[Any] = []
        for shape, dtype, is_weight, trained in shapes:
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            self._tensors.append(torch.nn.Parameter(tensor, requires_grad=trained) if is_weight else tensor)

    def persistent_load(self, place: int) -> Any:
        return self._tensors[place]


def _list_tensors(model: Any) -> Iterable[Any]:
    """Weights and buffers of `model`, each once, in the same order on all ranks."""
    return {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()


def _is_weight(tensor: Any) -> bool:
    import torch

    return isinstance(tensor, torch.nn.Parameter)


class Placer:
    """Moves the tensors of a model to each rank's device, from rank 0's memory. Every rank calls it for the same
    modules."""

    def __init__(self, ranks: Ranks, device: str, dtype: Any = None) -> None:
        """Floating-point weights that are trained become `dtype`, unless it is None."""
        self._ranks, self._device, self._dtype = ranks, device, dtype

    def place(self, module: Any) -> None:
        """Put the weights and buffers of `module` and its submodules on this rank's device. Those that are already
        divided among the ranks stay as they are. Rank 0's copy in host memory can then be freed."""
        import torch

        placed: dict[int, Any] = {}  # tied weights stay tied
        sources = []
        for held, name, tensor in list(_list_places(module)):
            if hasattr(tensor, "device_mesh") or hasattr(tensor, "ds_id"):
                continue
            if id(tensor) not in placed:
                sources.append(tensor)  # kept alive, so that no other tensor gets the same id
                copy = self._send(tensor)
                is_weight = _is_weight(tensor)
                placed[id(tensor)] = torch.nn.Parameter(copy, requires_grad=tensor.requires_grad) if is_weight else copy
            held[name] = placed[id(tensor)]

    def _send(self, tensor: Any) -> Any:
        import torch
        import torch.distributed as dist

        if self._ranks.first:
            plain = tensor.detach().as_subclass(torch.Tensor)  # quantised weights are of a class of their own
            copy = plain.to(self._device).contiguous()
        else:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        if copy.numel():  # as bytes: not every back end knows every dtype
            dist.broadcast(copy.reshape(-1).view(torch.uint8), src=0)
        if self._dtype is not None and tensor.requires_grad and copy.is_floating_point():
            copy = copy.to(self._dtype)
        return copy


def _list_places(module: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Each dictionary of a submodule that holds a weight or buffer, with its key and the tensor."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    yield held, name, tensor
