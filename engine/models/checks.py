"""Checks that the base of a profile exists and is complete, by file names and headers. Loads no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.models import files, folders, limits, scratch, stored_quantization, targets
from engine.models.targets import Target
from engine.options.model import ModelOptions
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError

_NO_REPLIES = "which can be trained here, but generates no replies"
VIRTUAL = ("prefix", "prompt")
"""Adapters that add trained positions before a row. The losses on replies do not support them."""
UNMERGEABLE = {
    "ADAPTION_PROMPT",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
}
"""peft's types of adapters that add positions instead of changing weights: they cannot be merged into a base."""


def check_shape(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """The same as `check_base` for a forecast, which needs no weights."""
    yield from check_base(sections, directory, home, folders.find_shape_problems)


def check_base(
    sections: Mapping[str, Any],
    directory: Path,
    home: Any,
    look: Callable[[Path], list[str]] = folders.find_problems,
) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` when training cannot start from `model.base`. A catalogue name is fetched on first
    need."""
    model = sections.get("model")
    if model is None:
        return
    if model.from_scratch:
        yield from _check_scratch(model, sections)
    elif model.has_shape:
        yield (
            "model.size" if model.size else "model.config",
            "is only for a model that starts from random weights: set model.init to config",
        )
    if not model.needs_base:
        return
    try:
        target = targets.resolve(model.base, home or Home.locate(), directory)
        if model.quantize_experts:
            yield from _check_experts(model, target)
        if not model.from_scratch or target.adapter:
            targets.check(target, look)
        yield from _check_adapter(model, target)
        yield from _check_stored(sections, target)
        if not model.has_shape:
            yield from _check_limits(sections, target)
    except ProblemError as error:
        problem = error.problem
        yield "model.base", ": ".join(part for part in (problem.title, problem.cause) if part)


def _check_stored(sections: Mapping[str, Any], target: Target) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` when the base's weights are stored quantised, and cannot be read or not be trained so."""
    if target.on_hub or sections["model"].from_scratch:
        return
    if problem := stored_quantization.find_problem(Path(target.base)):
        yield "model.base", f"{problem.title}: {problem.cause}. {problem.hint}"
        return
    trains_all = getattr(sections.get("adapter"), "kind", "") == "none"
    yield from stored_quantization.find_conflicts(Path(target.base), sections["model"].quantization, trains_all)


def _check_experts(model: ModelOptions, target: Target) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` when there are no experts to quantise."""
    if model.quantization != "nf4":
        yield "model.quantize_experts", f"goes with model.quantization nf4, not with {model.quantization}"
        return
    experts, weights = (0, 0) if target.on_hub else limits.count_expert_weights(Path(target.base))
    if weights and not experts:
        yield "model.quantize_experts", f"is for mixtures of experts, and {target.label} has none: leave it out"


def describe_family(profile: Any, home: Any) -> Iterator[str]:
    """Describe the GLM that a base in the original layout is, and what is converted when it is loaded."""
    if not profile.model.needs_base:
        return
    try:
        target = targets.resolve(profile.model.base, home or Home.locate(), profile.directory)
    except ProblemError:  # `check_base` has reported it
        return
    if not target.on_hub and (description := folders.describe_glm(Path(target.base))):
        yield f"{profile.model.base} is {description}"


def doubt_experts(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for a quantised base of experts: they are parameters of no linear layer, and bitsandbytes
    quantises linear layers alone."""
    model = sections["model"]
    if model.quantization == "none" or not model.needs_base:
        return
    try:
        target = targets.resolve(model.base, home or Home.locate(), directory)
    except ProblemError:  # `check_base` has reported it
        return
    experts, weights = (0, 0) if target.on_hub else limits.count_expert_weights(Path(target.base))
    if experts and not model.quantize_experts:
        remedy = "set model.quantize_experts to true, " if model.quantization == "nf4" else ""
        yield (
            "model.quantization",
            f"{model.quantization} leaves the experts in {model.dtype}: {experts / 1e9:.2g} of {weights / 1e9:.2g} "
            f"billion weights, {experts * 2 / 1e9:.2g} GB; {remedy}reckon with that memory, or name a dense base",
        )


def pin_base(model: ModelOptions, directory: Path, home: Home) -> ModelOptions:
    """`model`, with a run named as its base or tokenizer replaced by the run's checkpoint. Raises ProblemError."""
    named = {"base": model.base} if model.needs_base else {}
    if isinstance(model.tokenizer, str) and not folders.has_tokenizer(directory / Path(model.tokenizer).expanduser()):
        named["tokenizer"] = model.tokenizer
    found = {key: targets.resolve(name, home, directory) for key, name in named.items()}
    return model.model_copy(update={key: target.label for key, target in found.items() if target.run})


def _check_scratch(model: ModelOptions, sections: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if model.has_shape:
        data = sections.get("data")
        yield from scratch.find_faults(model, data.max_length if data else None)
    if model.quantization != "none":
        yield "model.quantization", "random weights are trained in full: set it to none"
    method = sections.get("method")
    if method and method.rows != "tokens":
        yield (
            "method.kind",
            f"{method.kind} needs a trained model: pretrain one, then name its run in model.base",
        )
    adapter = sections.get("adapter")
    if adapter and adapter.kind != "none":
        yield (
            "adapter.kind",
            "an adapter on random weights learns nothing useful: set it to none, or model.init to pretrained",
        )


def _check_limits(sections: Mapping[str, Any], target: Target) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for sequences beyond the base's positions, and for targets that name none of its
    layers."""
    base, data, adapter = Path(target.base), sections.get("data"), sections.get("adapter")
    if target.on_hub or not (base / "config.json").is_file() or folders.is_original_glm(base):
        return
    virtual = getattr(adapter, "virtual_tokens", 0)
    positions = limits.read_positions(base)
    if data and positions is not None and data.max_length + virtual > positions:
        added = f" with {virtual} virtual tokens of the adapter" if virtual else ""
        yield (
            "data.max_length",
            f"is {data.max_length}{added}, and {target.label} has positions for {positions} tokens: lower it to "
            f"{positions - virtual}, or stretch them in the model's config.json (rope_scaling)",
        )
    evaluation, method = sections.get("evaluation"), sections.get("method")
    if limits.is_recurrent(base):
        if evaluation and evaluation.task:
            yield "evaluation.task", f"cannot be measured: {target.label} is a recurrent model, {_NO_REPLIES}"
        if method and method.rows == "prompts":
            yield "method.kind", f"{method.kind} generates replies: {target.label} is a recurrent model, {_NO_REPLIES}"
    targets_ = getattr(adapter, "targets", None)
    if isinstance(targets_, list) and (unknown := limits.find_unknown_targets(base, targets_)):
        yield (
            "adapter.targets",
            f"no layer of {target.label} is called {', '.join(unknown)}: take it out, or write all-linear",
        )


def _check_adapter(model: ModelOptions, target: Target) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` when the adapter cannot be merged into its base, as it must be before training."""
    if target.adapter is None:
        return
    kind = files.read_json_object(target.adapter / folders.ADAPTER).get("peft_type", "")
    if kind in UNMERGEABLE:
        yield (
            "model.base",
            f"{model.base} is a {kind.lower().replace('_', ' ')} adapter, "
            f"which cannot be merged into its base ({target.base}): name that base",
        )
    config = Path(target.base) / "config.json"
    if not target.on_hub and config.is_file() and "quantization_config" in files.read_json_object(config):
        yield (
            "model.base",
            (
                f"{model.base} is an adapter on {target.base}, whose stored weights are quantised: "
                "no adapter can be merged into them"
            ),
        )
