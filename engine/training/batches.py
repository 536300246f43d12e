"""The batches that a run will train on, token by token: trained tokens, and the boundaries of rows."""

from __future__ import annotations

import itertools
from typing import Any

from engine.config.profile import Profile
from engine.prep.token_pieces import pieces, reply_parts


def describe_batch(prepared: dict[str, Any], profile: Profile, tokenizer: Any, step: int) -> dict[str, Any]:
    """The global batch of `step` (from 1), as a single rank without accumulation sees it.

    Returns `parts`: for each row `{pieces: [{text, id, trained}], sequence}`, where rows with the same `sequence` are
    packed together; for a preference row, one part per reply, which also has a `name`. Besides: `tokens`, `trained`,
    and `steps` of an epoch. Raises ValueError for a step beyond the first epoch.
    """
    from datasets import load_from_disk

    from engine.prep.batching import token_counts
    from engine.prep.token_rows import MASKED
    from engine.training.online.batching import make_global_batches

    rows = load_from_disk(prepared["train"])
    batches = make_global_batches(profile, token_counts(rows))
    if not 1 <= step <= batches.per_epoch:
        raise ValueError(f"an epoch has {batches.per_epoch} steps; there is no step {step}")
    batches.step = step - 1
    micro = itertools.islice(iter(batches), batches.count_micro_batches(step - 1))
    parts: list[dict[str, Any]] = []
    for sequence, index in enumerate(itertools.chain.from_iterable(micro)):
        row: dict[str, Any] = rows[index]
        if "prompt_ids" in row:
            parts += [{**part, "sequence": sequence} for part in reply_parts(tokenizer, row)]
            continue
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            ids, labels = (row[name][start : start + length] for name in ("input_ids", "labels"))
            # The first token has no predecessor to predict it from, so it is never trained, whatever its label.
            trained = [False, *(label != MASKED for label in labels[1:])]
            parts.append({"pieces": pieces(tokenizer, ids, trained), "sequence": sequence})
            start += length
    return {
        "parts": parts,
        "tokens": sum(len(part["pieces"]) for part in parts),
        "trained": sum(piece["trained"] for part in parts for piece in part["pieces"]),
        "steps": batches.per_epoch,
        "step": step,
    }
