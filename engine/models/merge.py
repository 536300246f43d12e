"""Merges an adapter into the weights of its base; the result is an ordinary model folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engine.models import files, folders, loading, template_lock, tokenizers
from engine.models.checks import UNMERGEABLE
from engine.models.targets import Target
from engine.models.weights import read_header
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines
from engine.storage import cache

PRISTINE, DEQUANTISED = "pristine", "dequantised"
"""The two bases for a merge: the stored one, and the dequantised one that a quantised run has computed with."""
SHARD = "4GB"
"""Largest file of weights."""

_OF_THE_BASE = {"generation_config.json"}
"""Files of `cache.TOKENIZER_FILES` that belong to the model rather than to its tokenizer."""
_LOCKED = ("template_sha256", "eos_token_ids", "golden", "generation")


def merge(target: Target, folder: Path, trust_remote_code: bool, progress: Callable[[int, int], None]) -> None:
    """Write the base of `target` with its adapter merged into the empty `folder`. Raises ProblemError.

    The base is the stored one, in its own dtype. Tokenizer, template and lock are the adapter's. `progress` gets (done,
    total) of reading, merging and writing.
    """
    template_lock.check_target(target)
    model = build_merged(target, PRISTINE, None, progress, trust_remote_code)
    write_model(model, target, folder)
    progress(4, 4)


def explain_unmergeable(target: Target) -> Problem | None:
    """Why the adapter of `target` cannot be merged into its base; None when it can."""
    assert target.adapter is not None
    kind = files.read_json_object(target.adapter / folders.ADAPTER).get("peft_type", "")
    if kind in UNMERGEABLE:
        return Problem(
            code="adapter.not_mergeable",
            title=f"The adapter {target.label} cannot be merged into its base",
            cause=f"{kind.lower().replace('_', ' ')} adds positions before the text and changes no weight",
            hint="export only the adapter: cockpit export --adapter-only",
        )
    config = Path(target.base) / "config.json"
    if not target.on_hub and config.is_file() and "quantization_config" in files.read_json_object(config):
        return Problem(
            code="adapter.not_mergeable",
            title=f"The adapter {target.label} cannot be merged into its base",
            cause=(
                f"the weights of {target.base} are stored quantised, and adapters cannot be merged "
                "into quantised weights"
            ),
            hint="export only the adapter (cockpit export --adapter-only), or train on the model that was quantised",
        )
    return None


def build_merged(
    target: Target,
    base: str,
    dtype: str | None,
    progress: Callable[[int, int], None] = lambda *_: None,
    trust_remote_code: bool = False,
) -> Any:
    """The base of `target` (`PRISTINE` or `DEQUANTISED`) on the CPU, with the adapter merged, in `dtype` (None: as
    stored).

    peft computes each product in the adapter's dtype, and rounds its sum with the weight once, to the base's dtype.
    Raises ProblemError.
    """
    import torch
    from peft import PeftModel

    assert target.adapter is not None
    if problem := explain_unmergeable(target):
        raise ProblemError(problem)
    scores = folders.is_reward_model(target.adapter)
    try:
        model = load_base(target, base, dtype, scores, trust_remote_code)
        progress(1, 4)
        untie_adapted_embeddings(model, target.adapter)
        # Not with low_cpu_mem_usage: peft 0.21 would round the adapter's float32 weights to the base's dtype first.
        adapted = PeftModel.from_pretrained(model, target.adapter)
        progress(2, 4)
        whole = adapted.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise _merge_error(
            target,
            first_lines(error),
            "use the base itself, or export only the adapter",
        )
    if name := find_non_finite(whole):
        raise _merge_error(
            target, f"{name} would have values that are not finite", "choose an earlier checkpoint of the run"
        )
    progress(3, 4)
    if scores:
        whole.config.pad_token_id = _find_pad_token(target)  # the class finds the last token by it
    return whole if dtype is None else whole.to(getattr(torch, dtype))


def untie_adapted_embeddings(model: Any, adapter: Path) -> None:
    """Give the model an output layer of its own if the adapter changes one of two layers that share their weights.

    While training, an adapter on `lm_head` changes no embedding, nor one on the embedding the output. Merged into
    shared weights it would change both.
    """
    import torch

    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or output is None or output.weight is not embedding.weight:
        return
    layers = {name for name, module in model.named_modules() if module is embedding or module is output}
    if not any(_adapts(adapter, name) for name in layers):
        return
    output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # by which transformers would leave the output layer out when it saves


def _adapts(adapter: Path, layer: str) -> bool:
    """Whether the adapter's file has weights for the layer of that name."""
    path = adapter / "adapter_model.safetensors"
    if path.is_file():
        names: Iterable[str] = read_header(path)
    else:
        import torch

        names = torch.load(adapter / "adapter_model.bin", map_location="meta", weights_only=True)
    changed = re.compile(rf"(^|\.){re.escape(layer)}\.(?!(base_layer\.)?(weight|bias)$)")
    return any(changed.search(name) for name in names)


