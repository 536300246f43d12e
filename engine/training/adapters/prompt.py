"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691): trained embeddings before every row."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.VirtualTokenOptions):
    kind: Literal["prompt"] = "prompt"


def attach(model: Any, options: Options) -> Any:
    """Wrap `model` in a PeftModel; its own weights are frozen. The prompt is initialised with embeddings of the
    vocabulary, which the paper found better than random ones."""
    from peft import PromptTuningConfig, PromptTuningInit

    config = PromptTuningConfig(
        task_type=base.get_task_type(model),
        num_virtual_tokens=options.virtual_tokens,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
    )
    return base.attach(model, config, options)
