"""LoRA (Hu et al. 2021, arXiv:2106.09685): a trained low-rank update beside each frozen linear layer."""

from __future__ import annotations

from typing import Literal

from engine.protocol.options import Variant, option


class Options(Variant):
    kind: Literal["lora"] = "lora"
    rank: int = option(16, help="Rank of the update.", ge=1)
    alpha: float = option(32, help="The update is scaled by alpha / rank.", gt=0)
    dropout: float = option(0.0, help="Dropout on the adapter's input.", ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = option(
        "all-linear", help="Layers to adapt: all-linear, or names of modules."
    )
    dtype: Literal["float32", "bfloat16"] = option("float32", help="Dtype of the adapter's weights.")
