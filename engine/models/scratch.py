"""Models that start from random weights: built-in Llama-style sizes, shapes given in the profile, or a base's shape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.options.model import ModelOptions

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "medium": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
}
"""A head is 64 wide, a feed-forward block 2.75 times as wide as the stream."""
_COMMON = {
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}
"""Settings that the sizes have in common."""


def build_shape(options: ModelOptions) -> dict[str, Any]:
    """The whole shape given by `model.size` and `model.config`, as arguments of `LlamaConfig`."""
    own = options.config.model_dump(exclude_none=True) if options.config else {}
    return SIZES[options.size or "small"] | _COMMON | own


def find_faults(options: ModelOptions, max_length: int | None) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for a shape that cannot be built, or that is too short for `max_length` tokens."""
    found = build_shape(options)
    hidden, heads, shared = (found[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if "head_dim" not in found and hidden % heads:
        yield "model.config.hidden_size", f"{hidden} cannot be shared evenly by {heads} heads"
    elif (found.get("head_dim") or hidden // heads) % 2:
        yield "model.config.head_dim", "must be even: rotary positions rotate pairs"
    if heads % shared:
        yield "model.config.num_key_value_heads", f"must be a divisor of num_attention_heads ({heads}), not {shared}"
    if max_length and max_length > found["max_position_embeddings"]:
        yield (
            "data.max_length",
            f"is {max_length}, and the new model has positions for {found['max_position_embeddings']} tokens: "
            "raise model.config.max_position_embeddings",
        )


def build_model(options: ModelOptions, base: str | None, tokenizer: Any, own: bool, stops: list[int], seed: int) -> Any:
    """Build the model with random float32 weights on the CPU, the same for the same seed on every machine.

    `base` is the folder whose shape is used where the profile gives none. The vocabulary is the tokenizer's; that of
    the base stays as it is unless the tokenizer is the run's `own`. `stops` are the tokens that end a reply.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig

    if options.has_shape:
        settings = build_shape(options)
        theta = settings.pop("rope_theta")
        config = LlamaConfig(
            vocab_size=len(tokenizer), rope_parameters={"rope_type": "default", "rope_theta": theta}, **settings
        )
    else:
        assert base is not None
        config = AutoConfig.from_pretrained(Path(base), trust_remote_code=options.trust_remote_code)
        config.get_text_config().vocab_size = len(tokenizer) if own else config.get_text_config().vocab_size
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, token in special.items():
        setattr(config.get_text_config(), name, token)
    if special["pad_token_id"] == special["eos_token_id"]:
        config.get_text_config().pad_token_id = None  # the embedding of a padding token is never trained
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config,
        dtype=torch.float32,
        attn_implementation=None if options.attention == "auto" else options.attention,
        trust_remote_code=options.trust_remote_code,
    )
    model.generation_config = GenerationConfig(**special | {"eos_token_id": stops or special["eos_token_id"]})
    return model
