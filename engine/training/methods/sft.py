"""Supervised fine-tuning: next-token cross entropy on the replies of a conversation."""

from __future__ import annotations

from typing import ClassVar, Literal

from engine.options.base import Variant, option


class Options(Variant):
    kind: Literal["sft"] = "sft"
    loss_on: Literal["assistant", "all"] = option(
        "assistant", help="Which tokens are trained: the assistant's turns with their end, or everything."
    )
    rows: ClassVar[str] = "tokens"
    method: ClassVar[str] = "engine.training.supervised:Supervised"
