"""What `launch.strategy: deepspeed` takes: the trace of the strategy that divides the same things, and what DeepSpeed
holds besides.

Stage 1 and 2 divide the states as `zero1` does, and stage 3 all as `fsdp` does. Besides, DeepSpeed has float32 copies
of each rank's share of the trained weights, and buffers for the gradients that it sums (DeepSpeed 0.19,
`runtime/zero/stage_1_and_2.py` and `stage3.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config.profile import Profile
from engine.training.forecast.trace import Trace
from engine.training.parallel.deepspeed_config import NAME, complete_config, read_config

BUCKET = 5 * 10**8
"""Elements of `reduce_bucket_size` by default."""
LIVE = 10**9
"""Elements of whole weights that stage 3 keeps at once by default."""


@dataclass(frozen=True)
class Zero:
    """What of a ds_config decides on memory. `bucket` and `live` are elements."""

    stage: int
    states_on_host: bool = False
    weights_on_host: bool = False
    bucket: int = BUCKET
    overlaps: bool = False
    live: int = LIVE


def read(profile: Profile, world: int) -> Zero | None:
    """None for another strategy, and for a single process, which has none. Raises ValueError for a ds_config that
    cannot be read."""
    if profile.launch.strategy != NAME or world == 1:
        return None
    given = read_config(profile.launch.deepspeed, profile.directory)
    offload = profile.launch.offload == "cpu"
    training = profile.training
    made = complete_config(given, bfloat16=False, several=False, micro=training.rows, offload=offload)
    section = made["zero_optimization"]
    if (stage := section.get("stage")) not in (1, 2, 3):
        raise ValueError(f"zero_optimization.stage of the ds_config must be 1, 2 or 3, not {stage!r}")
    return Zero(
        stage=stage,
        states_on_host=_is_on_host(section.get("offload_optimizer")),
        weights_on_host=stage == 3 and _is_on_host(section.get("offload_param")),
        bucket=_read_size(section, "reduce_bucket_size", BUCKET),
        overlaps=bool(section.get("overlap_comm", stage == 3)),
        live=_read_size(section, "stage3_max_live_parameters", LIVE),
    )


def _read_size(section: Mapping[str, Any], name: str, default: int) -> int:
    """A number of elements, which may be written as `5e8`. Raises ValueError for what is none."""
    try:
        return int(float(section.get(name, default)))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"zero_optimization.{name} of the ds_config is no number: {section[name]!r}") from None


def _is_on_host(section: Any) -> bool:
    return isinstance(section, dict) and section.get("device", "none") in ("cpu", "nvme")


def replace_strategy(profile: Profile, zero: Zero) -> Profile:
    """The profile with the strategy that divides the same things."""
    strategy = "fsdp" if zero.stage == 3 else "zero1"
    launch = profile.launch.model_copy(update={"strategy": strategy, "deepspeed": None, "offload": "none"})
    return replace(profile, launch=launch)


def list_terms(zero: Zero, traced: Trace, kind: str, world: int) -> dict[str, int]:
    """Bytes of a rank's device that the traced strategy does not have, in all phases but loading; less than none for
    what it has and DeepSpeed has not."""
    trained = traced.whole.get("trained", 0)
    size = max(1, round(traced.gradients * (world if zero.stage == 3 else 1) / trained)) if trained else 0
    filled = min(zero.bucket, trained)
    # A card gives the whole buffer, and the CPU only the pages of it that are written.
    buffer = (zero.bucket * (2 if zero.overlaps else 1)) if kind != "cpu" else filled
    found = {"reduction buckets of DeepSpeed": (buffer + filled) * size}  # the buffer, and the copy that is summed
    if not zero.states_on_host:
        found["float32 copies of trained weights"] = 4 * trained // world
        found["gradients of the step"] = 4 * trained // world
    if zero.stage == 2:  # gradients are in the buffer until they are summed; then a rank keeps its share
        found["gradients in the buffer"] = size * trained // world - traced.gradients
    if zero.stage == 3:
        whole = min(zero.live, traced.whole.get("weights", 0))
        each = traced.weights * world / max(1, traced.whole.get("weights", 1))
        found["gathered weights"] = int(whole * each)
    return {name: bytes_ for name, bytes_ in found.items() if bytes_}


def list_offloaded(zero: Zero, traced: Trace) -> dict[str, int]:
    """Bytes of a rank that the traced strategy has on its card, and DeepSpeed in the host's memory."""
    found = {}
    if zero.states_on_host:
        found["states"] = traced.states
    if zero.weights_on_host:
        found["weights"] = traced.weights
    return found


def count_on_host(zero: Zero, traced: Trace, world: int) -> int:
    """Bytes of host memory of a rank for what is offloaded: with the states go float32 weights and gradients."""
    copies = 8 * traced.whole.get("trained", 0) // world if zero.states_on_host else 0
    return sum(list_offloaded(zero, traced).values()) + copies
