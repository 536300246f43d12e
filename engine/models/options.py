"""What a profile says about the base model."""

from __future__ import annotations

from typing import Literal

from engine.prep.tokenizer_options import TokenizerOptions
from engine.protocol.options import Options, option


class ModelOptions(Options):
    base: str = option(
        "smollm2-135m-instruct",
        help="Base model: a folder, a catalogue name, a run or run@step, or org/name on the hub.",
        min_length=1,
    )
    dtype: Literal["bfloat16", "float16", "float32"] = option(
        "bfloat16", help="Dtype of the loaded base and of autocast."
    )
    quantization: Literal["none", "nf4", "int8"] = option(
        "none", help="Quantise the frozen base: nf4 (4 bit, double quantisation) or int8."
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = option(
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
