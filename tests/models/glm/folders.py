"""Folders as the ChatGLM generations were published, around the tiny sentencepiece files of the goldens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).parents[2] / "goldens"
_FILES = {
    1: ("chatglm", "tiny_ice_text.model", "ice_text.model"),
    2: ("chatglm3", "tiny_tokenizer.model", "tokenizer.model"),
}
_FILES[3] = _FILES[2]
_LATER = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "layernorm_epsilon": 1e-5,
    "padded_vocab_size": 512,
    "ffn_hidden_size": 128,
    "kv_channels": 16,
    "multi_query_group_num": 2,
    "seq_length": 256,
    "rmsnorm": True,
    "post_layer_norm": True,
    "multi_query_attention": True,
}
_FIRST = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "layernorm_epsilon": 1e-5,
    "vocab_size": 512,
    "inner_hidden_size": 256,
    "max_sequence_length": 256,
    "position_encoding_2d": True,
    "bos_token_id": 172,
    "eos_token_id": 173,
    "mask_token_id": 168,
    "gmask_token_id": 169,
    "pad_token_id": 3,
}
_NAMES = {1: "THUDM/chatglm-6b", 2: "THUDM/chatglm2-6b", 3: "THUDM/chatglm3-6b", 4: "THUDM/glm-4-9b-chat"}


def original(place: Path, generation: int) -> Path:
    """A folder of the generation: config.json, the original tokenizer_config.json that asks for remote code, the
    tokenizer's file."""
    place.mkdir(parents=True, exist_ok=True)
    config = (_FIRST if generation == 1 else _LATER) | {"model_type": "chatglm", "_name_or_path": _NAMES[generation]}
    (place / "config.json").write_text(json.dumps(config))
    asks = {
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (place / "tokenizer_config.json").write_text(json.dumps(asks))
    if generation in _FILES:
        folder, tiny, name = _FILES[generation]
        shutil.copy(GOLDENS / folder / tiny, place / name)
    return place


def golden(generation: int, name: str = "tiny_tokenizer_golden.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDENS / _FILES[generation][0] / name).read_text(encoding="utf-8"))
    return found
