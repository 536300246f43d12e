"""Several adapters on one base in one server: each row of a batch is computed with its own, by peft's mixed batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.models import files, folders, plain_lora, targets, template_lock, tokenizers
from engine.models.targets import Target
from engine.models.template_metadata import choose_template
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel

BASE = "__base__"
"""peft's name for rows without an adapter."""


def resolve(names: Sequence[str], served: Target, home: Home, directory: Path) -> list[Target]:
    """Find adapters to serve beside `served`. Raises ProblemError for one that cannot be computed beside others, before
    anything is loaded."""
    found = [targets.resolve(name, home, directory) for name in names]
    for target in [*([served] if served.adapter else []), *found]:
        _check_kind(served, target)
    labels = [served.label]
    for target in found:
        if target.label in labels:
            raise _refuse(target, "a model of that name is served already")
        labels.append(target.label)
    return found


def load(loaded: LoadedModel, adapters: Sequence[Target]) -> tuple[Any, dict[str, str]]:
    """The loaded model with these adapters beside its own, and the names of all: label -> peft's name.

    Raises ProblemError for an adapter with another tokenizer, template or stop tokens than the served model's, and
    where the layers cannot be computed with several.
    """
    from peft import PeftModel

    own = loaded.target
    names = {own.label: loaded.model.active_adapter if own.adapter else BASE}
    model = loaded.model
    for place, target in enumerate(adapters):
        targets.check(target, folders.find_weights_problems)
        _check_template(loaded, target)
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
    _try_batch(model.eval(), adapters[-1], [*names.values()])
    return model, names


def describe_differences(loaded: LoadedModel, adapters: Sequence[Target]) -> str:
    """Which adapters were trained on the base in another quantisation than the one that is served; else empty."""
    others = [
        f"{target.label} on {target.quantization}"
        for target in adapters
        if target.quantization not in (None, loaded.quantization)
    ]
    told = f"trained on the base in another quantisation than {loaded.quantization}: {', '.join(others)}"
    return told if others else ""


def _try_batch(model: Any, target: Target, names: list[str]) -> None:
    """Compute one batch: some layers, such as those of experts, see tokens of all rows together. Raises
    ProblemError."""
    import torch

    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros((len(names), 3), dtype=torch.long, device=model.device), adapter_names=names)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise _refuse(target, first_lines(error))


def _check_kind(own: Target, target: Target) -> None:
    if target.adapter is None:
        raise _refuse(target, "it is no adapter")
    if not targets.have_same_base(target, own):
        raise _refuse(target, f"its base is {target.base}, not {own.base}")
    if extras := plain_lora.find_extras(files.read_json_object(target.adapter / folders.ADAPTER)):
        raise _refuse(target, f"only plain LoRA can be mixed, and it is or uses {', '.join(extras)}")


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
            hint="serve it alone on another port, or as the target, with others like it beside it",
        )
    )
