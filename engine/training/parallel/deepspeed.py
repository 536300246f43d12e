"""`launch.strategy: deepspeed`: DeepSpeed's ZeRO stages 1 to 3, as a ds_config says.

The loop stays the same: it owns the optimiser's settings, schedule, clipping, the number of passes in a step, and
checkpoints. DeepSpeed divides the model, sums gradients in the passes, and steps the optimiser on its shares. Of its
engine we use what is between `forward` and `step`: the model itself computes, since the loss applies the output layer
after the forward pass (see `engine.models.loss`), and the norm is wanted before the step, so that a bad batch can be
held back.

Checkpoints are those of `ddp`: rank 0 gathers the weights and the optimiser's state one weight at a time. So a run can
be resumed by any strategy, with any number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.hardware import host_memory
from engine.models.devices import Device
from engine.training import checkpoints
from engine.training.parallel import sharded_state
from engine.training.parallel.deepspeed_config import check_total, complete_config, import_library, read_config, refuse
from engine.training.parallel.divided_optimizer import DividedOptimizer
from engine.training.parallel.fsdp import find_layers
from engine.training.parallel.lockstep import in_step
from engine.training.parallel.single import SingleProcess, read_optimizer_state
from engine.training.parallel.skeleton import Placer, first_alone, share_structure, unshardable

STEP = "step"
"""The count of steps in the state of an optimiser; all else there has a value for each element of a weight."""


class DeepSpeed(SingleProcess):
    """Every rank has a share of the optimiser's states, of the gradients (stage 2), and of the weights (stage 3)."""

    sharded = True
    optimizer: DividedOptimizer

    def configure(self, profile: Profile) -> None:
        try:
            self._given = read_config(profile.launch.deepspeed, profile.directory)
        except ValueError as error:
            raise refuse(str(error)) from None
        # The rest was checked when the run was submitted: settings that have changed since are the profile's.
        if wrong := next(check_total(self._given, profile.training, self.ranks.world), None):
            raise refuse(f"{wrong[0]} {wrong[1]}")
        self._training = profile.training
        self._published_precisely = profile.adapter.kind != "none" or profile.model.dtype == "float32"
        self._offload = profile.launch.offload == "cpu"

    def build(self, make: Callable[[Device], Any], device: Device, masters: Any) -> Any:
        import torch

        deepspeed = import_library(cpu=device.backend == "cpu")
        self._bfloat16 = device.compute == torch.bfloat16
        training = self._training
        self._config: dict[str, Any] = complete_config(
            self._given,
            bfloat16=self._bfloat16,
            several=training.accumulation > 1 or training.tokens_per_batch is not None,
            micro=training.rows,
            offload=self._offload,
        )
        self._stage = int(self._config["zero_optimization"]["stage"])
        self._precise: dict[Any, Any] = {}
        """What this rank holds of trained weights in float32 until the optimiser has it: where they are rounded."""
        self._hooks: list[Any] = []
        deepspeed.init_distributed(dist_backend=None, verbose=False)
        if self._stage < 3:
            model = make(device)
            _check_experts(model)
            self._precise = self._cast(model)
            return model
        with first_alone(self.ranks):
            model = make(replace(device, name="cpu")) if self.ranks.first else None
        model = share_structure(model, self.ranks)
        _check_experts(model)
        placer = Placer(self.ranks, device.name)
        for part in (*find_layers(model), model):
            placer.place(part)
            precise = self._cast(part)
            deepspeed.zero.Init(module=part, config_dict_or_path=self._config)
            for weight, value in precise.items():
                self._precise[weight] = self._cut(value, weight)
            host_memory.give_back()
        self._gather_for_passes(model)
        return model

    def _gather_for_passes(self, model: Any) -> None:
        """Let `model` be tried before DeepSpeed has it: until then, gather the weights of each layer that computes."""
        layers = find_layers(model)
        known = {id(weight) for layer in layers for weight in layer.parameters()}
        for part in (*layers, model):
            weights = [each for each in part.parameters() if part is not model or id(each) not in known]
            if weights:
                first, *_ = weights
                self._hooks += [
                    part.register_forward_pre_hook(lambda *_, first=first, weights=weights: first.all_gather(weights)),
                    part.register_forward_hook(lambda *_, first=first, weights=weights: first.partition(weights)),
                ]

    def _cast(self, module: Any) -> dict[Any, Any]:
        """Give the weights that are not divided yet the dtype that DeepSpeed requires; returns the trained ones that
        are rounded by it, each with its float32 values, in host memory."""
        import torch

        dtype = torch.bfloat16 if self._bfloat16 else torch.float32
        rounded = {}
        for weight in module.parameters():
            if hasattr(weight, "ds_id") or not weight.is_floating_point() or weight.dtype == dtype:
                continue
            if weight.requires_grad and weight.dtype == torch.float32:
                rounded[weight] = weight.detach().cpu()
            weight.data = weight.data.to(dtype)
        return rounded

    def prepare(self, model: Any, make_optimizer: Callable[[Any], Any]) -> None:
        deepspeed = import_library()
        for hook in self._hooks:
            hook.remove()
        self.model = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        inner = make_optimizer(self.model)
        self._groups = [dict(group) for group in inner.param_groups]
        """The groups as the optimiser was made with them: DeepSpeed replaces their weights by its shares."""
        self._weights = [weight for group in self._groups for weight in group["params"]]
        self._engine = deepspeed.initialize(model=self.model, optimizer=inner, config=self._config)[0]
        self._zero = self._engine.optimizer
        self.optimizer = DividedOptimizer(self, inner)
        self._last = self._ready = False
        for weight, value in self._precise.items():
            self._write(weight, value)
        self._precise = {}

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self._last = last
        self._zero.clear_backward_seen_flag()
        yield

    def backward(self, loss: Any) -> None:
        self._engine.set_gradient_accumulation_boundary(self._last)
        self._engine._backward_prologue()
        # The method divides the loss by the units of all ranks, and DeepSpeed takes the mean of the ranks' gradients.
        self._engine.backward(loss * self.ranks.world, scale_wrt_gas=False)
        self._ready = self._last

    def norm(self) -> Any:
        import torch

        if not self._ready:
            return torch.zeros(())
        if self._stage < 3:
            norm = self._zero.scaled_global_norm()
        else:
            norm = torch.stack([each.float() for each in self._zero._get_norm_groups()]).norm()
            if any(bool(each < 0) for each in self._zero._get_norm_groups()):
                norm = norm.new_tensor(-1.0)
        return norm if norm >= 0 else norm.new_tensor(float("inf"))  # DeepSpeed's sign for one that is not finite

    def clip(self, max_norm: float) -> Any:
        self._zero.clip_grad = max_norm  # in its step
        return self.norm()

    def step(self) -> None:
        if self._ready:
            self._zero.step()
        self.drop()

    def drop(self) -> None:
        """Drop what the passes have summed, as DeepSpeed itself does after an overflow."""
        self._ready = False
        self._zero.zero_grad()
        offloads = self._zero.cpu_offload if self._stage < 3 else self._zero.offload_optimizer
        if self._stage < 3:
            self._zero.micro_step_id = -1
            self._zero._release_preflattened_grad_buffers()
        if offloads:
            self._zero.reset_cpu_buffers()
        elif self._stage < 3:
            for group in list(self._zero.averaged_gradients):
                self._zero.averaged_gradients[group] = self._zero.all_grad_tensors[group] = None
        else:
            self._zero.averaged_gradients = {}

    @contextmanager
    def in_step(self) -> Iterator[None]:
        with in_step([self.model], self.ranks, self.segments):
            yield

    # ── weights and states, gathered and spread ───────────────────────────────────────────────────────────────────

    def _cut(self, whole: Any, weight: Any) -> Any:
        """This rank's share of the values of a weight of stage 3, filled up to the size of all shares."""
        import torch

        size = weight.ds_tensor.numel()
        part = whole.detach().flatten()[size * self.ranks.rank :][:size].float()
        return torch.nn.functional.pad(part, (0, size - part.numel()))

    def _write(self, weight: Any, value: Any, key: str = "") -> None:
        """Put values into this rank's share of a trained weight, or of a state of it: whole ones, or for stage 3 its
        share of them."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if self._stage < 3:
            value = value.to(weight.device)
            if key:
                safe_set_full_optimizer_state(weight, value, key)
                return
            safe_set_full_fp32_param(weight, value)
            weight.data.copy_(value)
            return
        share = value if value.shape == weight.ds_tensor.shape else self._cut(value, weight)
        if key:
            safe_set_local_optimizer_state(weight, share, key)
            return
        safe_set_local_fp32_param(weight, share)
        weight.ds_tensor.data.copy_(share)
        if weight.numel():  # a small one, which every rank keeps whole
            weight.partition()

    def _read(self, weight: Any, key: str = "") -> Any:
        """A trained weight in float32, or a state of it, whole, in the host memory of rank 0."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = safe_get_full_optimizer_state(weight, key) if key else safe_get_full_fp32_param(weight)
        return whole.reshape(self._shape(weight)).cpu() if self.ranks.first else None

    def _shape(self, weight: Any) -> Any:
        return weight.ds_shape if self._stage == 3 else weight.shape

    def _gather(self, tensor: Any, dtype: Any) -> Any:
        """A weight or buffer, whole, in the host memory of rank 0."""
        import deepspeed

        if tensor.requires_grad:
            whole = self._read(tensor)
        elif hasattr(tensor, "ds_id"):
            with deepspeed.zero.GatheredParameters([tensor]):
                whole = tensor.detach().cpu().clone() if self.ranks.first else None
        else:
            whole = tensor.detach().cpu() if self.ranks.first else None
        return whole.to(dtype) if whole is not None and dtype and whole.is_floating_point() else whole

    def collect(self, names: Sequence[str] | None, dtype: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        copies: dict[int, Any] = {}  # tied weights share theirs
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if names is not None and name not in names:
                continue
            if id(tensor) not in copies:
                copies[id(tensor)] = self._gather(tensor, dtype)
            found[name] = copies[id(tensor)]
        return found if self.ranks.first else {}

    def masters(self) -> dict[str, Any] | None:
        if self._published_precisely:
            return None
        found = {name: self._read(weight) for name, weight in self._named().items()}
        return found if self.ranks.first else {}

    def _named(self) -> dict[str, Any]:
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> dict[str, Any]:
        """As with `ddp`: the state of each weight under its place in the optimiser, complete on rank 0."""
        state: dict[int, dict[str, Any]] = {}
        self._link_states()
        held = self.list_states()
        first: dict[str, Any] = next((each for each in held if each), {})
        keys = [key for key, value in first.items() if key != STEP and hasattr(value, "shape")]
        for index, weight in enumerate(self._weights if first else ()):
            state[index] = {key: self._read(weight, key) for key in keys}
            if STEP in first:
                state[index][STEP] = first[STEP].cpu().clone() if hasattr(first[STEP], "cpu") else first[STEP]
        if not self.ranks.first:
            return {}
        groups, at = [], 0
        rates = {key: value for key, value in self.optimizer.param_groups[0].items() if key in ("lr", "initial_lr")}
        for group in self._groups:
            places = list(range(at, at := at + len(group["params"])))
            groups.append({**group, **rates, "params": places})
        return {"state": state, "param_groups": groups}

    def _link_states(self) -> None:
        """Let DeepSpeed find the states of all weights: its own search, after the step of the first group, misses those
        of the other groups."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def load_optimizer(self, saved: dict[str, Any]) -> None:
        import torch

        if not saved["state"]:
            return
        first: Mapping[str, Any] = next(iter(saved["state"].values()))
        keys = [key for key in first if key != STEP]
        for share in self._list_shares():
            made = {key: torch.zeros_like(share) for key in keys}
            step = first.get(STEP)
            on_device = any(group.get("fused") or group.get("capturable") for group in self._groups)
            if step is not None:
                made[STEP] = torch.as_tensor(float(step), device=share.device if on_device else "cpu")
            self.optimizer.state[share] = made
        self._link_states()
        for index, weight in enumerate(self._weights):
            for key in keys:
                if index in saved["state"]:  # one that got no gradient has none
                    self._write(weight, saved["state"][index][key], key)

    def load(self, folder: Path) -> None:
        self.load_optimizer(read_optimizer_state(folder))
        self.load_weights(folder)

    def load_weights(self, folder: Path) -> None:
        """Those of a sharded strategy's checkpoint; the others were loaded when the model was built."""
        import torch

        shards = folder / sharded_state.FOLDER
        if not shards.exists() or (folder / checkpoints.MASTERS).exists():
            return
        stored = sharded_state.list_names(shards)
        for name, weight in self._named().items():
            if (key := f"{sharded_state.WEIGHTS}.{name}") in stored:
                state = {key: torch.zeros(*stored[key][0], dtype=stored[key][1])}
                sharded_state.read(shards, state, self.ranks, alone=True)
                self._write(weight, state[key])

    def _list_shares(self) -> list[Any]:
        """This rank's shares of the float32 weights, each of which the optimiser takes for one weight."""
        shares = (
            self._zero.single_partition_of_fp32_groups if self._stage < 3 else self._zero.fp32_partitioned_groups_flat
        )
        return list(shares)

    def list_states(self) -> list[Any]:
        return [self.optimizer.state.get(share) for share in self._list_shares()]

    def part(self, weight: Any) -> Any:
        """A trained weight in float32, and for stages 1 and 2 as the passes see it too."""
        from deepspeed.utils import safe_get_local_fp32_param

        if self._stage < 3:
            return [weight, getattr(getattr(weight, "_hp_mapping", None), "hp_fragment", None)]
        # Without what fills the share up to the size of all shares: it is never set.
        size = weight.ds_tensor.numel()
        own = max(0, min(size, int(weight.ds_numel) - size * self.ranks.rank))
        return safe_get_local_fp32_param(weight)[:own]

    @property
    def layout(self) -> Any:
        return f"deepspeed, {self.ranks.world} shares, {json.dumps(self._config['zero_optimization'], sort_keys=True)}"

    def optimizer_pieces(self, pieces: list[Any]) -> list[Any]:
        return self.weight_pieces(pieces)

    def weight_pieces(self, pieces: list[Any]) -> list[Any]:
        return [piece for share in self.ranks.gather(pieces) for piece in share]


def _check_experts(model: Any) -> None:
    """Raises ProblemError for experts in separate modules: a rank may have no token for one of them, and sends no
    gradients of it, or does not take part when its weights are gathered."""
    import torch

    if any(name.endswith("experts") and isinstance(each, torch.nn.ModuleList) for name, each in model.named_modules()):
        raise unshardable(
            "with DeepSpeed a run hangs when an expert gets no token on one of the ranks",
            "set launch.strategy to fsdp, ddp or zero1",
        )
