"""The `model` section of a profile: the base model."""

from __future__ import annotations

from typing import Literal

from engine.options.base import Options, option
from engine.options.tokenizer import TokenizerOptions


class ShapeOptions(Options):
    """The shape of a Llama-style model, by the names of transformers' `LlamaConfig`. None: the value of
    `model.size`."""

    hidden_size: int | None = option(None, help="Width of the residual stream.", ge=1)
    intermediate_size: int | None = option(None, help="Width inside a feed-forward block.", ge=1)
    num_hidden_layers: int | None = option(None, help="Layers.", ge=1)
    num_attention_heads: int | None = option(None, help="Attention heads; they share hidden_size evenly.", ge=1)
    num_key_value_heads: int | None = option(
        None, help="Heads of keys and values; a divisor of num_attention_heads.", ge=1
    )
    head_dim: int | None = option(None, help="Width of a head; none: hidden_size / num_attention_heads.", ge=2)
    max_position_embeddings: int | None = option(
        None, help="Longest sequence that the model is made for.", unit="tokens", ge=8
    )
    rope_theta: float | None = option(None, help="Base of the rotary position embedding.", gt=0)
    rms_norm_eps: float | None = option(None, help="Added to the variance in RMS normalisation.", gt=0)
    initializer_range: float | None = option(None, help="Standard deviation of the initial weights.", gt=0)
    tie_word_embeddings: bool | None = option(None, help="One matrix for the embedding and the output layer.")
    attention_bias: bool | None = option(None, help="Biases in the attention's linear layers.")
    mlp_bias: bool | None = option(None, help="Biases in the feed-forward blocks.")


class ModelOptions(Options):
    base: str = option(
        "smollm2-135m-instruct",
        help="Base model: a folder, a catalogue name, a run or run@step. What is on a hub is pulled first.",
        min_length=1,
    )
    dtype: Literal["bfloat16", "float16", "float32"] = option(
        "bfloat16", help="Dtype of the loaded base and of autocast."
    )
    quantization: Literal["none", "nf4", "int8"] = option(
        "none", help="Quantise the frozen base: nf4 (4 bit, double quantisation) or int8."
    )
    quantize_experts: bool = option(
        False,
        help="With nf4: pack the fused experts of a mixture-of-experts base too; no adapter is put on them then.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = option(
        "auto", help="Attention implementation; auto takes the fastest that is exact here."
    )
    tokenizer: str | TokenizerOptions | None = option(
        None,
        help="Tokenizer of a model that starts from its config: a folder or model that has one, or "
        "{kind: bpe, vocab_size: 15000} to train one; none: the base's.",
    )
    trust_remote_code: bool = option(
        False, help="Run Python code that comes with the model folder. Leave it off unless you have read that code."
    )
    init: Literal["pretrained", "config"] = option(
        "pretrained",
        help="Where training starts: from the base's weights, or from random ones drawn with training.seed.",
    )
    size: Literal["small", "medium"] | None = option(
        None,
        help="With init config: a built-in Llama-style size, 26 or 308 million parameters before the vocabulary's.",
    )
    config: ShapeOptions | None = option(
        None,
        help="With init config: a Llama-style shape of your own; unset fields are those of model.size, else small.",
    )

    @property
    def from_scratch(self) -> bool:
        """Whether training starts from random weights."""
        return self.init == "config"

    @property
    def has_shape(self) -> bool:
        """Whether the shape is given here rather than by the base."""
        return self.size is not None or self.config is not None

    @property
    def origin(self) -> str:
        """What training starts from, for display: the base, or random weights where there is no base."""
        return self.base if self.needs_base else f"random ({'own shape' if self.config else self.size})"

    @property
    def needs_base(self) -> bool:
        """Whether anything of the base is needed: its weights, its shape or its tokenizer."""
        return not (self.from_scratch and self.has_shape and self.tokenizer is not None)
