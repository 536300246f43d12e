"""The configuration of `launch.strategy: deepspeed`: the user's ds_config, or one made from the profile.

The profile says what is computed; a ds_config says how DeepSpeed divides it. So what both name is filled in from the
profile where the ds_config has `auto`, and must be the same where it has a value. Settings of a ds_config that would
change what is computed, or that cockpit would ignore, are refused by name.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.protocol.messages import Problem, ProblemError

KEY = "launch.deepspeed"
NAME = "deepspeed"
"""The value of `launch.strategy`, and of the package."""
VERSION = "0.19"
ADAPTERS = ("none", "lora", "rslora")
OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
"""Values of `training.optimizer` that DeepSpeed can divide, with its own names of them."""
SCHEDULERS = {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}
"""Values of `training.scheduler`, with DeepSpeed's names of the same schedules."""

_CHECKED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
            "optimizer", "scheduler", "bf16", "fp16")  # fmt: skip
"""Settings that the profile has as well."""
_PASSED = ("zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print",
           "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler",
           "communication_data_type")  # fmt: skip
"""Settings that are DeepSpeed's alone."""
_ZERO = ("stage", "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter",
         "reduce_bucket_size", "contiguous_gradients", "round_robin_gradients", "ignore_unused_parameters",
         "offload_optimizer", "offload_param", "sub_group_size", "stage3_prefetch_bucket_size",
         "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
         "stage3_gather_16bit_weights_on_model_save")  # fmt: skip
_OFFLOAD = ("device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "fast_init", "ratio")
_LARGEST = 1_000_000

Found = Iterator[tuple[str, str]]


def pin_config(launch: Any, directory: Path, home: Any) -> Any:
    """`launch`, with the content of the ds_config that it names: the file may change while the run waits. Raises
    ProblemError."""
    if not isinstance(launch.deepspeed, str):
        return launch
    try:
        return launch.model_copy(update={"deepspeed": read_config(launch.deepspeed, directory)})
    except ValueError as error:
        raise ProblemError(Problem(code="profile.invalid", title=f"{KEY} cannot be read", cause=str(error))) from None


def read_config(named: Any, directory: Path) -> dict[str, Any]:
    """The ds_config that a profile names or holds; {} for none. Raises ValueError, with a message for the user."""
    if not isinstance(named, str):
        return dict(named or {})
    path = directory / Path(named).expanduser()
    try:
        if not path.is_file():  # reading a pipe or a device would not end
            raise ValueError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path} is larger than any ds_config")
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_deepspeed(sections: Mapping[str, Any], directory: Path, home: Any) -> Found:
    """Yield `(key, message)` for what does not work with DeepSpeed, and for settings of the ds_config that contradict
    the profile. Invalid sections are missing here and pass."""
    launch = sections.get("launch")
    if not launch:
        return
    if launch.strategy != NAME:
        if launch.deepspeed is not None:
            yield KEY, f"is for launch.strategy deepspeed, not for {launch.strategy}"
        return
    if launch.single:
        yield "launch.strategy", "deepspeed needs several processes: set launch.processes, or leave the strategy out"
    yield from _check_profile(sections)
    try:
        config = read_config(launch.deepspeed, directory)
    except ValueError:
        return  # `check_host` says what is wrong
    yield from _check_config(config, sections)


def check_host(sections: Mapping[str, Any], directory: Path, home: Any) -> Found:
    """Yield `(key, message)` for what this host lacks."""
    launch = sections.get("launch")
    if not launch or launch.strategy != NAME:
        return
    if launch.via == "local" and (lack := _find_lack()):
        yield "launch.strategy", f"{lack}: pip install 'cockpit[deepspeed]', or choose fsdp"
    try:
        read_config(launch.deepspeed, directory)
    except ValueError as error:
        yield KEY, str(error)


