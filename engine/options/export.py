"""The `export` section of a profile: the folder to write from the trained model."""

from __future__ import annotations

from typing import Literal

from engine.options.base import Options, option


class ExportOptions(Options):
    kind: Literal["none", "merged", "adapter"] = option(
        "none",
        help="Export the best checkpoint at the end: merged, whole weights; adapter, only the adapter.",
    )
    output: str | None = option(
        None, help="Folder to make, absent or empty; none: export/ in the run's directory.", min_length=1
    )
    dtype: Literal["bfloat16", "float16", "float32"] | None = option(
        None, help="Dtype of the weights; none: as trained."
    )
    gguf: (
        Literal["auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m", "q2_k"]
        | None
    ) = option(None, help="Also write GGUF of this type, by llama.cpp's converter; q6_k and smaller by llama-quantize.")
    converter: str | None = option(
        None, help="A llama.cpp checkout with the converter; none: look on PATH.", min_length=1
    )
