"""The forecast of a profile: a traced step, and the terms that it does not show."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.config.profile import Profile
from engine.models import devices
from engine.models.base import load_tokenizer
from engine.options.launch import LaunchOptions
from engine.options.tables import FORECAST, STRATEGIES
from engine.prep.base_model import check_here, locate_base
from engine.prep.prepare import find_prepared
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.training import background_writer, live_settings, performance
from engine.training.forecast import calibration, simulated, terms, zero
from engine.training.forecast.hosts import Host
from engine.training.forecast.remote_base import fetch_shapes
from engine.training.forecast.trace import Trace, trace
from engine.training.forecast.zero import Zero
from engine.training.online.options import OnlineOptions

PHASES = ("load", "step", "reduction", "optimizer", "evaluation", "generation")


@dataclass(frozen=True)
class Given:
    """What the forecasts of one profile have in common: its rows (`prepared` as in prepared.json; `measured` whether
    they are the real ones) and its tokenizer."""

    home: Home
    prepared: dict[str, Any]
    tokenizer: Any
    measured: bool
    process: int
    """Resident memory of a process that has imported the libraries, as a rank has."""
    cancelled: Callable[[], bool] = lambda: False
    """Asked before each traced step whether nobody waits for the forecast any more."""


class Abandoned(Exception):
    """The forecast is not wanted any more."""


def gather(
    profile: Profile, home: Home, stack: ExitStack, prepared: dict[str, Any] | None = None, *, ranks: int = 1
) -> Given:
    """Find the rows of a profile, or make some up, enough for `ranks`. `stack` keeps them. Of a base that is on a hub
    alone, its configuration and its tokenizer are fetched. Raises ProblemError for one that cannot be had."""
    import accelerate  # noqa: F401 - a rank imports it too, and its memory is measured below
    import peft  # noqa: F401
    import transformers  # noqa: F401

    quiet: Callable[..., None] = lambda *_: None  # noqa: E731
    profile = profile if prepared else fetch_shapes(profile, home)
    found = prepared or find_prepared(profile, home)
    if found is not None:
        base, tokenizer = found["base"], found.get("tokenizer") or found["base"]
    else:
        check_here(profile, home)
        base, folder = locate_base(profile, home, quiet)
        tokenizer = str(folder)
    template = (found or {}).get("template")
    loaded = load_tokenizer(tokenizer, profile.model.trust_remote_code, template)
    if found is None:
        own = tokenizer if profile.model.tokenizer is not None else None
        lock = {"lock": {"eos_token_ids": [loaded.eos_token_id]}}
        given = Given(home, lock | {"base": base, "tokenizer": own}, loaded, False, measure_process())
        return assume_rows(profile, given, stack, ranks=ranks)
    return Given(home, found, loaded, True, measure_process())


def assume_rows(profile: Profile, given: Given, stack: ExitStack, *, ranks: int = 1) -> Given:
    """The same with made-up rows, all as long as the profile allows. `stack` keeps them."""
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return replace(given, prepared={**given.prepared, **simulated.write_rows(profile, place, ranks)}, measured=False)


@functools.cache
def measure_process() -> int:
    """Resident memory of this process when it has imported the libraries, and before it has traced anything."""
    return int(psutil.Process().memory_info().rss)


def estimate(profile: Profile, host: Host, given: Given) -> dict[str, Any]:
    """The forecast as it is printed and kept, without a verdict. Raises ProblemError for what a run would refuse, and
    Abandoned."""
    if given.cancelled():
        raise Abandoned
    world = host.cards
    found_zero = _check_strategy(profile, world)
    named = profile.launch.strategy if world > 1 else "single"
    profile = replace(profile, launch=profile.launch.model_copy(update={"processes": world}))
    listed_flops = host.list_flops(profile.model.dtype)
    profile = zero.replace_strategy(profile, found_zero) if found_zero else profile
    options = profile.launch
    known = calibration.read(given.home, host.label, host.kind)
    profile = _replace_float16(profile) if host.kind != "cpu" else profile
    traced = trace(
        profile,
        given.prepared,
        given.tokenizer,
        _make_device(profile, host),
        world=world,
        available=psutil.virtual_memory().available,
    )
    sharded = STRATEGIES[options.strategy].sharded and world > 1
    device = _list_device_terms(profile, host, traced, given, sharded=sharded, further=found_zero)
    peak = sum(term["bytes"] for term in device)
    allocated = sum(term["bytes"] for term in device if term["name"] not in ("context", "allocator slack"))
    host_terms = _list_host_terms(profile, host, traced, given, sharded=sharded, further=found_zero)
    disk = terms.disk(profile, traced, states := _count_whole_states(traced, options, world))
    disk_terms = [{"name": name, "bytes": size, "phase": "save", "place": "disk"} for name, size in disk.items()]
    if host.kind == "cpu":
        total = int((peak * world + sum(term["bytes"] for term in host_terms)) * known.factor)
        device_bytes, host_bytes = 0, total
        device = [{**term, "place": "host"} for term in device]
    else:
        device_bytes = int(peak * known.factor)
        host_bytes = sum(term["bytes"] for term in host_terms)
    return {
        "device": host.label,
        "kind": host.kind,
        "cards": world,
        "card_bytes": host.card_bytes,
        "strategy": named,
        "rows_measured": given.measured,
        "longest": traced.longest,
        "device_bytes": device_bytes,
        "allocated_bytes": allocated,
        "host_bytes": host_bytes,
        "uncalibrated_bytes": allocated if host.kind != "cpu" else int(host_bytes / known.factor),
        "disk_bytes": sum(disk.values()),
        "checkpoint_bytes": terms.checkpoint(profile, traced, states),
        "checkpoints": _count_checkpoints(profile, traced) if given.measured else 1,
        "floor": _find_floor(profile, host, traced, sharded=sharded, further=found_zero),
        "steps": traced.steps,
        "seconds": _estimate_seconds(profile, traced, host, known.flops or listed_flops, given),
        "flops": traced.flops,
        "flops_per_token": traced.flops / traced.tokens if traced.tokens else None,
        "error_percent": round(known.error_percent, 1),
        "terms": [*device, *host_terms, *disk_terms],
    }


def _check_strategy(profile: Profile, world: int) -> Zero | None:
    """What a ds_config says, where there is one. Raises ProblemError for a strategy that no forecast knows."""
    try:
        found = zero.read(profile, world)
    except ValueError as error:
        problem = Problem(code="forecast.unsupported", title="There is no forecast for this profile", cause=str(error))
        raise ProblemError(problem) from None
    if world > 1 and not found and profile.launch.strategy not in FORECAST:
        raise ProblemError(
            Problem(
                code="forecast.unsupported",
                title="There is no forecast for this profile",
                cause=f"what launch.strategy {profile.launch.strategy} takes is not known",
                hint="choose another launch.strategy",
            )
        )
    return found


def _replace_float16(profile: Profile) -> Profile:
    """The profile with bfloat16 for float16: of the same size, and a CPU's autocast knows it. If only one of both were
    replaced, each pass would convert the weights."""
    for key, value in (("model.dtype", profile.model.dtype), ("adapter.dtype", getattr(profile.adapter, "dtype", ""))):
        if value == "float16":
            profile = live_settings.replace_setting(profile, key, "bfloat16")
    return profile


def _make_device(profile: Profile, host: Host) -> simulated.SimulatedDevice:
    dtype = getattr(torch, profile.model.dtype)
    if host.kind == "cpu":
        dtype = devices.choose_cpu_dtype(dtype)
    return simulated.SimulatedDevice("cpu", dtype, host.label, host.kind)


def _list_device_terms(
    profile: Profile, host: Host, traced: Trace, given: Given, *, sharded: bool, further: Zero | None = None
) -> list[dict[str, Any]]:
    """The parts of the phase that takes the most device memory of a rank; on a CPU, of a rank's host memory."""
    peaks = {phase: getattr(traced, phase) for phase in PHASES}
    held = traced.held if host.kind == "cpu" else {}  # a card's allocator uses what is freed for blocks of any size
    if host.kind != "cpu":  # weights are read one by one, and of a divided model a rank gets its shares
        peaks["load"] = traced.weights + traced.largest
    elif sharded:  # rank 0 makes the whole model, and the others their shares
        peaks["load"] = traced.load // host.cards + traced.weights
    workspace = 0
    if host.kind != "cpu":
        workspace = terms.attention_workspace(read_config(given, profile), traced.tokens)
        peaks["step"] += workspace
    offloaded = terms.offloaded(profile, traced, sharded=sharded and host.kind != "cpu")
    away = {"states": terms.paged_states(profile, traced), **offloaded}
    more = zero.list_terms(further, traced, host.kind, host.cards) if further else {}
    if further and host.kind != "cpu":
        away |= zero.list_offloaded(further, traced)
    for phase in peaks:
        gone = away.get("weights", 0) if phase == "load" else sum(away.values())
        peaks[phase] = max(0, peaks[phase] - gone) + (0 if phase == "load" else sum(more.values()))
    phase = max(peaks, key=lambda name: peaks[name] + held.get(name, 0))
    found = {"weights": traced.weights - away.get("weights", 0)}
    if phase != "load":
        found["optimizer states"] = traced.states - away["states"]
    if phase in ("step", "reduction", "optimizer"):
        found["gradients"] = traced.gradients - away.get("gradients", 0)
    if phase == "step":
        found["attention workspace"] = workspace
    if phase != "load":
        found |= more
    rest = peaks[phase] - sum(found.values())
    found[_REST[phase]] = rest
    found["freed blocks"] = held.get(phase, 0)
    found["context"] = terms.context(host.kind)
    found["allocator slack"] = terms.slack(host.kind, peaks[phase])
    return [{"name": name, "bytes": size, "phase": phase, "place": "device"} for name, size in found.items() if size]


