"""Checkpoints: complete or absent, few, and read back before a run is called complete.

A checkpoint is written into a hidden folder beside its place, synced, and renamed; so is what is published to
`checkpoint.output`. What transformers and peft load lies at the top, what only a resume needs in `trainer/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from engine.metrics.registry import direction
from engine.protocol.home import RunDirectory
from engine.protocol.journal import Checkpoint, read
from engine.protocol.messages import Problem, ProblemError
from engine.storage.atomic import write_folder
from engine.tasks.direction import Direction

RESUME_FOLDER = "trainer"
"""Folder inside a checkpoint: optimizer, scheduler, scaler, random states, trainer_state.json."""
MASTERS = "masters.pt"
"""In it, where they are not what the checkpoint itself holds: the weights that are trained, as they are trained."""


def remove_partial(run: RunDirectory) -> None:
    """Remove what a killed worker left half written."""
    for leftover in run.checkpoints.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def list_with_metrics(run: RunDirectory) -> dict[int, dict[str, float]]:
    """Complete checkpoints with the metrics that the journal knows of them, by step."""
    metrics = {entry.step: entry.metrics for entry, _ in read(run.events) if isinstance(entry, Checkpoint)}
    return {step: metrics.get(step, {}) for step in run.checkpoint_steps()}


def find_best(checkpoints: dict[int, dict[str, float]], metric: str) -> int | None:
    """The step of the best checkpoint by `metric`, the earliest of equals; None when none has it."""
    scored = {step: metrics[metric] for step, metrics in checkpoints.items() if metric in metrics}
    if not scored:
        return None
    sign = 1 if direction(metric) == Direction.LOWER else -1
    return min(scored, key=lambda step: (sign * scored[step], step))


def prune(run: RunDirectory, keep: int, protected: set[int]) -> list[int]:
    """Remove the oldest checkpoints beyond `keep`, never a protected one; returns the removed steps."""
    steps = run.checkpoint_steps()
    surplus = max(0, len(steps) - keep)
    removed = [step for step in steps if step not in protected][:surplus]
    for step in removed:
        # Out of sight first: a removal cut short must not look like a complete checkpoint.
        hidden = run.checkpoint(step).with_name(f".step-{step:08d}.removed")
        run.checkpoint(step).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return removed


def save_weights(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """The adapter, or the whole model in `dtype`, with config and tokenizer, as the libraries' own loaders expect them."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        # Of the whole model: given the adapter's weights alone, peft does not find a head that is trained beside them.
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder, state_dict=collect_weights(model, dtype))
    tokenizer.save_pretrained(folder)
    for card in folder.glob("README.md"):  # peft's empty form
        card.unlink()
    config = folder / "config.json"
    if config.exists():
        text = json.loads(config.read_text())
        config.write_text(json.dumps({**text, "dtype": dtype, "use_cache": True}, indent=2))


def collect_weights(model: Any, dtype: str) -> dict[str, Any]:
    """What a checkpoint holds of `model`: names and tensors as they stand in its file."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        # peft compares vocabularies with the base's config.json to guess whether embeddings were changed, and ours never are; a
        # config in another layout (engine/models/glm) would make it store them.
        adapter: dict[str, Any] = get_peft_model_state_dict(model, save_embedding_layers=False)
        return adapter
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}


def read_back(folder: Path, model: Any, dtype: str) -> None:
    """Compare what lies on disk with what is in memory, bit for bit. Raises ProblemError naming the first difference."""
    import torch
    from safetensors import SafetensorError, safe_open

    expected = collect_weights(model, dtype)
    seen: set[str] = set()
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if name not in expected or not torch.equal(file.get_tensor(name), expected[name].cpu()):
                        raise _unreadable(folder, f"{path.name} holds another {name} than was trained")
                    seen.add(name)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, str(error))
    # A tied weight is stored once, under one of its names.
    stored = {expected[name].data_ptr() for name in seen}
    missing = [name for name in expected if name not in seen and expected[name].data_ptr() not in stored]
    missing = [name for name in missing if not any(torch.equal(expected[name], expected[other]) for other in seen)]
    if missing or not seen:
        raise _unreadable(folder, f"{missing[0] if missing else 'everything'} is missing")


def _unreadable(folder: Path, cause: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="checkpoint.unreadable",
            title=f"The checkpoint in {folder} cannot be read back",
            cause=cause,
            hint="the disk may be failing; `cockpit resume` goes on from the checkpoint before",
        )
    )


def publish(checkpoint: Path, output: Path) -> None:
    """Copy a checkpoint, without what only a resume needs, to `output`: complete or not at all."""
    check_output(output)
    without = shutil.ignore_patterns(RESUME_FOLDER)
    write_folder(output, lambda folder: shutil.copytree(checkpoint, folder, dirs_exist_ok=True, ignore=without))


def check_output(output: Path) -> None:
    """Raises ProblemError when `output` is there and holds something: nobody's files are replaced."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ProblemError(
            Problem(
                code="output.not_empty",
                title=f"checkpoint.output is not empty: {output}",
                hint="name a folder that does not exist yet, or empty this one",
            )
        )
