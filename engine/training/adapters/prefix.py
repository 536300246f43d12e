"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190): trained keys and values that precede the row in every layer."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.VirtualTokenOptions):
    kind: Literal["prefix"] = "prefix"


def attach(model: Any, options: Options) -> Any:
    """Wrap `model` in a PeftModel; its own weights are frozen. The prefix is trained directly, without the paper's
    projection, so that a checkpoint holds all trained weights."""
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(task_type=base.get_task_type(model), num_virtual_tokens=options.virtual_tokens)
    return base.attach(model, config, options)