def _find_floor(
    profile: Profile, host: Host, traced: Trace, *, sharded: bool, further: Zero | None
) -> dict[str, int] | None:
    """Bytes that the run takes at the end of an optimiser's step whatever its batch is, and whatever kernels it uses:
    the weights as they are stored, their gradients and the optimiser's states.
    Activations, the context and all that is guessed are left out. None where nothing is certain: with DeepSpeed, which
    may store less than is traced, and with `launch.offload`."""
    if further or profile.launch.offload != "none":
        return None
    if host.kind == "cpu":  # frozen weights may be mapped from their files, and ranks may share them
        return {"device_bytes": 0, "host_bytes": traced.trained + traced.gradients + traced.states}
    found = traced.model + traced.gradients + traced.states - terms.paged_states(profile, traced)
    return {"device_bytes": found, "host_bytes": 0}


_REST = {
    "load": "weights being read",
    "step": "activations",
    "reduction": "reduction buckets",
    "optimizer": "optimizer workspace",
    "evaluation": "evaluation",
    "generation": "generation",
}
"""What is left of a phase's peak when the known parts are taken away."""


def read_config(given: Given, profile: Profile) -> Any:
    from transformers import AutoConfig, LlamaConfig

    from engine.models import scratch

    if profile.model.from_scratch and profile.model.has_shape:
        return LlamaConfig(**{k: v for k, v in scratch.build_shape(profile.model).items() if k != "rope_theta"})
    trust = profile.model.trust_remote_code
    return AutoConfig.from_pretrained(given.prepared["base"], trust_remote_code=trust).get_text_config()


