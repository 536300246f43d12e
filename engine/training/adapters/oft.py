"""OFT (Qiu et al. 2023, arXiv:2306.07280): a trained block-diagonal rotation turns each weight, which keeps the
angles between its columns."""

from __future__ import annotations

from typing import Any, Literal

from engine.options.base import option
from engine.training.adapters import base


class Options(base.TargetedOptions):
    kind: Literal["oft"] = "oft"
    block_size: int = option(
        32,
        help="Width of the rotations' blocks; a layer that it does not divide uses the nearest size that does.",
        ge=2,
    )
    dropout: float = option(0.0, help="Share of blocks that are not rotated in a step.", ge=0, lt=1)


def attach(model: Any, options: Options) -> Any:
    """Wrap `model` in a PeftModel; its own weights are frozen. Raises ProblemError when no layer matches the
    targets."""
    from peft import OFTConfig

    config = OFTConfig(
        task_type=base.get_task_type(model),
        oft_block_size=options.block_size,
        module_dropout=options.dropout,
        target_modules=options.targets,
        bias="none",
    )
    return base.attach(model, config, options)
