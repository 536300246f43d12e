"""Common parts of the adapters: shared options, and attaching an adapter to a model with peft."""

from __future__ import annotations

from typing import Any, Literal

from engine.models.limits import matches
from engine.options.base import Variant, option
from engine.protocol.messages import Problem, ProblemError

_ROUTERS = ("gate", "router", "shared_expert_gate")
"""What the layers of experts in transformers call their routers."""

_EXPERTS = ("experts", "gate_up_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""What they call their experts, and peft the parts of fused ones."""


class AdapterOptions(Variant):
    dtype: Literal["float32", "bfloat16"] = option("float32", help="Dtype of the adapter's weights.")


class TargetedOptions(AdapterOptions):
    targets: list[str] | Literal["all-linear"] = option(
        "all-linear", help="Layers to adapt: all-linear, but for routers of experts, or names of modules."
    )


class LowRankOptions(TargetedOptions):
    rank: int = option(16, help="Rank of the update.", ge=1)
    alpha: float = option(32, help="The update is scaled by alpha / rank; with rslora by alpha / √rank.", gt=0)
    dropout: float = option(0.0, help="Dropout on the adapter's input.", ge=0, lt=1)


class VirtualTokenOptions(AdapterOptions):
    virtual_tokens: int = option(
        16, help="Trained positions before every row, beyond data.max_length.", unit="tokens", ge=1
    )


def attach(model: Any, config: Any, options: AdapterOptions) -> Any:
    """Wrap `model` in a PeftModel with peft's `config`; its own weights are frozen, the adapter's get the options'
    dtype. Raises ProblemError when no layer matches the targets, and for virtual tokens with a bidirectional model."""
    import torch
    from peft import get_peft_model

    if config.is_prompt_learning and getattr(model, "reads_both_ways", False):
        raise ProblemError(
            Problem(
                code="adapter.unsupported",
                title=f"adapter.kind {options.kind} does not work with this model",
                cause="it computes positions and attention from the token ids, and virtual tokens have none",
                hint="set adapter.kind to lora",
            )
        )
    packed = getattr(model, "packed_experts", False)
    if packed:
        _check_packed(model, options)
    _check_targets(model, options)
    if getattr(options, "targets", None) == "all-linear" and (routers := find_routers(model)):
        config.exclude_modules = routers
        config.target_modules = _list_linear(model, routers, experts=not packed) or config.target_modules
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ProblemError(
            Problem(
                code="adapter.no_layer",
                title=f"{options.kind} fits no layer of this model",
                cause=str(error).splitlines()[0],
                hint="set adapter.targets to names of this model's layers (for example q_proj, v_proj)",
            )
        )
    dtype = getattr(torch, options.dtype)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapted


def find_routers(model: Any) -> list[str]:
    """Names of the modules that choose a token's experts. An update of them would move all tokens at once, so
    all-linear leaves them out, though peft takes them for layers like any other."""
    return [
        f"{name}.{child}".lstrip(".")
        for name, module in model.named_modules()
        if "experts" in dict(module.named_children())
        for child, _ in module.named_children()
        if child in _ROUTERS
    ]


def _list_linear(model: Any, routers: list[str], *, experts: bool) -> list[str]:
    """Names for what peft adapts as all-linear in this model of experts, without its routers; empty where peft has no
    names of its own for fused experts. Without `experts` those of dense layers are missing too, which peft takes for
    experts."""
    import torch
    from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING

    family = _MODEL_TO_CONVERSION_PATTERN.get(model.config.get_text_config().model_type)
    fused = _MOE_TARGET_MODULE_MAPPING.get(family, {})
    if not fused:
        return []
    layers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings() and name not in routers
    }
    own = {old for old, new in fused.items() if new.partition(".")[0] not in _ROUTERS}
    return sorted(layers | own if experts else layers - own)


def _check_packed(model: Any, options: AdapterOptions) -> None:
    """Raises ProblemError for targets that name experts which are packed."""
    import torch

    named = getattr(options, "targets", None)
    if not isinstance(named, list):
        return
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    packed = [
        target
        for target in named
        if target.rpartition(".")[2] in _EXPERTS and not any(matches(target, layer) for layer in layers)
    ]
    if packed:
        raise ProblemError(
            Problem(
                code="adapter.unsupported",
                title=f"adapter.targets names {', '.join(packed)}: experts, which model.quantize_experts packs",
                cause="an adapter on them would need their weights in 16 bits again in every pass",
                hint="take them out of adapter.targets, or set model.quantize_experts to false",
            )
        )


def _check_targets(model: Any, options: AdapterOptions) -> None:
    """Raises ProblemError for names in `adapter.targets` that match no layer while others do: peft ignores them."""
    named = getattr(options, "targets", None)
    if not isinstance(named, list):
        return
    layers = [name for name, _ in model.named_modules()]
    unknown = [target for target in named if not any(matches(target, layer) for layer in layers)]
    if unknown and len(unknown) < len(set(named)):
        raise ProblemError(
            Problem(
                code="adapter.unknown_target",
                title=f"No layer of this model is called {', '.join(unknown)}",
                cause="adapter.targets names them, and nothing would be trained for them",
                hint="take them out of adapter.targets, or correct them; there are: "
                + ", ".join(
                    sorted({name.rpartition(".")[2] for name, each in model.named_modules() if _is_linear(each)})
                ),
            )
        )


def _is_linear(module: Any) -> bool:
    return hasattr(module, "in_features")


def get_task_type(model: Any) -> str:
    """peft's task type of `model`; peft trains and saves a scoring head with the adapter."""
    return "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"


def attach_low_rank(model: Any, options: LowRankOptions, *, use_rslora: bool = False, use_dora: bool = False) -> Any:
    """Attach LoRA or one of its variants, which differ in two flags."""
    from peft import LoraConfig

    config = LoraConfig(
        task_type=get_task_type(model),
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.targets,
        use_rslora=use_rslora,
        use_dora=use_dora,
        bias="none",
    )
    return attach(model, config, options)