def _check_profile(sections: Mapping[str, Any]) -> Found:
    model, adapter, method, training = (sections.get(name) for name in ("model", "adapter", "method", "training"))
    instead = "does not work with launch.strategy deepspeed"
    if adapter and adapter.kind not in ADAPTERS:
        yield "adapter.kind", f"{adapter.kind} {instead}: choose {', '.join(ADAPTERS)}, or launch.strategy fsdp"
    if method and method.rows != "tokens":
        yield "method.kind", f"{method.kind} {instead}: choose sft or pretrain, or launch.strategy fsdp"
    if model and model.quantization != "none":
        yield "model.quantization", f"{model.quantization} {instead}: set it to none, or choose launch.strategy fsdp"
    if model and model.quantize_experts:
        yield "model.quantize_experts", f"{instead}: choose launch.strategy ddp or zero1"
    if model and model.dtype == "float16":
        yield "model.dtype", f"float16 {instead}, as its loss is not scaled: set it to bfloat16 or float32"
    if not training:
        return
    if training.optimizer not in OPTIMIZERS:
        yield "training.optimizer", f"{training.optimizer} {instead}: choose {', '.join(OPTIMIZERS)}"
    if training.ema is not None:
        yield "training.ema", f"{instead}: leave it out, or choose launch.strategy fsdp"
    if training.compile is True:
        yield "training.compile", f"{instead}: leave it out, or choose launch.strategy ddp or zero1"
    if training.router_aux_loss:
        yield "training.router_aux_loss", f"{instead}: leave it out, or choose launch.strategy fsdp"
    full = adapter and adapter.kind == "none"
    if full and model and model.dtype == "bfloat16" and training.masters != "float32":
        yield "training.masters", f"{training.masters} {instead}, which keeps float32 masters: set it to float32"


def _check_config(config: Mapping[str, Any], sections: Mapping[str, Any]) -> Found:
    """Yield `(key, message)` for settings of a ds_config that contradict the profile or are not supported."""
    for name in config:
        if name not in _CHECKED and name not in _PASSED:
            yield f"{KEY}.{name}", "is not supported: remove it"
    yield from _check_zero(config, sections["launch"])
    training, model = sections.get("training"), sections.get("model")
    if training:
        yield from _check_batches(config, training)
        launch = sections["launch"]
        if isinstance(launch.processes, int):
            yield from check_total(config, training, launch.processes * launch.node_count)
        yield from _check_optimizer(config, training)
        yield from _check_scheduler(config, training)
    if model:
        yield from _check_precision(config, model)


def _compare(key: str, given: Any, wanted: Any, named: str) -> Found:
    """A contradiction between a setting of the ds_config and the profile's."""
    if given is None or given == "auto":
        return
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (given, wanted))
    with suppress(OverflowError):  # an integer that is too large for a float
        if math.isclose(given, wanted, rel_tol=1e-9) if numbers else given == wanted:
            return
    yield f"{KEY}.{key}", f'is {given!r}, and {named} is {wanted!r}: set it to "auto", or change {named}'


def _check_zero(config: Mapping[str, Any], launch: Any) -> Found:
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        yield f"{KEY}.zero_optimization", "must be an object"
        return
    for name in zero:
        if name not in _ZERO:
            yield f"{KEY}.zero_optimization.{name}", "is not supported: remove it"
    stage = zero.get("stage", 0) if "zero_optimization" in config else 3
    if isinstance(stage, bool) or stage not in (1, 2, 3):
        yield f"{KEY}.zero_optimization.stage", f"must be 1, 2 or 3, not {stage!r}"
    for name in ("offload_optimizer", "offload_param"):
        offload = zero.get(name)
        if offload is None:
            continue
        if not isinstance(offload, Mapping):
            yield f"{KEY}.zero_optimization.{name}", "must be an object"
            continue
        for setting in offload:
            if setting not in _OFFLOAD:
                yield f"{KEY}.zero_optimization.{name}.{setting}", "is not supported: remove it"
        device = offload.get("device", "none")
        if device not in ("cpu", "none", None):
            yield f"{KEY}.zero_optimization.{name}.device", f"must be cpu or none, not {device!r}"
        elif name == "offload_param" and device == "cpu" and stage != 3:
            yield f"{KEY}.zero_optimization.{name}.device", f"cpu is for stage 3, not for stage {stage}"
    offloads = any(_is_offloaded(zero, name) for name in ("offload_optimizer", "offload_param"))
    if "zero_optimization" in config and launch.offload == "cpu" and not offloads:
        yield f"{KEY}.zero_optimization", "offloads nothing, and launch.offload is cpu: make the two agree"


