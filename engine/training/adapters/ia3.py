"""(IA)³ (Liu et al. 2022, arXiv:2205.05638): one trained factor per channel of keys, values and the feed-forward
layer."""

from __future__ import annotations

from typing import Any, Literal

from engine.options.base import option
from engine.training.adapters import base


class Options(base.AdapterOptions):
    kind: Literal["ia3"] = "ia3"
    targets: list[str] | Literal["auto"] = option(
        "auto",
        help="Layers whose channels are scaled; auto: keys, values and the feed-forward, where peft knows the family.",
    )
    feedforward: list[str] = option(
        [], help="Those of targets whose input is scaled rather than their output: the feed-forward's last layer."
    )


def attach(model: Any, options: Options) -> Any:
    """Wrap `model` in a PeftModel; its own weights are frozen. Raises ProblemError for layers that do not exist, and
    without targets for a family whose layers peft does not know."""
    from peft import IA3Config

    named = options.targets != "auto"
    config = IA3Config(
        task_type=base.get_task_type(model),
        target_modules=options.targets if named else None,
        feedforward_modules=options.feedforward if named else None,
    )
    return base.attach(model, config, options)
