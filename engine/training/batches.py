"""The batches that a run will train on, token by token: what is trained, where one row ends and the next begins."""

from __future__ import annotations

import itertools
from typing import Any

from engine.protocol.profile import Profile


def batch(prepared: dict[str, Any], profile: Profile, tokenizer: Any, step: int) -> dict[str, Any]:
    """The global batch of `step` (from 1), as one rank without accumulation would see it.

    Returns `parts`: for each row `{pieces: [{text, id, trained}], sequence}`, where equal sequences were packed together, and for each reply
    of a preference row one with its `name` besides; `tokens`, `trained`, and `steps` in an epoch. Raises ValueError for a step beyond the first epoch.
    """
    from datasets import load_from_disk

    from engine.training.online.windows import windows_of
    from engine.training.rows import IGNORED, token_counts

    rows = load_from_disk(prepared["train"])
    settings = profile.training
    windows = windows_of(profile, token_counts(rows))
    if not 1 <= step <= windows.per_epoch:
        raise ValueError(f"an epoch has {windows.per_epoch} steps; there is no step {step}")
    first = (step - 1) * settings.accumulation
    micro = itertools.islice(iter(windows), first, first + settings.accumulation)
    parts: list[dict[str, Any]] = []
    for sequence, index in enumerate(itertools.chain.from_iterable(micro)):
        row: dict[str, Any] = rows[index]
        if "prompt_ids" in row:
            parts += [{**part, "sequence": sequence} for part in reply_parts(tokenizer, row)]
            continue
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            ids, labels = (row[name][start : start + length] for name in ("input_ids", "labels"))
            # Nothing predicts a part's first token, so it is never trained, whatever its label says.
            trained = [False, *(label != IGNORED for label in labels[1:])]
            parts.append({"pieces": _pieces(tokenizer, ids, trained), "sequence": sequence})
            start += length
    return {
        "parts": parts,
        "tokens": sum(len(part["pieces"]) for part in parts),
        "trained": sum(piece["trained"] for part in parts for piece in part["pieces"]),
        "steps": windows.per_epoch,
        "step": step,
    }


def reply_parts(tokenizer: Any, row: dict[str, list[int]]) -> list[dict[str, Any]]:
    """The prompt of a prepared preference row with each of its replies: `{name, pieces}`. What is compared counts as trained.
    A prompt that is to be answered stands alone."""
    names = [name for name in ("chosen", "rejected", "completion") if f"{name}_ids" in row]
    asked = row["prompt_ids"]
    if not names:
        return [{"name": "prompt", "pieces": _pieces(tokenizer, asked, [False] * len(asked))}]
    return [
        {
            "name": ("good" if row["label"][0] else "bad") if "label" in row else name,
            "pieces": _pieces(
                tokenizer, asked + row[f"{name}_ids"], [False] * len(asked) + [True] * len(row[f"{name}_ids"])
            ),
        }
        for name in names
    ]


def _pieces(tokenizer: Any, ids: list[int], trained: list[bool]) -> list[dict[str, Any]]:
    """Each token with the text that became certain with it, special tokens included; a part of a character shows nothing."""
    pieces, at, told = [], 0, ""
    for number, (token, is_trained) in enumerate(zip(ids, trained, strict=True), 1):
        text = tokenizer.decode(ids[at:number], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd")
        pieces.append({"text": text[len(told) :] if whole else "", "id": token, "trained": is_trained})
        if whole:
            # From the last whole token on: some tokenizers write a token differently when it comes first.
            at, told = (
                number - 1,
                tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False),
            )
    return pieces
