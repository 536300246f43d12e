"""Pretraining: next-token cross entropy on everything, from random weights or from a base's."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from engine.options.base import Variant, option


class Options(Variant):
    kind: Literal["pretrain"] = "pretrain"
    sequences: Literal["blocks", "packed", "rows"] = option(
        "blocks",
        help="What a sequence of data.max_length tokens holds: blocks joins documents and cuts them where a block is full; "
        "packed joins whole documents, each cut at its end when it is longer; rows is a document each. Attention stays "
        "within a document.",
    )
    rows: ClassVar[str] = "tokens"
    loss_on: ClassVar[str] = "all"


def build(parts: Any) -> Any:
    """The trainer; `parts` is an `engine.training.assemble.Parts`."""
    from engine.training.pretraining import PretrainingTrainer

    return PretrainingTrainer(parts)