def write_model(model: Any, target: Target, folder: Path) -> None:
    """Write `model` to `folder` as transformers loads it, with the tokenizer, template, stop tokens and lock of
    `target`. Raises OSError."""
    recorded = json.loads(target.lock.read_text(encoding="utf-8")) if target.lock else {}
    if (stops := recorded.get("eos_token_ids")) and model.can_generate():
        model.generation_config.eos_token_id = stops
    model.save_pretrained(folder, max_shard_size=SHARD)
    write_tokenizer(target, folder)
    if recorded:
        kept = {key: recorded[key] for key in _LOCKED if key in recorded}
        (folder / "lock.json").write_text(json.dumps(kept, ensure_ascii=False, indent=1), encoding="utf-8")


def write_tokenizer(target: Target, folder: Path) -> None:
    """Copy the tokenizer's files as transformers reads them. The tokenizer of a GLM in its original layout is
    converted."""
    source = template_lock.find_tokenizer_folder(target)
    if source is None:
        if target.on_hub:
            tokenizers.load(target.base, target.trust_remote_code).save_pretrained(folder)
        return
    if folders.is_original_glm(source) and not (source / "tokenizer.json").is_file():
        tokenizers.load(source).save_pretrained(folder)
        return
    for name, path in cache.tokenizer_files(source).items():
        if name not in _OF_THE_BASE:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)


def find_non_finite(model: Any) -> str:
    """The name of the first weight with a value that is not finite; empty when there is none."""
    import torch

    return next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), "")


def load_base(target: Target, base: str, dtype: str | None, scores: bool, trust_remote_code: bool) -> Any:
    import torch

    from engine.models.quantization import quantization_config, read_stored_dtype

    load = loading.load_reward_model if scores else loading.load_model
    if base == PRISTINE:
        # In another dtype the sum is rounded only once as well, from 32 bits.
        read = "auto" if dtype in (None, read_stored_dtype(target)) else torch.float32
        return load(target.base, dtype=read, trust_remote_code=trust_remote_code, device_map="cpu")
    assert target.quantization and target.dtype
    packed = load(
        target.base,
        dtype=getattr(torch, target.dtype),
        quantization_config=quantization_config(target.quantization, target.dtype),
        trust_remote_code=trust_remote_code,
        device_map={"": "cpu"},
    )
    wide = torch.float32 if dtype == "float32" else getattr(torch, target.dtype)
    for module in packed.modules():
        if (packing := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
            packing.dtype = wide  # otherwise NF4 values would be rounded to 16 bits before they become 32
    unpacked = packed.dequantize(dtype=wide)
    assert "quantization_config" not in unpacked.config.to_dict()
    unpacked.is_loaded_in_4bit = unpacked.is_loaded_in_8bit = False  # peft would refuse to merge otherwise
    return unpacked


def _find_pad_token(target: Target) -> int | None:
    source = template_lock.find_tokenizer_folder(target)
    found = tokenizers.load(source) if source else None
    if found is None:
        return None
    pad: int | None = found.eos_token_id if found.pad_token_id is None else found.pad_token_id
    return pad


def _merge_error(target: Target, cause: str, hint: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="adapter.not_mergeable",
            title=f"The adapter {target.label} cannot be merged into {target.base}",
            cause=cause,
            hint=hint,
        )
    )
