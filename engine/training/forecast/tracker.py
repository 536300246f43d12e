"""Counts the bytes of all live tensors, of real ones and of fake ones alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from engine.training.forecast.heap import Heap

_ANSWERS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
"""Operations that ask a tensor for its numbers, which a fake one does not have."""


class MemoryTracker(TorchDispatchMode):
    """Context in which every storage that an operation creates is counted until it is freed.

    Within torch's FakeTensorMode, entered before this, nothing is allocated or computed. Then questions for a number
    are answered with `answer`. Sizes are those of storages, as an allocator is asked for them, before it rounds.
    """

    def __init__(self, *, fake: bool) -> None:
        super().__init__()
        self.fake = fake
        self.paused = False
        self.answer = 0
        self.padded = False
        """Whether the current batch has padding, which models ask about."""
        self.live = 0
        """Bytes of all live storages."""
        self.peak = 0
        """The largest value of `live` since the last `measure` began."""
        self.heap = Heap()
        """Where a process on a CPU would have the live storages."""
        self.flops = 0
        """Floating-point operations of the matrix products so far."""
        self._storages: dict[int, tuple[Any, int, int]] = {}
        """By the identity of a storage's Python object, which exists as long as the storage: a weak reference to it,
        its counted bytes, and its address in the heap."""

    @contextmanager
    def ignore_propagation(self) -> Iterator[None]:
        """Context in which what torch makes up is not counted: to find out the shape of a divided tensor's result, it
        runs the operation on whole tensors without content, which would be taken for the step's own."""
        plain = ShardingPropagator._propagate_tensor_meta_non_cached

        def propagate(*arguments: Any) -> Any:
            self.paused, before = True, self.paused
            try:
                return plain(*arguments)
            finally:
                self.paused = before

        ShardingPropagator._propagate_tensor_meta_non_cached = propagate  # type: ignore[method-assign]
        try:
            yield
        finally:
            ShardingPropagator._propagate_tensor_meta_non_cached = plain  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # its operations on local tensors come here one by one
        if self.fake and func in _ANSWERS:
            return self._answer(func, args)
        outputs = func(*args, **(kwargs or {}))
        if self.paused:
            return outputs
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=outputs)
        self.count(tree_iter(outputs))
        return outputs

    def __enter__(self) -> MemoryTracker:
        self._plain_resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._make_resize(self._plain_resize)  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._plain_resize  # type: ignore[method-assign]

    def count(self, tensors: Iterable[Any]) -> None:
        """Count the storages of these tensors, if they are not counted already. What is no plain tensor is passed over,
        and so are tensors on the meta device, with which libraries find out shapes."""
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or isinstance(tensor, DTensor):
                continue
            if tensor.layout == torch.strided and tensor.device.type != "meta":
                self._add(tensor.untyped_storage())

    def recount(self, tensor: Any, size: int) -> None:
        """Count the storage of `tensor` with `size` bytes, until it is freed."""
        storage = tensor.untyped_storage()
        self._add(storage)
        self._resize(storage, size)

    def size_of(self, tensors: Iterable[Any]) -> int:
        """The counted bytes of the storages of these tensors, each storage once."""
        found = {}
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            key = id(local.untyped_storage())
            found[key] = self._storages[key][1] if key in self._storages else 0
        return sum(found.values())

    @contextmanager
    def measure(self, report: Callable[[int], object]) -> Iterator[None]:
        """Context at whose end `report` gets the peak within it."""
        self.peak = self.live
        yield
        report(self.peak)

    def _add(self, storage: Any) -> None:
        key = id(storage)
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = weakref.ref(storage, lambda _: self._free(key)), size, self.heap.allocate(size)
        self._change(size)

    def _free(self, key: int) -> None:
        _, size, address = self._storages.pop(key)
        self.heap.free(address, size)
        self._change(-size)

    def _resize(self, storage: Any, size: int) -> None:
        reference, before, address = self._storages[id(storage)]
        self.heap.free(address, before)
        self._storages[id(storage)] = reference, size, self.heap.allocate(size)
        self._change(size - before)

    def _change(self, by: int) -> None:
        self.live += by
        self.peak = max(self.peak, self.live)

    def _make_resize(self, plain: Any) -> Any:
        def resize(storage: Any, size: int) -> Any:
            found = plain(storage, size)
            if id(storage) in self._storages:
                self._resize(storage, int(size))
            return found

        return resize

    def _answer(self, func: Any, args: Any) -> Any:
        if func is torch.ops.aten.equal.default:
            return True
        dtype = args[0].dtype
        if dtype == torch.bool:  # of a mask: is none of this padding?
            return not self.padded
        return float(self.answer) if dtype.is_floating_point else int(self.answer)
