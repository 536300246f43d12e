"""Checkpoint folders: written completely or not at all, pruned, verified, and published.

A checkpoint is written into a hidden folder beside its final place, synced, and renamed; the same holds for the copy
in `checkpoint.output`. The files that transformers and peft load are at the top, those that only a resume needs in
`trainer/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from engine.metrics.registry import direction
from engine.protocol import attempt_fence
from engine.protocol.home import RunDirectory
from engine.protocol.journal import Checkpoint, read
from engine.protocol.messages import Problem, ProblemError
from engine.storage import manifest
from engine.storage.atomic import write_folder
from engine.tasks.direction import Direction

RESUME_FOLDER = "trainer"
"""Folder inside a checkpoint with what only a resume needs: optimiser, schedule, loss scaler, settings, random
states."""
MASTERS = "masters.pt"
"""File in that folder with the master weights, where they differ from the weights that the checkpoint publishes."""


def remove_partial(run: RunDirectory) -> None:
    """Remove checkpoints that a killed worker left half written."""
    attempt_fence.check()
    for leftover in run.checkpoints.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def list_with_metrics(run: RunDirectory) -> dict[int, dict[str, float]]:
    """Complete checkpoints by step, each with its metrics in the journal."""
    metrics = {entry.step: entry.metrics for entry, _ in read(run.events) if isinstance(entry, Checkpoint)}
    return {step: metrics.get(step, {}) for step in run.checkpoint_steps()}


def find_best(checkpoints: dict[int, dict[str, float]], metric: str) -> int | None:
    """The step of the best checkpoint by `metric`, the earliest of equals; None when none has the metric."""
    scored = {step: metrics[metric] for step, metrics in checkpoints.items() if metric in metrics}
    if not scored:
        return None
    sign = 1 if direction(metric) == Direction.LOWER else -1
    return min(scored, key=lambda step: (sign * scored[step], step))


def prune(run: RunDirectory, keep: int, protected: set[int], written: set[int]) -> list[int]:
    """Remove the oldest checkpoints beyond `keep`, never a protected one, and none that is not among the `written`:
    what the journal does not know may be all that is left of the run. Returns the removed steps."""
    steps = [step for step in run.checkpoint_steps() if step in written]
    surplus = max(0, len(steps) - keep)
    removed = [step for step in steps if step not in protected][:surplus]
    for step in removed:
        # Hidden first: an interrupted removal must not look like a complete checkpoint.
        hidden = run.checkpoint(step).with_name(f".step-{step:08d}.removed")
        attempt_fence.check()
        run.checkpoint(step).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return removed


def save_weights(model: Any, tokenizer: Any, folder: Path, dtype: str, weights: dict[str, Any] | None = None) -> None:
    """Write the adapter, or the whole model in `dtype`, with config and tokenizer, as transformers and peft load
    them. `weights` are those of the model, if they have been collected before."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        # From the whole model: given only the adapter's weights, peft does not find a head that is trained with them.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights and dict(weights))
    else:
        # A copy: transformers removes entries.
        model.save_pretrained(folder, state_dict=dict(weights or collect_weights(model, dtype)))
    tokenizer.save_pretrained(folder)
    for card in folder.glob("README.md"):  # peft's empty template
        card.unlink()
    config = folder / "config.json"
    if config.exists():
        text = json.loads(config.read_text())
        config.write_text(json.dumps({**text, "dtype": dtype, "use_cache": True}, indent=2))


def collect_weights(
    model: Any, dtype: str, gathered: dict[str, Any] | None = None, *, copy: bool = False
) -> dict[str, Any]:
    """The weights of `model` as a checkpoint stores them, by name, on the host. All weights of a model are cast and
    copied one by one, so that the device never has a second copy of them; with `copy` none is the model's own.
    `gathered` are its weights where they are divided among ranks."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        # peft compares vocabularies with the base's config.json to guess whether embeddings were resized, which they
        # never are; a config in another layout (engine/models/glm) would make it store them.
        adapter: dict[str, Any] = get_peft_model_state_dict(model, state_dict=gathered, save_embedding_layers=False)
        return adapter
    if gathered is not None:
        return gathered
    copies: dict[Any, Any] = {}  # tied weights share theirs

    def take(tensor: Any) -> Any:
        same = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if same not in copies:
            taken = tensor.to(getattr(torch, dtype)).cpu()
            copies[same] = taken.clone() if copy and taken.data_ptr() == tensor.data_ptr() else taken
        return copies[same]

    return {name: take(tensor) for name, tensor in model.state_dict().items()}


def read_back(folder: Path, model: Any, dtype: str, gathered: dict[str, Any] | None = None) -> None:
    """Compare a checkpoint's weights on disk with those in memory, bit for bit. Raises ProblemError naming the first
    difference."""
    import torch
    from safetensors import SafetensorError, safe_open

    expected = _name_as_stored(model, collect_weights(model, dtype, gathered))
    seen: set[str] = set()
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if name not in expected or not torch.equal(file.get_tensor(name), expected[name].cpu()):
                        raise _unreadable(folder, f"{name} in {path.name} differs from the trained one")
                    seen.add(name)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, str(error))
    # A tied weight is stored once, under one of its names.
    stored = {expected[name].data_ptr() for name in seen}
    missing = [name for name in expected if name not in seen and expected[name].data_ptr() not in stored]
    missing = [name for name in missing if not any(torch.equal(expected[name], expected[other]) for other in seen)]
    if missing or not seen:
        raise _unreadable(folder, f"{missing[0] if missing else 'everything'} is missing")


def _name_as_stored(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """The weights of a whole model as its files have them: transformers fuses experts when it loads them, and takes
    them apart when it saves."""
    from peft import PeftModel
    from transformers.core_model_loading import revert_weight_conversion

    if isinstance(model, PeftModel):
        return weights
    stored: dict[str, Any] = revert_weight_conversion(model, dict(weights))
    return stored


def _unreadable(folder: Path, cause: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="checkpoint.unreadable",
            title=f"The checkpoint in {folder} cannot be read back",
            cause=cause,
            hint="the disk may be failing; `cockpit resume` continues from the checkpoint before",
        )
    )


def publish(checkpoint: Path, output: Path) -> None:
    """Copy a checkpoint to `output`, completely or not at all, without the files that only a resume needs."""
    check_output(output)
    without = shutil.ignore_patterns(RESUME_FOLDER, manifest.FILE)
    write_folder(output, lambda folder: shutil.copytree(checkpoint, folder, dirs_exist_ok=True, ignore=without))


def check_output(output: Path) -> None:
    """Raises ProblemError when `output` exists and is not an empty folder: no files are ever replaced."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ProblemError(
            Problem(
                code="output.not_empty",
                title=f"checkpoint.output is not empty: {output}",
                hint="name a folder that does not exist yet, or empty this one",
            )
        )