def _is_offloaded(zero: Mapping[str, Any], name: str) -> bool:
    offload = zero.get(name)
    return isinstance(offload, Mapping) and offload.get("device") == "cpu"


def _check_batches(config: Mapping[str, Any], training: Any) -> Found:
    micro, passes = config.get("train_micro_batch_size_per_gpu"), config.get("gradient_accumulation_steps")
    if training.tokens_per_batch is None:
        yield from _compare("train_micro_batch_size_per_gpu", micro, training.micro_batch, "training.micro_batch")
    elif micro not in (None, "auto"):
        yield (
            f"{KEY}.train_micro_batch_size_per_gpu",
            f'is {micro!r}, and training.tokens_per_batch says how many rows share a pass: set it to "auto"',
        )
    yield from _compare("gradient_accumulation_steps", passes, training.accumulation, "training.accumulation")
    if training.tokens_per_batch is not None and config.get("train_batch_size") not in (None, "auto"):
        yield f"{KEY}.train_batch_size", 'does not go with training.tokens_per_batch: set it to "auto"'
    yield from _compare(
        "gradient_clipping", config.get("gradient_clipping"), training.max_grad_norm, "training.max_grad_norm"
    )


def check_total(config: Mapping[str, Any], training: Any, ranks: int) -> Found:
    """Yield `(key, message)` for a global batch that is not the profile's with this number of ranks."""
    if training.tokens_per_batch is None:
        named = f"training.micro_batch × training.accumulation × {ranks} ranks"
        total = training.rows * training.accumulation * ranks
        yield from _compare("train_batch_size", config.get("train_batch_size"), total, named)


def _check_optimizer(config: Mapping[str, Any], training: Any) -> Found:
    optimizer = config.get("optimizer")
    if optimizer is None:
        return
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("params", {}), Mapping):
        yield f"{KEY}.optimizer", "must be an object with type and params"
        return
    wanted = OPTIMIZERS.get(training.optimizer, training.optimizer)
    given = optimizer.get("type", "auto")
    if not isinstance(given, str) or given.lower() not in (wanted.lower(), "auto"):
        yield from _compare("optimizer.type", given, wanted, "training.optimizer")
    ours = {
        "lr": (training.learning_rate, "training.learning_rate"),
        "weight_decay": (training.weight_decay, "training.weight_decay"),
        "betas": ([0.9, 0.999], "that of cockpit's Adam"),
        "eps": (1e-8, "that of cockpit's Adam"),
        "torch_adam": (True, "the optimiser of cockpit, which is torch's,"),
        "adam_w_mode": (training.optimizer == "adamw", "that of training.optimizer"),
    }
    for name, value in optimizer.get("params", {}).items():
        if name not in ours:
            yield f"{KEY}.optimizer.params.{name}", "is not supported: remove it"
        else:
            yield from _compare(f"optimizer.params.{name}", value, *ours[name])


