"""Supervised fine-tuning: next-token cross entropy on the replies of a conversation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from engine.options.base import Variant, option


class Options(Variant):
    kind: Literal["sft"] = "sft"
    loss_on: Literal["assistant", "all"] = option(
        "assistant", help="Which tokens are trained: the assistant's turns with their end, or everything."
    )
    rows: ClassVar[str] = "tokens"


def build(parts: Any) -> Any:
    """The trainer; `parts` is an `engine.training.assemble.Parts`."""
    from engine.training.supervised import SupervisedTrainer

    return SupervisedTrainer(parts)
