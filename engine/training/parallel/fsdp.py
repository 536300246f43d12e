"""`launch.strategy: fsdp` and `zero2`: each rank holds a share of every weight, gradient and optimiser state.

This is torch's FSDP2 (`torch.distributed.fsdp.fully_shard`): a layer's weights are gathered from all ranks when it
computes, and dropped afterwards. In the backward pass its gradients are summed, and each rank keeps those of its share.
So the model must fit into the memory of all devices together, and one layer, the embeddings and the output layer into
that of one device.

The collectives run within the passes. A rank that runs out of memory there cannot report it in a vote, as the others
wait for it in a collective. So the attempt ends, and the next one has smaller micro-batches (see
`engine.training.exhausted`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.hardware import host_memory
from engine.models.devices import Device
from engine.training.parallel import sharded_state
from engine.training.parallel.lockstep import in_step
from engine.training.parallel.single import SingleProcess
from engine.training.parallel.skeleton import Placer, first_alone, share_structure, unshardable
from engine.training.ranks import Ranks


class FullySharded(SingleProcess):
    """Weights, gradients and optimiser states are divided among the ranks: each is split along its first dimension,
    and rank n holds the n-th part."""

    sharded = True
    drops_layers = True
    """Whether a layer's weights are dropped after its forward pass, and gathered again for its backward pass."""

    def __init__(self, accelerator: Any, ranks: Ranks, *, offload: bool = False) -> None:
        super().__init__(accelerator, ranks)
        self.offload = offload
        self._models: list[Any] = []
        """The divided models; the trained one comes first."""
        self._parts_of: dict[int, list[Any]] = {}
        """For each divided model, by its id: its FSDP modules, each of which gathers its weights at once."""
        self._stepping = False
        """True within `in_step`, where the ranks may be at different places in the code."""

    def build(self, make: Callable[[Device], Any], device: Device, masters: Any) -> Any:
        """Rank 0 makes the model in host memory; then all ranks receive it layer by layer, and keep their shares."""
        import torch

        with first_alone(self.ranks):
            model = make(replace(device, name="cpu")) if self.ranks.first else None
        if model is not None:
            _remember_scales(model)
        model = self._divide(share_structure(model, self.ranks), device, masters)
        # An offloaded model has its weights on the host between passes, but must report its device. The class is FSDP's
        # own, so models that are not divided are not affected.
        setattr(type(model), "device", property(lambda _: torch.device(device.name)))  # noqa: B010 - mypy: read-only
        self._models.append(model)
        return model

    def _divide(self, model: Any, device: Device, masters: Any) -> Any:
        """Place and divide `model`, layer by layer."""
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            FSDPModule,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
        )

        layers = find_layers(model)
        _check_shared(model, layers)
        # Float32 weights are sent in the dtype of computation; their gradients are summed in float32.
        cast = device.compute if masters is not None and device.compute != masters else None
        policy: dict[str, Any] = {
            "mesh": init_device_mesh(device.backend, (self.ranks.world,)),
            "mp_policy": MixedPrecisionPolicy(cast, torch.float32 if cast else None, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy(pin_memory=device.backend != "cpu") if self.offload else OffloadPolicy(),
        }
        placer = Placer(self.ranks, device.name, masters)
        for part in (*layers, model):
            placer.place(part)
            _check_dtypes(part)
            # The outermost part, with the embeddings and the output layer, stays gathered until the backward pass ends:
            # the loss applies the output layer after the forward pass (see `engine.models.loss`).
            fully_shard(part, reshard_after_forward=self.drops_layers and part is not model, **policy)
            host_memory.give_back()  # or the host would hold the whole model beside all shares of it
        parts = self._parts_of[id(model)] = [part for part in model.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_gradient_divide_factor(1.0)  # the method divides the loss by the units of all ranks
            part.set_force_sum_reduction_for_comms(True)
            if hasattr(part, "set_reduce_scatter_unused_params"):
                part.set_reduce_scatter_unused_params(True)
            else:  # an older torch
                _check_experts(part)
        _place_scales(model, device.name)
        return model

    def prepare(self, model: Any, make_optimizer: Callable[[Any], Any]) -> None:
        self.settle()
        self.model = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(self.model), device_placement=False)

    def settle(self) -> None:
        """Drop gathered weights, so that the model's parameters are this rank's shares."""
        for model in self._models:
            self.release(model)

    def release(self, model: Any) -> None:
        if self._stepping:
            return  # not all ranks are here
        for part in self._parts_of[id(model)]:
            part.reshard()

    @contextmanager
    def in_step(self) -> Iterator[None]:
        self._stepping = True
        try:
            with in_step(self._models, self.ranks, self.segments):
                yield
        finally:
            self._stepping = False
        self.settle()

    def norm(self) -> Any:
        norm = super().norm()
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def clip(self, max_norm: float) -> Any:
        import torch

        norm = self.norm()
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), max_norm, norm)
        return norm

    def collect(self, names: Sequence[str] | None, dtype: Any) -> dict[str, Any]:
        """They are gathered and moved one by one."""
        self.settle()
        found: dict[str, Any] = {}
        copies: dict[int, Any] = {}  # tied weights share theirs
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if names is not None and name not in names:
                continue
            if id(tensor) not in copies:
                share = tensor.detach()
                share = share.to(dtype) if dtype and share.is_floating_point() else share
                whole = share.full_tensor() if hasattr(share, "full_tensor") else share
                copies[id(tensor)] = whole.cpu() if self.ranks.first else None
            found[name] = copies[id(tensor)]
        return found if self.ranks.first else {}

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> dict[str, Any]:
        """The parameter groups alone; `write_shards` writes the state of the weights."""
        return {"state": {}, "param_groups": self.optimizer.state_dict()["param_groups"]}

    def write_shards(self, folder: Path, averages: dict[str, Any]) -> bool:
        """The optimiser's state, the trained weights and their averages."""
        self.settle()
        weights = {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}
        state = dict(sharded_state.flatten_optimizer(self.optimizer))
        state |= {f"{sharded_state.WEIGHTS}.{name}": weight for name, weight in weights.items()}
        state |= {f"{sharded_state.AVERAGES}.{name}": average for name, average in averages.items()}
        sharded_state.write(folder, state, self.ranks)
        return True

    def load(self, folder: Path) -> None:
        import torch

        saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
        shards = folder / sharded_state.FOLDER
        if shards.exists():
            sharded_state.read_optimizer(shards, self.optimizer, saved["param_groups"], self.ranks)
        else:
            sharded_state.divide_optimizer(self.optimizer, saved)
        self.load_weights(folder)

    def optimizer_pieces(self, pieces: list[Any]) -> list[Any]:
        return self.weight_pieces(pieces)

    def weight_pieces(self, pieces: list[Any]) -> list[Any]:
        return [piece for share in self.ranks.gather(pieces) for piece in share]