def _check_scheduler(config: Mapping[str, Any], training: Any) -> Found:
    scheduler = config.get("scheduler")
    if scheduler is None:
        return
    if not isinstance(scheduler, Mapping) or not isinstance(scheduler.get("params", {}), Mapping):
        yield f"{KEY}.scheduler", "must be an object with type and params"
        return
    wanted = SCHEDULERS.get(training.scheduler, training.scheduler)
    yield from _compare("scheduler.type", scheduler.get("type"), wanted, "training.scheduler")
    ours: dict[str, tuple[Any, str]] = {
        "warmup_min_lr": (0.0, "the rate at which cockpit's warm-up begins"),
        "warmup_max_lr": (training.learning_rate, "training.learning_rate"),
        "warmup_type": ("linear", "cockpit's warm-up"),
        "warmup_min_ratio": (0.0, "the ratio at which cockpit's warm-up begins"),
        "cos_min_ratio": (0.0, "the ratio at which cockpit's cosine ends"),
        "total_num_steps": (training.max_steps, "training.max_steps"),
    }
    ours["warmup_num_steps"] = (training.warmup, "training.warmup")
    for name, value in scheduler.get("params", {}).items():
        if name not in ours:
            yield f"{KEY}.scheduler.params.{name}", "is not supported: remove it"
        else:
            yield from _compare(f"scheduler.params.{name}", value, *ours[name])


def _check_precision(config: Mapping[str, Any], model: Any) -> Found:
    for name, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        section = config.get(name, {})
        if not isinstance(section, Mapping):
            yield f"{KEY}.{name}", "must be an object"
            continue
        enabled = section.get("enabled", False)
        if enabled not in ("auto", False, True):
            yield f"{KEY}.{name}.enabled", f'must be true, false or "auto", not {enabled!r}'
        elif name in config and enabled != "auto" and enabled != (model.dtype == dtype):
            yield (
                f"{KEY}.{name}.enabled",
                f'is {json.dumps(enabled)}, and model.dtype is {model.dtype}: set it to "auto", or change model.dtype',
            )
        for setting in section:
            # Settings of the loss scaler, which are without effect where fp16 is off, are in every published file.
            if setting != "enabled" and name == "bf16":
                yield f"{KEY}.bf16.{setting}", "is not supported: remove it"


# ── what DeepSpeed is given ───────────────────────────────────────────────────────────────────────────────────────────


def complete_config(config: Mapping[str, Any], *, bfloat16: bool, several: bool, micro: int, offload: bool) -> Any:
    """The configuration that DeepSpeed is given: the user's settings of its own, and the profile's of everything else.

    The loop owns optimiser, schedule, clipping and the number of passes of a step. `several` says whether a step may
    have more than one pass: DeepSpeed keeps what it offloads otherwise then.
    """
    zero = copy.deepcopy(dict(config.get("zero_optimization", {})))
    if "zero_optimization" not in config:
        zero = {"stage": 3}
        if offload:
            zero |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    zero = {name: value for name, value in zero.items() if value != "auto"}  # DeepSpeed's own defaults
    passed = {name: config[name] for name in _PASSED if name in config and config[name] != "auto"}
    return {
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        **passed,
        # DeepSpeed's own Adam for the CPU is compiled when it is first used, and rounds otherwise than torch's.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": bfloat16},
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 2 if several else 1,
    }


def import_library(*, cpu: bool = False) -> Any:
    """DeepSpeed, at the first call for this kind of device. Raises ProblemError where it is not installed."""
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    lack = _find_lack()
    try:
        if lack:
            raise ImportError(lack)
        import deepspeed
    except ImportError as error:
        problem = Problem(
            code="launch.deepspeed",
            title="DeepSpeed cannot be used",
            cause=str(error),
            hint="pip install 'cockpit[deepspeed]', or set launch.strategy to fsdp",
        )
        raise ProblemError(problem) from None
    deepspeed.utils.logger.setLevel("WARNING")
    # Compiled when it is first used, which takes minutes; gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _find_lack() -> str:
    """What this environment lacks; empty if DeepSpeed is there in a version whose inner parts we know."""
    from importlib.metadata import PackageNotFoundError, version  # not needed by other profiles

    if importlib.util.find_spec(NAME) is None:
        return "deepspeed is not installed"
    with suppress(PackageNotFoundError):
        if not (found := version(NAME)).startswith(f"{VERSION}."):
            return f"deepspeed {found} is installed, and {VERSION} is needed"
    return ""


def refuse(cause: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="launch.deepspeed",
            title="The ds_config does not go with the profile",
            cause=cause,
            hint=f"change {KEY}, or what it contradicts",
        )
    )
