"""Several adapters on one base in one server: each row of a batch is computed with its own, by peft's mixed batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.models import files, folders, targets, template_lock, tokenizers
from engine.models.targets import Target
from engine.models.template_metadata import choose_template
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel

BASE = "__base__"
"""peft's name for rows without an adapter."""
_UNMIXED = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")
"""Settings of a LoRA with which peft computes no mixed batches."""


def resolve(names: Sequence[str], home: Home, directory: Path) -> list[Target]:
    """Find adapters. Raises ProblemError."""
    return [targets.resolve(name, home, directory) for name in names]


def load(loaded: LoadedModel, adapters: Sequence[Target]) -> tuple[Any, dict[str, str]]:
    """The loaded model with these adapters beside its own, and the names of all: label -> peft's name.

    Raises ProblemError for an adapter that cannot be computed beside others, and for one with another tokenizer,
    template or stop tokens than the served model's.
    """
    from peft import PeftModel

    own = loaded.target
    names = {own.label: loaded.model.active_adapter if own.adapter else BASE}
    model = loaded.model
    for target in [*([own] if own.adapter else []), *adapters]:
        _check_kind(own, target)
    for place, target in enumerate(adapters):
        targets.check(target, folders.find_weights_problems)
        _check_template(loaded, target)
        if target.label in names:
            raise _refuse(target, "a model of that name is served already")
        name = f"a{place}"
        assert target.adapter
        try:
            if isinstance(model, PeftModel):
                model.load_adapter(str(target.adapter), adapter_name=name, torch_device=str(loaded.device))
            else:
                device = str(loaded.device)
                model = PeftModel.from_pretrained(model, target.adapter, adapter_name=name, torch_device=device)
        except (ValueError, RuntimeError, KeyError) as error:
            raise _refuse(target, first_lines(error))
        names[target.label] = name
    return model.eval(), names


def _check_kind(own: Target, target: Target) -> None:
    if target.adapter is None:
        raise _refuse(target, "it is no adapter")
    if target.base != own.base:
        raise _refuse(target, f"its base is {target.base}, not {own.base}")
    config = files.read_json_object(target.adapter / folders.ADAPTER)
    used = [name for name in _UNMIXED if config.get(name)]
    if config.get("peft_type") != "LORA" or used:
        kind = str(config.get("peft_type")).lower()
        raise _refuse(target, f"it is {kind}{' with ' + ', '.join(used) if used else ''}, and only LoRA can be mixed")


def _check_template(loaded: LoadedModel, target: Target) -> None:
    source = template_lock.find_tokenizer_folder(target)
    tokenizer = tokenizers.load(source) if source else loaded.tokenizer
    recorded = targets.read_lock(target.lock) if target.lock else None
    if recorded and target.lock:
        template_lock.check(recorded, tokenizer, target.lock.parent)
    stops = template_lock.find_stop_ids(recorded, loaded.model, tokenizer)
    same = choose_template(tokenizer.chat_template) == choose_template(loaded.tokenizer.chat_template)
    if not same or tokenizer.get_vocab() != loaded.tokenizer.get_vocab() or stops != loaded.stop_ids:
        raise _refuse(target, "its tokenizer, chat template or stop tokens differ from those of the served model")


def _refuse(target: Target, why: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="serving.adapter_refused",
            title=f"{target.label} cannot be served beside the others",
            cause=why,
            hint="serve it alone, on another port",
        )
    )
