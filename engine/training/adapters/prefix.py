"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190): trained keys and values that every layer sees before the row."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.VirtualTokenOptions):
    kind: Literal["prefix"] = "prefix"


def attach(model: Any, options: Options) -> Any:
    """A PeftModel around `model`, whose own weights are frozen. The prefix is trained as it is, without the paper's projection:
    a checkpoint then holds all that is trained."""
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(task_type=base.get_task_type(model), num_virtual_tokens=options.virtual_tokens)
    return base.attach(model, config, options)
