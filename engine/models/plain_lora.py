"""Which LoRAs are nothing but low-rank matrices beside a base that they leave as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EXTRAS = (
    *("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters"),
    *("layer_replication", "alora_invocation_tokens", "use_qalora"),
)
_STARTS = ("gaussian", "eva", "orthogonal")
"""Names of `init_lora_weights` by which peft does not change the base when it loads the adapter."""


def find_extras(config: Mapping[str, Any]) -> list[str]:
    """The settings of an adapter's config with which it is more than that; its kind, if it is no LoRA."""
    if config.get("peft_type") != "LORA":
        return [str(config.get("peft_type")).lower()]
    found = [name for name in _EXTRAS if config.get(name)]
    if config.get("bias") not in (None, "none"):
        found.append("bias")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in _STARTS:
        found.append(f"init_lora_weights {start}")
    return found
