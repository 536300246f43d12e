"""An adapter put into the weights that it was trained beside: what comes out is an ordinary model folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.models import folders, loading
from engine.models.targets import Target
from engine.prep import cache
from engine.protocol.messages import Problem, ProblemError

_OF_THE_BASE = {"generation_config.json"}
"""Of `cache.TOKENIZER_FILES`, what says something of the model and not of its tokenizer."""
_LOCKED = ("template_sha256", "eos_token_ids", "golden", "generation")


def merge(target: Target, folder: Path, trust_remote_code: bool, progress: Callable[[int, int], None]) -> None:
    """Write the base of `target` with its adapter added to its weights into the empty `folder`. Raises ProblemError.

    The base is loaded once, unquantised, in the dtype that it is stored in; peft computes each product in the adapter's dtype and
    rounds its sum with the weight to the base's. Tokenizer, template and lock are the adapter's. `progress` is told (done, total) of
    reading, merging and writing.
    """
    from peft import PeftModel

    assert target.adapter is not None
    try:
        model = loading.pretrained(target.base, dtype="auto", trust_remote_code=trust_remote_code, device_map="cpu")
        progress(1, 4)
        # Not with low_cpu_mem_usage: peft 0.21 would round the adapter's float32 weights to the base's dtype first.
        adapted = PeftModel.from_pretrained(model, target.adapter)
        progress(2, 4)
        merged = adapted.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise ProblemError(
            Problem(
                title=f"The adapter {target.label} cannot be merged into {target.base}",
                cause="\n".join(str(error).strip().splitlines()[:3]),
                hint="name the base itself in model.base",
            )
        )
    if name := _not_finite(merged):
        raise ProblemError(
            Problem(
                title=f"The adapter {target.label} cannot be merged into {target.base}",
                cause=f"{name} would hold numbers that are not finite",
                hint="choose an earlier checkpoint of the run",
            )
        )
    progress(3, 4)
    recorded = json.loads(target.lock.read_text(encoding="utf-8")) if target.lock else {}
    if stops := recorded.get("eos_token_ids"):
        merged.generation_config.eos_token_id = stops
    merged.save_pretrained(folder)
    source = target.adapter if folders.has_tokenizer(target.adapter) else Path(target.base)
    for file in cache.TOKENIZER_FILES:
        if file not in _OF_THE_BASE and (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    if recorded:
        kept = {key: recorded[key] for key in _LOCKED if key in recorded}
        (folder / "lock.json").write_text(json.dumps(kept, ensure_ascii=False, indent=1), encoding="utf-8")
    progress(4, 4)


def _not_finite(model: object) -> str:
    """The first weight with a number that is not finite; empty when there is none."""
    import torch

    assert isinstance(model, torch.nn.Module)
    return next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), "")
