"""Recognises the GLM that a `config.json` in the original layout describes, and whether it can be loaded exactly.
Imports no training library.

All generations have `model_type: chatglm`. The first (arXiv:2103.10360 with two-dimensional positions, GELU and
LayerNorm) has a class of its own, in `chatglm_first`. The second, the third and GLM-4 are transformers'
`GlmForCausalLM` with other names, see `load_glm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MODEL_TYPE = "chatglm"
_FIRST = ("inner_hidden_size", "position_encoding_2d")
_LATER = ("multi_query_group_num", "padded_vocab_size")
_ROLES = (64795, 64797)
"""`<|user|>` and `<|observation|>` of ChatGLM3: a reply ends where the model starts another role's turn."""
_LARGE_VOCABULARY = 100_000
"""Between ChatGLM2 and 3 (65,024) and GLM-4 (151,552)."""


class Unsupported(ValueError):
    """A config that is no known GLM, or that cannot be loaded exactly. The message is one sentence."""


class Sizes(BaseModel):
    """Settings with the same names in both layouts. Other settings may have any value."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    hidden_size: int = Field(gt=0)
    num_layers: int = Field(gt=0, le=1000)
    num_attention_heads: int = Field(gt=0)
    layernorm_epsilon: float = Field(gt=0, lt=1)


class First(Sizes):
    vocab_size: int = Field(gt=0)
    inner_hidden_size: int = Field(gt=0)
    max_sequence_length: int = Field(gt=0)
    bos_token_id: int = Field(ge=0)
    """`sop`, after which the answer starts."""
    eos_token_id: int = Field(ge=0)
    """`eop`"""
    mask_token_id: int = Field(ge=0)
    gmask_token_id: int = Field(ge=0)
    pad_token_id: int = Field(ge=0)

    def contradiction(self) -> str | None:
        width, rest = divmod(self.hidden_size, self.num_attention_heads)
        if rest or width % 4:
            return f"hidden_size {self.hidden_size} cannot be shared by {self.num_attention_heads} attention heads"
        for name in ("bos", "eos", "mask", "gmask", "pad"):
            token = getattr(self, f"{name}_token_id")
            if token >= self.vocab_size:
                return f"{name}_token_id {token} is beyond vocab_size {self.vocab_size}"
        return None


class Later(Sizes):
    padded_vocab_size: int = Field(gt=0)
    ffn_hidden_size: int = Field(gt=0)
    kv_channels: int = Field(gt=0)
    multi_query_group_num: int = Field(gt=0)
    seq_length: int = Field(gt=0)
    rope_ratio: float = Field(default=1.0, gt=0)
    add_qkv_bias: bool = False
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    eos_token_id: int | list[int] = 2
    pad_token_id: int = 0

    def contradiction(self) -> str | None:
        if self.num_attention_heads % self.multi_query_group_num:
            return f"{self.num_attention_heads} attention heads cannot share {self.multi_query_group_num} groups"
        if self.kv_channels % 4:
            return f"kv_channels {self.kv_channels} is not a multiple of 4"
        stops = [self.eos_token_id] if isinstance(self.eos_token_id, int) else self.eos_token_id
        if not stops:
            return "eos_token_id names no token"
        for token in (*stops, self.pad_token_id):
            if not 0 <= token < self.padded_vocab_size:
                return f"token {token} is not in a vocabulary of {self.padded_vocab_size}"
        return None


_NEEDED: dict[type[Sizes], dict[str, tuple[Any, Any, str]]] = {
    First: {
        "position_encoding_2d": (True, True, "positions of one dimension are not the published ChatGLM-6B"),
        "quantization_bit": (
            0,
            0,
            "quantised weights cannot be trained: take the float16 folder, and model.quantization",
        ),
        "pre_seq_len": (None, None, "a P-tuning prefix is not loaded: take the base model's folder"),
    },
    Later: {
        "rmsnorm": (True, True, "GlmForCausalLM normalises by RMSNorm"),
        "post_layer_norm": (True, True, "GlmForCausalLM has a last norm"),
        "add_bias_linear": (False, False, "GlmForCausalLM has no such biases"),
        "apply_residual_connection_post_layernorm": (False, False, "GlmForCausalLM branches before the norm"),
        "multi_query_attention": (True, False, "GlmForCausalLM is computed with shared keys and values"),
        "hidden_dropout": (0, 0, "GlmForCausalLM has no such dropout"),
        "quantization_bit": (
            0,
            0,
            "quantised weights cannot be trained: take the float16 folder, and model.quantization",
        ),
        "pre_seq_len": (None, None, "a P-tuning prefix is not loaded: take the base model's folder"),
    },
}
"""Setting -> (the value that can be computed exactly, the original's default, why no other value can be loaded)."""


@dataclass(frozen=True)
class Generation:
    number: int
    """1 to 3 for ChatGLM, 4 for GLM-4."""
    name: str
    sizes: First | Later

    @property
    def conversion(self) -> str:
        """What happens when it is loaded, for people."""
        if self.number == 1:
            return "its own model class, part of this program; weights keep their names"
        return "converted while loading to transformers' GlmForCausalLM; what is saved is in that layout"


def recognise(config: Mapping[str, Any]) -> Generation | None:
    """The generation that a `config.json` describes; None for other models, including converted ones.

    Raises Unsupported, with the name of the setting, when it would not be computed exactly.
    """
    if not isinstance(config, Mapping):
        raise Unsupported("config.json holds no settings")
    if config.get("model_type") != MODEL_TYPE:
        return None
    first, later = (any(name in config for name in names) for names in (_FIRST, _LATER))
    if first == later:
        raise Unsupported(
            f"config.json says model_type {MODEL_TYPE}, but is not of a known generation: it should have either "
            f"{' and '.join(_FIRST)} (the first) or {' and '.join(_LATER)} (the later ones)"
        )
    sizes = _read_sizes(First if first else Later, config)
    if isinstance(sizes, First):
        return Generation(1, "ChatGLM-6B (first generation)", sizes)
    assert isinstance(sizes, Later)
    return _tell_later(sizes, config)


def _read_sizes(layout: type[Sizes], config: Mapping[str, Any]) -> First | Later:
    for name, (expected, default, why) in _NEEDED[layout].items():
        # A null is what the original class takes for "not set"; true and 1 are the same to Python, and to it.
        value = config.get(name, default)
        if (default if value is None else value) != expected:
            raise Unsupported(f"config.json has {name}: {_shorten(value)}, which cannot be loaded exactly: {why}")
    try:
        sizes = layout.model_validate({key: value for key, value in config.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][:1]))
        if first["type"] == "missing":
            raise Unsupported(f"config.json lacks {place}") from None
        raise Unsupported(f"config.json has {place}: {_shorten(first['input'])}, {first['msg'].lower()}") from None
    assert isinstance(sizes, First | Later)
    if contradiction := sizes.contradiction():
        raise Unsupported(f"config.json contradicts itself: {contradiction}")
    return sizes


def _tell_later(sizes: Later, config: Mapping[str, Any]) -> Generation:
    """Tell the later generations apart, whose settings are the same: by the name that the config was saved from, else
    by vocabulary and length.

    They reach long contexts in different ways: ChatGLM2-6B-32k scales positions, the others the rotary base. Where
    neither name nor length tells and it matters, nothing is guessed.
    """
    saved_from = str(config.get("_name_or_path", "")).lower()
    if sizes.padded_vocab_size > _LARGE_VOCABULARY or "glm-4" in saved_from:
        return Generation(4, "GLM-4 (original layout)", sizes)
    if "chatglm2" in saved_from:
        return Generation(2, "ChatGLM2", sizes)
    if "chatglm3" in saved_from:
        return Generation(3, "ChatGLM3", sizes)
    if sizes.rope_ratio != 1:
        raise Unsupported(
            f"config.json has rope_ratio: {sizes.rope_ratio:g}, and does not say of which generation: "
            "ChatGLM2 and ChatGLM3 take it differently; set _name_or_path to "
            "THUDM/chatglm2-6b-32k or THUDM/chatglm3-6b-32k"
        )
    # As published without rope_ratio: 32,768 tokens for the second generation, 8,192 for the third.
    return Generation(2, "ChatGLM2", sizes) if sizes.seq_length == 32768 else Generation(3, "ChatGLM3", sizes)


def translate_config(generation: Generation) -> dict[str, Any]:
    """The settings of transformers' `GlmConfig` that compute the same as this later generation."""
    sizes = generation.sizes
    assert isinstance(sizes, Later)
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0 * sizes.rope_ratio}
    if generation.number == 2:
        rotary = {"rope_type": "default", "rope_theta": 10000.0}
        if sizes.rope_ratio != 1:
            rotary |= {"rope_type": "linear", "factor": sizes.rope_ratio}
    return {
        "vocab_size": sizes.padded_vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.ffn_hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "num_key_value_heads": sizes.multi_query_group_num,
        "head_dim": sizes.kv_channels,
        "rms_norm_eps": sizes.layernorm_epsilon,
        "max_position_embeddings": sizes.seq_length,
        "attention_bias": sizes.add_qkv_bias,
        "attention_dropout": sizes.attention_dropout,
        "rope_parameters": rotary | {"partial_rotary_factor": 0.5},
        "tie_word_embeddings": False,
        "pad_token_id": sizes.pad_token_id,
        "eos_token_id": list_stop_tokens(generation),
    }


def list_stop_tokens(generation: Generation) -> int | list[int]:
    """Tokens that end a reply. ChatGLM3's config names only `</s>`, although a reply also ends where another role
    starts."""
    sizes = generation.sizes
    if generation.number != 3 or isinstance(sizes, First) or sizes.padded_vocab_size <= max(_ROLES):
        return sizes.eos_token_id
    named = [sizes.eos_token_id] if isinstance(sizes.eos_token_id, int) else sizes.eos_token_id
    return [*named, *(token for token in _ROLES if token not in named)]


def list_tensors(generation: Generation) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the original files must have. A tied output layer may be missing."""
    sizes = generation.sizes
    return _list_first_tensors(sizes) if isinstance(sizes, First) else _list_later_tensors(sizes)


def _list_first_tensors(sizes: First) -> dict[str, tuple[int, ...]]:
    hidden, inner = sizes.hidden_size, sizes.inner_hidden_size
    linear = {
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (inner, hidden),
        "mlp.dense_4h_to_h": (hidden, inner),
    }
    found: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (sizes.vocab_size, hidden)}
    for layer in range(sizes.num_layers):
        for name, shape in linear.items():
            found[f"transformer.layers.{layer}.{name}.weight"] = shape
            found[f"transformer.layers.{layer}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            for part in ("weight", "bias"):
                found[f"transformer.layers.{layer}.{name}.{part}"] = (hidden,)
    return found | {f"transformer.final_layernorm.{part}": (hidden,) for part in ("weight", "bias")}


def _list_later_tensors(sizes: Later) -> dict[str, tuple[int, ...]]:
    hidden, inner = sizes.hidden_size, sizes.ffn_hidden_size
    queries = sizes.num_attention_heads * sizes.kv_channels
    together = queries + 2 * sizes.multi_query_group_num * sizes.kv_channels
    layer_tensors: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attention.query_key_value.weight": (together, hidden),
        "self_attention.dense.weight": (hidden, queries),
        "mlp.dense_h_to_4h.weight": (2 * inner, hidden),
        "mlp.dense_4h_to_h.weight": (hidden, inner),
    }
    if sizes.add_qkv_bias:
        layer_tensors["self_attention.query_key_value.bias"] = (together,)
    vocabulary = (sizes.padded_vocab_size, hidden)
    return {
        "transformer.embedding.word_embeddings.weight": vocabulary,
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": vocabulary,
        **{
            f"transformer.encoder.layers.{layer}.{name}": shape
            for layer in range(sizes.num_layers)
            for name, shape in layer_tensors.items()
        },
    }


def find_weights_problem(generation: Generation, found: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why tensors of these names and shapes are not this model's, in one sentence; None when they are."""
    expected = list_tensors(generation)
    absent = [name for name in expected if name not in found]
    if absent:
        return f"the weights lack {len(absent)} of {len(expected)} tensors of {generation.name}, {absent[0]} among them"
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            return f"{name} has the shape {list(found[name])}, config.json says {list(shape)}"
    tied = "lm_head.weight"
    if (
        generation.number == 1
        and found.get(tied, expected["transformer.word_embeddings.weight"])
        != (expected["transformer.word_embeddings.weight"])
    ):
        return f"{tied} has the shape {list(found[tied])}, it must be that of the embeddings"
    return None


def _shorten(value: Any) -> str:
    """Short, on one line."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
