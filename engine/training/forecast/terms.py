"""What a traced step does not show: each term is a function of shapes and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models.hub_shape import read_sizes
from engine.models.weights import DamagedFile, read_header
from engine.training.forecast.trace import PAGED, Trace

CONTEXT = 500 * 10**6
"""Device memory that a CUDA context with torch's kernels takes in each process."""
SLACK = 0.05
"""Share of the allocated bytes that a card's allocator holds besides: blocks are rounded and leave gaps."""
CPU_SLACK = 0.04
"""The same on a CPU, where freed blocks stay in the process. This and `RUNNING` are from runs of the embedded model
(see bench/forecast.py)."""
RUNNING = 175 * 10**6
"""Resident memory that a rank on a CPU takes once it trains: further modules, and buffers of its threads."""
LIBRARIES = 2_600 * 10**6
"""Host memory of a process that computes on a card, with torch's and the driver's libraries."""
WORKER = 350 * 10**6
"""Resident memory of a process that prepares batches."""
DEEPSPEED = 150 * 10**6
"""Resident memory that importing DeepSpeed adds to a rank."""
AGENT = 350 * 10**6
"""Resident memory of the process that starts several ranks."""
BITS = {"float32": 4, "bfloat16": 2, "float16": 2}


def attention_workspace(config: Any, tokens: int) -> int:
    """Bytes that flash attention's backward pass takes besides its tensors: the gradient of the queries in float32, and
    a sum for each token and head."""
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = getattr(config, "head_dim", None) or int(getattr(config, "hidden_size", 0)) // max(heads, 1)
    return 4 * heads * tokens * (int(width) + 1)


def context(kind: str) -> int:
    """Device memory that a process takes before it allocates anything."""
    return 0 if kind == "cpu" else CONTEXT


def slack(kind: str, allocated: int) -> int:
    """What the allocator holds beyond what is allocated."""
    return int(allocated * (CPU_SLACK if kind == "cpu" else SLACK))


def paged_states(profile: Profile, trace: Trace) -> int:
    """Bytes of the optimiser's states that move to the host's memory when the card is short of memory. Averaged weights
    do not."""
    return trace.states - trace.averages if profile.training.optimizer in PAGED else 0


def offloaded(profile: Profile, trace: Trace, *, sharded: bool) -> dict[str, int]:
    """Bytes of a rank that `launch.offload` keeps in the host's memory. At the peak of a single pass not all gradients
    are there yet, so none is subtracted then."""
    if not sharded or profile.launch.offload != "cpu":
        return {}
    gradients = trace.gradients if trace.micro_batches > 1 else 0
    return {"weights": trace.weights, "states": trace.states, "gradients": gradients}


def weight_files(base: str | None) -> tuple[int, int]:
    """The bytes of the base's weights on the disk, and of its largest file. The files are mapped into the memory of
    each process that loads them."""
    if base and (sizes := read_sizes(Path(base))) is not None:  # the files themselves are on a hub
        return sum(sizes), max(sizes, default=0)
    sizes = []
    for path in Path(base).glob("*.safetensors") if base else ():
        try:
            sizes.append(sum(tensor.end - tensor.begin for tensor in read_header(path).values()))
        except (DamagedFile, OSError):
            sizes.append(path.stat().st_size)
    return sum(sizes), max(sizes, default=0)


def stored_weights(profile: Profile, trace: Trace) -> int:
    """Bytes of the weights in a checkpoint: an adapter's in its dtype, or the whole model's in `model.dtype`."""
    if profile.adapter.kind == "none":
        return trace.whole["weights"] * BITS[profile.model.dtype]
    return trace.whole["trained"] * BITS[profile.adapter.dtype]  # type: ignore[attr-defined]


def checkpoint(profile: Profile, trace: Trace, states: int) -> int:
    """Bytes of a checkpoint: weights, the optimiser's states of all ranks, master weights and averages."""
    full = profile.adapter.kind == "none"
    rounded = full and profile.training.masters == "float32" and profile.model.dtype != "float32"
    masters = 4 * trace.whole["trained"] if rounded or profile.training.ema else 0
    return stored_weights(profile, trace) + states + masters


def disk(profile: Profile, trace: Trace, states: int) -> dict[str, int]:
    """Bytes that a run writes: the checkpoints that are kept and the one that is being written, and its results."""
    one = checkpoint(profile, trace, states)
    found = {"checkpoints": one * (profile.checkpoint.keep + 1)}
    if profile.checkpoint.output:
        found["output"] = stored_weights(profile, trace)
    if profile.export.kind != "none":
        merged = trace.whole["weights"] * BITS[profile.model.dtype]
        found["export"] = stored_weights(profile, trace) if profile.export.kind == "adapter" else merged
    return found
