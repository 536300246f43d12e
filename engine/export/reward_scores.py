"""Comparing a reward model's scores of conversations before and after an export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.export.agreement import LONGEST, PLAIN, ROWS, Cancelled
from engine.models import loading, placement, tokenizers
from engine.models.targets import Target
from engine.models.template_lock import render
from engine.prep.formats.canonical import conversation_of


def load_conversations(target: Target, tokenizer: Any) -> tuple[list[list[int]], str]:
    """Token ids of conversations to score, and a description of where they come from: both replies of held-out pairs,
    else the lock's golden conversations, else plain sentences."""
    held_out = [render(tokenizer, messages, reply_follows=False)[:LONGEST] for messages in _held_out(target)]
    if held_out:
        return held_out, f"{len(held_out)} held-out replies of the run"
    recorded = json.loads(target.lock.read_text(encoding="utf-8")) if target.lock else {}
    golden = [each["ids"][:LONGEST] for each in recorded.get("golden", ())]
    if golden:
        return golden, f"the {len(golden)} conversations of the template lock"
    return [tokenizer(text).input_ids for text in PLAIN], f"{len(PLAIN)} plain sentences"


def _held_out(target: Target) -> Iterator[list[dict[str, str]]]:
    prepared = target.folder.parent.parent / "prepared.json"
    if target.run is None or not prepared.is_file():
        return
    named = json.loads(prepared.read_text(encoding="utf-8"))
    path = next((Path(named[key]) for key in ("test_rows", "validation_rows") if named.get(key)), None)
    if path is None or not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for _, line in zip(range(ROWS), file, strict=False):
            row = json.loads(line)
            yield conversation_of(row)
            if "rejected" in row:
                yield [*row.get("prompt", ()), *row["rejected"]]


def score(
    target: Target, dtype: str | None, quantization: str, conversations: list[list[int]], check: Cancelled
) -> list[float]:
    """The score that the model of `target` gives each row of ids. The model is loaded for this call alone."""
    import torch
    from peft import PeftModel

    from engine.models.quantization import quantization_config

    model = loading.load_reward_model(
        target.base,
        dtype=getattr(torch, dtype) if dtype else "auto",
        quantization_config=quantization_config(quantization, dtype),
        device_map={"": placement.choose(0)},
    )
    if target.adapter:
        model = PeftModel.from_pretrained(model, target.adapter)
    tokenizer = tokenizers.load(target.folder)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    scores = []
    for ids in conversations:
        check()
        with torch.inference_mode():
            scores.append(float(model(input_ids=torch.tensor([ids], device=model.device)).logits[0, 0]))
    return scores


def compare(before: list[float], after: list[float], source: str) -> dict[str, Any]:
    """`score_difference`: the largest. `order_kept`: the share of pairs that both sides rank alike. `positions`,
    `prompts`."""
    pairs = [(one, other) for one in range(len(before)) for other in range(one)]
    kept = sum((before[one] > before[other]) == (after[one] > after[other]) for one, other in pairs)
    return {
        "score_difference": max((abs(old - new) for old, new in zip(before, after, strict=True)), default=0.0),
        "order_kept": kept / len(pairs) if pairs else 1.0,
        "positions": len(before),
        "prompts": source,
    }
