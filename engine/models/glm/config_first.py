"""The settings of ChatGLM-6B, in a file without torch: the tokenizer needs them too.

Importing this module lets `AutoConfig` read them.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from engine.models.glm import generations


class ChatGLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """The settings of the original config.json. Raises ValueError for later generations, which share the model type."""

    model_type = generations.MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    inner_hidden_size: int = 16384
    num_layers: int = 28
    num_attention_heads: int = 32
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int = 130004
    eos_token_id: int = 130005
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    pad_token_id: int = 3

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # it names files of the original repository, which are not saved with the model
        if "padded_vocab_size" in kwargs:
            raise ValueError("this is a later ChatGLM than the first; engine.models.loading.load_model loads it")
        super().__post_init__(**kwargs)


AutoConfig.register(generations.MODEL_TYPE, ChatGLMConfig, exist_ok=True)
