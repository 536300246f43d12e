"""Checks for combinations of settings that cannot work, each reported by name before a run starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.models.checks import VIRTUAL
from engine.options.tables import AUTO, STRATEGIES
from engine.protocol.environment import is_launcher_variable
from engine.tasks import TASKS
from engine.training.combinations import SHARDED_ADAPTERS, SHARDED_OPTIMIZERS, find_unsupported

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)


def check_combinations(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for each combination that cannot work. Invalid sections are missing here and pass."""
    model, adapter, data, method = (sections.get(name) for name in ("model", "adapter", "data", "method"))
    if model and adapter and method:
        yield from find_unsupported(adapter.kind, model.quantization, method.kind, method.rows)
    training = sections.get("training")
    if training:
        yield from _check_training(training, adapter, data, method)
    if method and data and method.kind == "pretrain" and data.packing:
        yield "data.packing", "does not apply to pretraining: set method.sequences to packed instead"
    evaluation = sections.get("evaluation")
    if evaluation and evaluation.task is not None:
        if evaluation.task not in TASKS:
            yield "evaluation.task", f"must be one of {', '.join(TASKS)}, not {evaluation.task!r}"
        elif data and not (data.validation or data.test or data.split):
            yield (
                "evaluation.task",
                "needs data.validation, data.test or data.split: replies are generated for held-out rows",
            )
        elif method and getattr(method, "scores", False):
            yield "evaluation.task", f"does not go with method.kind {method.kind}: it scores replies and writes none"
    if evaluation and evaluation.early_stopping and data and not data.validation and not data.split:
        yield (
            "evaluation.early_stopping",
            "needs data.validation or data.split: nothing is evaluated without held-out rows",
        )
    if evaluation and evaluation.drift and method and getattr(method, "scores", False):
        yield "evaluation.drift", f"does not go with method.kind {method.kind}: it scores replies and writes none"
    if evaluation and evaluation.drift_limit is not None and not evaluation.drift:
        yield "evaluation.drift_limit", "needs evaluation.drift: true: without it, no drift is measured"
    launch = sections.get("launch")
    if launch:
        if (
            isinstance(launch.devices, list)
            and isinstance(launch.processes, int)
            and 0 < len(launch.devices) < launch.processes
        ):
            yield "launch.devices", f"names {len(launch.devices)} devices for {launch.processes} processes"
        if training and adapter and model:
            yield from _check_sharding(launch, training, adapter, model)
        for name in launch.environment:
            if is_launcher_variable(name):
                yield (
                    f"launch.environment.{name}",
                    "is set by what launches the ranks, and says how many there are or how they compute: "
                    "use launch.processes, and model.dtype or training for the rest",
                )
            if _SECRET.search(name):
                yield (
                    f"launch.environment.{name}",
                    "looks like a secret, and the profile is written to disk: set it in the shell that submits the run",
                )


def _check_sharding(launch: Any, training: Any, adapter: Any, model: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for settings that do not work where weights are divided among the ranks."""
    if launch.strategy == AUTO or STRATEGIES[launch.strategy].foreign:
        return
    if not STRATEGIES[launch.strategy].sharded:
        if launch.offload != "none":
            yield "launch.offload", f"is for launch.strategy fsdp or zero2, not for {launch.strategy}"
        return
    if launch.single:
        return
    if adapter.kind not in SHARDED_ADAPTERS:
        yield (
            "adapter.kind",
            f"{adapter.kind} does not work with launch.strategy {launch.strategy}, because its virtual tokens are "
            "computed outside the layers: choose lora, or launch.strategy ddp",
        )
    if training.optimizer not in SHARDED_OPTIMIZERS:
        yield (
            "training.optimizer",
            f"{training.optimizer} does not work with divided weights: with launch.strategy {launch.strategy} "
            f"choose {', '.join(SHARDED_OPTIMIZERS[:-1])} or {SHARDED_OPTIMIZERS[-1]}",
        )
    if model.quantize_experts:
        yield (
            "model.quantize_experts",
            f"does not work with launch.strategy {launch.strategy}, which cannot divide packed experts: choose ddp or "
            "zero1",
        )
    if model.dtype == "float16":
        yield (
            "model.dtype",
            f"must be bfloat16 or float32 with launch.strategy {launch.strategy}, because the loss scaler needs whole "
            "gradients",
        )
    if training.compile is True:
        yield (
            "training.compile",
            f"does not work with launch.strategy {launch.strategy}, because layers gather their weights while they "
            "compute: leave it out, or choose ddp or zero1",
        )


def _check_training(training: Any, adapter: Any, data: Any, method: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for settings of `training` that conflict with another section or with each other."""
    if adapter and adapter.kind in VIRTUAL:
        if data and data.packing:
            yield (
                "data.packing",
                f"does not go with adapter.kind {adapter.kind}: its virtual tokens precede "
                "a whole row, not the rows packed into it",
            )
        if getattr(method, "sequences", "rows") != "rows":
            yield (
                "method.sequences",
                f"must be rows with adapter.kind {adapter.kind}: its virtual tokens precede a whole row",
            )
        if training.gradient_checkpointing and adapter.kind == "prefix":
            yield (
                "training.gradient_checkpointing",
                "does not go with adapter.kind prefix: recomputed layers would not see the prefix",
            )
    if training.tokens_per_batch is not None:
        if training.micro_batch != 1:
            yield (
                "training.micro_batch",
                f"does not go with training.tokens_per_batch ({training.tokens_per_batch}), which says how many rows "
                "share a forward pass: leave one of the two out",
            )
        if method and method.rows == "prompts":
            yield (
                "training.tokens_per_batch",
                f"is for rows whose tokens are known before training, and method.kind {method.kind} samples its "
                "replies: set training.micro_batch",
            )
    if training.micro_batch == AUTO and not training.rehearsal:
        yield (
            "training.rehearsal",
            "must not be false with training.micro_batch auto: that is when the number of rows that fit is found out",
        )
    if method and method.rows != "tokens":
        for name in ("label_smoothing", "neftune", "router_aux_loss"):
            if getattr(training, name):
                yield f"training.{name}", f"is for methods that train on tokens, not for {method.kind}"
    if training.scheduler == "wsd" and training.warmup < 1 < training.warmup + training.decay_share:
        yield "training.decay_share", "leaves no room for training.warmup: together they must not be above 1"
