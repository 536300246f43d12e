"""The quantisations of a base, and the dtype that it is stored in."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from engine.models import files
from engine.models.placement import BYTES
from engine.models.targets import Target

QUANTIZATIONS = ("none", "nf4", "int8")


def read_stored_dtype(target: Target) -> str | None:
    """The dtype in the base's config.json; None for a hub id, or when it is not there."""
    if target.on_hub:
        return None
    config = files.read_json_object(Path(target.base) / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    return stored if isinstance(stored, str) and stored in BYTES else None


def quantization_config(quantization: str, dtype: str | None, *, experts: bool = False) -> Any:
    """The argument for `from_pretrained`: NF4 with double quantisation, int8, or None; with `experts`, NF4 for fused
    experts too. Raises ValueError."""
    import torch
    from transformers import BitsAndBytesConfig

    match quantization:
        case "none":
            return None
        case "int8":
            # It warns at every product that bfloat16 becomes float16: thousands of lines per reply.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True)
        case "nf4":
            compute = getattr(torch, dtype or "bfloat16")
            if experts:
                from engine.models.quantized_experts import Config as BitsAndBytesConfig
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute,
            )
    raise ValueError(f"quantization must be none, nf4 or int8, not {quantization!r}")


def count_values(parameter: Any) -> int:
    """The number of values of a weight: of one in 4 bits those that are packed in it, of one that DeepSpeed divides
    those of all ranks."""
    import torch

    if (state := getattr(parameter, "quant_state", None)) is not None:
        return math.prod(state.shape)
    if (whole := getattr(parameter, "ds_numel", None)) is not None:
        return int(whole)
    packed = parameter.dtype == torch.uint8  # a share of 4-bit weights, which have no state of their own
    return int(parameter.numel()) * (2 if packed else 1)