class Zero2(FullySharded):
    """`launch.strategy: zero2`: a layer's gathered weights are kept from its forward to its backward pass. So they are
    gathered once per micro-batch, and each device must have room for all weights, besides its share of gradients and
    optimiser states."""

    drops_layers = False


def find_layers(model: Any) -> list[Any]:
    """The layers of `model`: the outermost modules of the classes in its `_no_split_modules`. Raises ProblemError if
    there are none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names |= set(getattr(base, "_no_split_modules", None) or ())
    found = list(_find_outermost(base, names))
    if not found:
        raise unshardable(f"{type(base).__name__} has no `_no_split_modules`, which would tell its layers")
    return found


def _find_outermost(module: Any, names: set[str]) -> Iterator[Any]:
    for child in module.children():
        if type(child).__name__ in names:
            yield child
        else:
            yield from _find_outermost(child, names)


def _check_shared(model: Any, layers: Sequence[Any]) -> None:
    """Raises ProblemError when a weight of a layer is also in another layer or outside of all: it is gathered only
    while one of them computes."""
    known = {id(layer) for layer in layers}
    prefixes = [f"{name}." for name, module in model.named_modules() if id(module) in known]
    places: dict[int, set[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        place = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        places.setdefault(id(weight), set()).add(place)
    if any(len(found) > 1 for found in places.values()):
        raise unshardable("several of its layers share a weight")


def _check_dtypes(part: Any) -> None:
    """Raises ProblemError when trained weights that are gathered together are of several dtypes."""
    dtypes = {str(w.dtype) for w in part.parameters() if w.requires_grad and not hasattr(w, "device_mesh")}
    if len(dtypes) > 1:
        raise unshardable(
            f"a layer has trained weights in {' and '.join(sorted(dtypes))}: they must have one dtype",
            "set training.masters to float32",
        )


def _check_experts(part: Any) -> None:
    """Raises ProblemError for experts in separate modules: a rank may have no token for one of them, and then this
    version of torch cannot sum its gradients."""
    import torch

    if any(name.endswith("experts") and isinstance(each, torch.nn.ModuleList) for name, each in part.named_modules()):
        raise unshardable(
            f"with torch {torch.__version__} a run hangs when an expert gets no token on one of the ranks",
            "install torch 2.13 or newer, or set launch.strategy to ddp or zero1",
        )


# ── quantised weights ─────────────────────────────────────────────────────────────────────────────────────────────────
# A divided weight is a plain tensor. bitsandbytes keeps a weight's scales in the weight; here the layer keeps them.

_SCALES = "scales_of_weight"


def _remember_scales(model: Any) -> None:
    import bitsandbytes as bnb

    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.quant_state = layer.weight.quant_state
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            setattr(layer, _SCALES, layer.weight.SCB)


def _place_scales(model: Any, device: str) -> None:
    import bitsandbytes as bnb

    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.quant_state.to(device)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            setattr(layer, _SCALES, getattr(layer, _SCALES).to(device))
            layer.register_forward_pre_hook(_restore_scales)


def _restore_scales(layer: Any, _: Any) -> None:
    layer.weight.CB, layer.weight.SCB = layer.weight.data, getattr(layer, _SCALES)
