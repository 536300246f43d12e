"""LoRA (Hu et al. 2021, arXiv:2106.09685): a trained low-rank update beside each frozen linear layer."""

from __future__ import annotations

from typing import Any, Literal

from engine.protocol.messages import Problem, ProblemError
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


def attach(model: Any, options: Options) -> Any:
    """A PeftModel around `model`, whose own weights are frozen. Raises ProblemError when no layer has such a name."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.targets,
        bias="none",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ProblemError(
            Problem(
                title="adapter.targets fits no layer of this model",
                cause=str(error).splitlines()[0],
                hint="use all-linear, or names as the model's own (for example q_proj, v_proj)",
            )
        )
    dtype = getattr(torch, options.dtype)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapted
