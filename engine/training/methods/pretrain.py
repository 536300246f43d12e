"""Pretraining: next-token cross entropy on everything, from random weights or from a base's."""

from __future__ import annotations

from typing import ClassVar, Literal

from engine.options.base import Variant, option


class Options(Variant):
    kind: Literal["pretrain"] = "pretrain"
    sequences: Literal["blocks", "packed", "rows"] = option(
        "blocks",
        help="What a sequence of data.max_length tokens holds: blocks joins documents and cuts them where a block is "
        "full; packed joins whole documents, each cut at its end when it is longer; rows is a document each. "
        "Attention stays within a document.",
    )
    rows: ClassVar[str] = "tokens"
    method: ClassVar[str] = "engine.training.supervised:Pretraining"
    loss_on: ClassVar[str] = "all"