def _list_host_terms(
    profile: Profile, host: Host, traced: Trace, given: Given, *, sharded: bool, further: Zero | None = None
) -> list[dict[str, Any]]:
    """Host memory of all processes of the job; on a CPU, without the tensors of the training step."""
    world, found = host.cards, {}
    base = None if profile.model.from_scratch else given.prepared["base"]
    whole, largest = terms.weight_files(base)
    if further:
        found["DeepSpeed's libraries"] = terms.DEEPSPEED * world
    if host.kind == "cpu":
        found["libraries"] = (given.process + terms.RUNNING) * world
    else:
        found["libraries"] = terms.LIBRARIES * world
        # The files are mapped while the weights are read, one after the other; of a divided model by rank 0 alone.
        reading = largest * (1 if sharded else world) + (whole if sharded else 0)
        copied = _count_copy(profile, host, traced, sharded=sharded)
        phases = {"weight files being read": reading, "a checkpoint's copy": copied}
        larger = max(phases, key=lambda name: phases[name])
        found[larger] = phases[larger]
        found["paged optimizer states"] = terms.paged_states(profile, traced) * world
        if sharded and profile.launch.offload == "cpu":
            found["offloaded weights and states"] = (traced.weights + traced.gradients + traced.states) * world
        elif further:
            found["offloaded weights and states"] = zero.count_on_host(further, traced, world) * world
    loaders = performance.count_workers(profile.training.workers, host.kind, world)
    found["loader processes"] = loaders * world * terms.WORKER
    found["launcher"] = terms.AGENT if world > 1 else 0
    return [{"name": name, "bytes": size, "phase": "run", "place": "host"} for name, size in found.items() if size]


