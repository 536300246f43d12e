"""One process: the strategy that the others extend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models.devices import Device
from engine.training.parallel import sharded_state
from engine.training.ranks import Ranks


class SingleProcess:
    """The whole model, its gradients and its optimiser's state in this process."""

    model: Any
    """The model that forward passes go through. Its outputs are float32, whatever dtype it computes in."""
    optimizer: Any
    sharded = False
    """Whether each rank has only its share of the weights. Then every forward pass needs all ranks."""

    def __init__(self, accelerator: Any, ranks: Ranks, *, offload: bool = False) -> None:
        """`accelerator` is an `accelerate.Accelerator`, which casts the model, scales the loss and steps the
        optimiser. `offload` keeps the weights in host memory while they are not needed; only sharded strategies use
        it."""
        self.accelerator, self.ranks = accelerator, ranks
        self.segments: Any = None
        """What keeps attention within joined rows (`engine.models.segments`); set before the first step."""

    def build(self, make: Callable[[Device], Any], device: Device, masters: Any) -> Any:
        """The model that `make` makes on `device`. If `masters`, a dtype, is given, floating-point weights have it."""
        model = make(device)
        return model if masters is None else model.to(masters)

    def prepare(self, model: Any, make_optimizer: Callable[[Any], Any]) -> None:
        # The model is not wrapped in DistributedDataParallel, since ranks vote before they sum gradients (`ddp`).
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(self.model))

    def configure(self, profile: Profile) -> None:
        """Read what this strategy needs of the profile, before the model is built. Raises ProblemError."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Context of one forward and backward pass; `last` says whether a step's last one."""
        return nullcontext()

    def backward(self, loss: Any) -> None:
        """Compute this rank's gradients of the loss, and add them to those of earlier micro-batches."""
        self.accelerator.backward(loss)

    def begin_reduction(self, *, failed: bool) -> None:
        """Let the coming backward pass, the last one of a step, sum the gradients over all ranks while it computes
        them, unless a rank has `failed`. Every rank calls it once in a step, before that pass or instead of it."""

    def end_pass(self) -> None:
        """Send what that pass has left. Every rank calls it, or `drop`, before the ranks vote."""

    def take_waited(self) -> float:
        """The seconds since the last call that this process has waited for sums of gradients within passes."""
        return 0.0

    def drop(self) -> None:
        """Drop the gradients; an optimiser step without gradients changes nothing."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def reduce(self) -> None:
        """Return when the gradients are the sums of all ranks'; sum those that no pass has."""

    def norm(self) -> Any:
        """The norm of all gradients; if the loss is scaled, that of the scaled gradients."""
        import torch

        return torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def clip(self, max_norm: float) -> Any:
        return self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm or float("inf"))

    def settle(self) -> None:
        """Drop gathered weights, so that the model's parameters are those that the optimiser updates. Every rank calls
        it at the same moment."""

    def release(self, model: Any) -> None:
        """Drop weights of `model`, such as a reference, that its forward pass has gathered."""

    def in_step(self) -> AbstractContextManager[None]:
        """Context of forward passes without gradients, whose number may differ between ranks."""
        return nullcontext()

    def save(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def write_shards(self, folder: Path, averages: dict[str, Any]) -> bool:
        """Write this rank's share of what a checkpoint holds besides the published weights; False where rank 0 has all
        of it. Every rank calls it. If one cannot write, OSError is raised on every rank."""
        return False

    def collect(self, names: Sequence[str] | None, dtype: Any) -> dict[str, Any] | None:
        """The whole weights of these names (None: all weights and buffers), in the host memory of rank 0, and {} on the
        others; None where rank 0's model has them."""
        return None

    def masters(self) -> dict[str, Any] | None:
        """The trained weights in float32, by name, on rank 0, and {} on the others; None where rank 0's model has
        them, or the checkpoint's shards."""
        return None

    def load(self, folder: Path) -> None:
        """Load the optimiser's state from a checkpoint's `trainer/`, written by any strategy, and the trained weights
        if a sharded strategy has written them there."""
        self.load_optimizer(read_optimizer_state(folder))
        self.load_weights(folder)

    def load_optimizer(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(saved)

    def load_weights(self, folder: Path) -> None:
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        for name, value in self.read_named(folder, sharded_state.WEIGHTS, trained).items():
            sharded_state.local(trained[name].data).copy_(sharded_state.local(value))

    def read_named(self, folder: Path, part: str, tensors: dict[str, Any]) -> dict[str, Any]:
        """The stored tensors with the names of `tensors`, from the shards in a checkpoint's `trainer/`, divided as
        `tensors` are; {} if there are no shards."""
        shards = folder / sharded_state.FOLDER
        if not shards.exists():
            return {}
        return sharded_state.read_named(shards, part, tensors, self.ranks, alone=not self.sharded)

    def list_states(self) -> list[Any]:
        """The state of each weight in the optimiser, in its own order; None where a weight has none here."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return [inner.state.get(weight) for group in inner.param_groups for weight in group["params"]]

    def part(self, weight: Any) -> Any:
        """What this rank holds of a weight of the model: all that an exact resume must restore."""
        return weight

    @property
    def layout(self) -> Any:
        """How weights and states are divided: digests of parts can be compared where it is the same."""
        return self.ranks.world if self.sharded else 1

    def optimizer_pieces(self, pieces: list[Any]) -> list[Any]:
        """One value per weight, in the optimiser's order, from the rank that holds the weight's state. A sharded
        strategy returns one value per weight and rank."""
        return pieces

    def weight_pieces(self, pieces: list[Any]) -> list[Any]:
        """One value per weight; where weights are divided, one per weight and rank."""
        return pieces


def read_optimizer_state(folder: Path) -> dict[str, Any]:
    """The optimiser's whole state in a checkpoint's `trainer/`, its tensors mapped from the file where possible."""
    import torch

    saved: dict[str, Any] = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
    shards = folder / sharded_state.FOLDER
    return {**saved, "state": sharded_state.read_whole_optimizer(shards)} if shards.exists() else saved
