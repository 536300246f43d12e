"""Supervised fine-tuning: next-token cross entropy on the replies of a conversation."""

from __future__ import annotations

from typing import Literal

from engine.protocol.options import Variant, option


class Options(Variant):
    kind: Literal["sft"] = "sft"
    loss_on: Literal["assistant", "all"] = option(
        "assistant", help="Which tokens are trained: the assistant's turns with their end, or everything."
    )