def _count_copy(profile: Profile, host: Host, traced: Trace, *, sharded: bool) -> int:
    """Bytes of a checkpoint in the host's memory: of a full one, if it is copied to be written in the background. With
    `zero1`, rank 0 collects the states of all ranks."""
    options = profile.launch
    states = _count_whole_states(traced, options, host.cards)
    collected = states if host.cards > 1 and options.strategy == "zero1" else 0
    size = terms.checkpoint(profile, traced, states)
    if sharded or profile.adapter.kind != "none" or size < background_writer.SMALLEST:
        return collected
    free = psutil.virtual_memory().available if host.is_here else size / background_writer.SHARE
    return size if size <= background_writer.SHARE * free else collected


def _count_whole_states(traced: Trace, options: LaunchOptions, world: int) -> int:
    """Bytes of the optimiser's states of all ranks together."""
    divided = world > 1 and options.strategy != "ddp"
    return traced.states * (world if divided else 1)


def _count_checkpoints(profile: Profile, traced: Trace) -> int:
    """How many checkpoints there are at the end at least."""
    every = profile.checkpoint.every_steps or math.ceil(traced.steps_per_epoch)
    return min(profile.checkpoint.keep, max(1, math.ceil(traced.steps / max(1, every))))


def _estimate_seconds(profile: Profile, traced: Trace, host: Host, speed: float | None, given: Given) -> float | None:
    """Seconds of training and of the held-out losses, without replies and saving; None where the rows or the speed are
    not known, and for methods that generate replies, which the traced step does not."""
    if not speed or not traced.tokens or not given.measured or isinstance(profile.method, OnlineOptions):
        return None
    each = traced.epoch_tokens / max(1, math.ceil(traced.steps_per_epoch)) / host.cards
    training = traced.flops / traced.tokens * each * traced.steps
    every = profile.evaluation.every_steps or max(1, math.ceil(traced.steps_per_epoch))
    times = math.ceil(traced.steps / every) + bool(profile.evaluation.at_start)
    return (training + times * traced.held_out_flops) / speed


def replace_settings(profile: Profile, settings: dict[str, Any]) -> Profile:
    """The profile with these settings. Raises ValueError for an invalid value."""
    for key, value in settings.items():
        profile = live_settings.replace_setting(profile, key, value)
    return profile
