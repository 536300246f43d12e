"""Whether the longest batch certainly fits in memory, so that the rehearsal need not compute it.

That takes as long as a step, before the first one begins. With `training.rehearsal: auto` it is left out where it can
show nothing: the run takes at most a third of the memory that there is, no fast path is used here for the first time,
and the tokens of the longest batch are those that the model has.

What a run takes is what its forecast says. On a CPU there seldom is one, and a bound takes its place: what this process
holds now, and what a pass of a plain decoder could keep at most. A small run takes about half of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.hardware import host_memory
from engine.models import accelerator
from engine.options.tables import AUTO
from engine.protocol.journal import Memory
from engine.training import compiling, memory_report

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop
    from engine.training.methods.base import Batch

SOURCE, CODE = "estimated", "memory.batch_not_tried"
SHARE = 1 / 3
"""Share of the memory that there is, up to which a run certainly fits."""
_UNKNOWN_ERROR = 50.0
"""Per cent by which a forecast may be wrong that does not say."""
_SIZES = ("micro_batch", "accumulation", "tokens_per_batch")
_ATTENTION = {"full_attention", "sliding_attention"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LIBRARIES = 1 << 29
"""Bytes that libraries take in their first pass, evaluation and checkpoint."""
_PER_WEIGHT = 20
"""Bytes for each trained weight: gradient, two states, an average and a copy, in float32."""
_WIDTHS, _INNER, _LOGITS = 24, 8, 4
"""Tensors in float32 that a layer keeps for each token, as wide as the model and as its inner layer; and those as wide
as the vocabulary."""


def is_certain(loop: TrainingLoop, batch: Batch) -> bool:
    """Whether the passes of `batch`, the longest one, need not be tried; then the journal and the log say why."""
    job = loop.job
    if loop.profile.training.rehearsal != AUTO or not _is_plain(loop) or not _has_known_tokens(loop, batch):
        return False
    on_card = job.device.kind != "cpu"
    needed, room = _read_forecast(loop), accelerator.read_room() if on_card else _read_room()
    if needed is None and not on_card:
        needed = _bound(loop, batch)
    if needed is None or room is None or needed > SHARE * room:
        return False
    sizes: dict[str, Any] = {"device_bytes": needed} if on_card else {"host_bytes": needed}
    job.reporter.write(Memory(attempt=job.attempt, source=SOURCE, code=CODE, room_bytes=room, **sizes))
    return True


def _is_plain(loop: TrainingLoop) -> bool:
    """Whether nothing but memory could go wrong in a pass: one process, and no path that is new here."""
    job, training = loop.job, loop.profile.training
    changed = any(getattr(training, name) != getattr(job.submitted.training, name) for name in _SIZES)
    compiled = compiling.is_enabled(training.compile, job.device.kind, loop.max_steps)
    known = getattr(loop.profile.method, "rows", "") == "tokens"
    return known and not (changed or compiled or job.grows or job.has_tried_paths or loop.ranks.world > 1)


def _has_known_tokens(loop: TrainingLoop, batch: Batch) -> bool:
    """Whether the model has every token of the batch, and something of it is trained on."""
    ids = batch.get("input_ids")
    if ids is None or not ids.numel():
        return False
    rows = loop.model.get_input_embeddings().weight.shape[0]
    return int(ids.min()) >= 0 and int(ids.max()) < rows and loop.method.units(batch) > 0


def _read_forecast(loop: TrainingLoop) -> int | None:
    """What the run takes at most by its forecast, of the fullest card or of the host."""
    found = loop.job.memory.get(memory_report.FORECAST)
    if found is None or not found.get("rows_measured"):
        return None
    size = found.get("device_bytes" if loop.job.device.kind != "cpu" else "host_bytes")
    error = found.get("error_percent")
    return None if size is None else int(size * (1 + (_UNKNOWN_ERROR if error is None else error) / 100))


def _read_room() -> int:
    """The host's memory for this process: what it has, and what is free."""
    return host_memory.read_available() + (memory_report.read_resident() or 0)


def _bound(loop: TrainingLoop, batch: Batch) -> int | None:
    """Bytes that this process never takes more than, on a CPU; None for a model that is not a plain decoder."""
    config, resident = loop.model.config.get_text_config(), memory_report.read_resident()
    try:
        layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
        hidden, inner, vocabulary = int(config.hidden_size), int(config.intermediate_size), int(config.vocab_size)
    except (AttributeError, TypeError, ValueError):
        return None
    others = {*(getattr(config, "layer_types", None) or ())} - _ATTENTION
    if resident is None or others or any(getattr(config, name, None) for name in _EXPERTS):
        return None
    width = max(hidden, heads * int(getattr(config, "head_dim", None) or 0))
    tokens, longest = int(batch["input_ids"].numel()), max(loop.batches.lengths)
    trained = sum(weight.numel() for weight in loop.model.parameters() if weight.requires_grad)
    scores = 2 * heads * longest
    kept = 4 * tokens * (layers * (_WIDTHS * width + _INNER * inner + scores) + _LOGITS * vocabulary)
    return resident + _LIBRARIES + _PER_WEIGHT * trained + kept
